"""Checkpoints with everything of DeepSeek-V3 but its weights: names, shapes, dtypes, order, headers and 163 shards.

The 689 GB of weights are holes in sparse files, so a checkpoint takes about 25 MB of disk and a few seconds. Only a few
tensors hold data (norms, correction biases, pieces of some experts), other data for each checkpoint, so that a proof has
something to tell the parents apart by.

Where the layout comes from: names, shapes and dtypes are published. So are two sizes: 5,234,139,343 bytes of the first
shard and 688,586,727,753 bytes of all, and an `ls -lh` of the rest. The rule below is the one found that gives both
numbers to the byte, 163 shards, and all sizes of the listing: each eighth of the layers (as pipeline-parallel training
had them) is a sequence of its own; a shard takes tensors in the model's order until it holds 2^32 elements; headers say
tensors in that order and are not padded. So weights begin at odd offsets, as the real ones do.

Usage: ``python make.py OUT [--names v3 r1] [--layers 61] [--experts 256]`` writes ``OUT/v3`` and ``OUT/r1``.
Without torch; benchmarks/ and tests/ use its functions for smaller, dense checkpoints, too.
"""

import argparse
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""config.json of DeepSeek-V3."""

SHARD_ELEMENTS = 1 << 32
STAGES = (7, 15, 23, 31, 39, 47, 54)
"""Layers that begin a new shard."""
_PIECE = 64 << 10
"""Bytes of data in an expert matrix that is not all hole."""


class Entry(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return {"F8_E4M3": 1, "BF16": 2, "F32": 4}[self.dtype] * self.elements


class Data(NamedTuple):
    """Bytes that are not a hole, from `start` on within a tensor."""

    start: int
    data: bytes | memoryview


Fill = Callable[[Entry], Data | None]


# ---------------------------------------------------------------------------------------------- layout


def layout(config: Mapping[str, Any]) -> Iterator[tuple[int, Entry]]:
    """Every tensor with the layer it belongs to, in the order in which the model stores them."""
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield 0, _plain("model.embed_tokens.weight", vocab, hidden)
    for layer in range(layers + config["num_nextn_predict_layers"]):
        if layer == layers:
            yield from ((layer, entry) for entry in _last(config))
        prefix = f"model.layers.{layer}."
        yield from ((layer, entry) for entry in _layer(prefix, layer, config))
        if layer >= layers:
            yield layer, _plain(prefix + "embed_tokens.weight", vocab, hidden)
            yield layer, _plain(prefix + "enorm.weight", hidden)
            yield layer, _plain(prefix + "hnorm.weight", hidden)
            yield layer, _plain(prefix + "eh_proj.weight", hidden, 2 * hidden)
            yield layer, _plain(prefix + "shared_head.norm.weight", hidden)
            yield layer, _plain(prefix + "shared_head.head.weight", vocab, hidden)
    if not config["num_nextn_predict_layers"]:
        yield from ((layers - 1, entry) for entry in _last(config))


def _last(config: Mapping[str, Any]) -> Iterator[Entry]:
    yield _plain("model.norm.weight", config["hidden_size"])
    yield _plain("lm_head.weight", config["vocab_size"], config["hidden_size"])


def _layer(prefix: str, layer: int, config: Mapping[str, Any]) -> Iterator[Entry]:
    hidden, heads, experts = config["hidden_size"], config["num_attention_heads"], config["n_routed_experts"]
    q, kv, value = config["q_lora_rank"], config["kv_lora_rank"], config["v_head_dim"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    is_fp8 = "quantization_config" in config

    def linear(name: str, rows: int, cols: int) -> Iterator[Entry]:
        yield Entry(name, "F8_E4M3" if is_fp8 else "BF16", (rows, cols))
        if is_fp8:
            yield Entry(name + "_scale_inv", "F32", (-(-rows // 128), -(-cols // 128)))

    def mlp(name: str, width: int) -> Iterator[Entry]:
        yield from linear(name + "gate_proj.weight", width, hidden)
        yield from linear(name + "up_proj.weight", width, hidden)
        yield from linear(name + "down_proj.weight", hidden, width)

    attention = prefix + "self_attn."
    yield from linear(attention + "q_a_proj.weight", q, hidden)
    yield _plain(attention + "q_a_layernorm.weight", q)
    yield from linear(attention + "q_b_proj.weight", heads * (nope + rope), q)
    yield from linear(attention + "kv_a_proj_with_mqa.weight", kv + rope, hidden)
    yield _plain(attention + "kv_a_layernorm.weight", kv)
    yield from linear(attention + "kv_b_proj.weight", heads * (nope + value), kv)
    yield from linear(attention + "o_proj.weight", hidden, heads * value)
    if layer < config["first_k_dense_replace"]:
        yield from mlp(prefix + "mlp.", config["intermediate_size"])
    else:
        yield _plain(prefix + "mlp.gate.weight", experts, hidden)
        yield Entry(prefix + "mlp.gate.e_score_correction_bias", "F32", (experts,))
        yield from mlp(prefix + "mlp.shared_experts.", config["moe_intermediate_size"])
        for expert in range(experts):
            yield from mlp(f"{prefix}mlp.experts.{expert}.", config["moe_intermediate_size"])
    yield _plain(prefix + "input_layernorm.weight", hidden)
    yield _plain(prefix + "post_attention_layernorm.weight", hidden)


def _plain(name: str, *shape: int) -> Entry:
    return Entry(name, "BF16", shape)


def deal(
    entries: Iterable[tuple[int, Entry]], limit: int = SHARD_ELEMENTS, stages: Collection[int] = STAGES
) -> list[list[Entry]]:
    """Entries by shard: a shard is full once it holds `limit` elements, or when a stage begins."""
    shards: list[list[Entry]] = [[]]
    elements = before = 0
    for layer, entry in entries:
        if elements >= limit or (layer != before and layer in stages):
            shards.append([])
            elements = 0
        shards[-1].append(entry)
        elements += entry.elements
        before = layer
    return shards


# --------------------------------------------------------------------------------------------- writing


def header(entries: Sequence[Entry]) -> bytes:
    """What stands before the first weight, length field included."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        content[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text


def write_checkpoint(root: Path, config: Mapping[str, Any], shards: Sequence[Sequence[Entry]], fill: Fill) -> None:
    """A folder with shards, index and config.json. What `fill` gives nothing for is a hole."""
    root.mkdir(parents=True)
    weight_map = {}
    for number, entries in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        weight_map.update((entry.name, file) for entry in entries)
        write_shard(root / file, entries, fill)
    total = sum(entry.nbytes for entries in shards for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (root / "config.json").write_text(json.dumps(config, indent=2))


def write_shard(path: Path, entries: Sequence[Entry], fill: Fill) -> None:
    """One safetensors file."""
    start = header(entries)
    end = len(start)
    with path.open("wb") as file:
        file.write(start)
        for entry in entries:
            if (found := fill(entry)) is not None:
                file.seek(end + found.start)
                file.write(found.data)
            end += entry.nbytes
        file.truncate(end)


def sparse_fill(checkpoint: str, config: Mapping[str, Any]) -> Fill:
    """Data for a few tensors of a checkpoint: all norms and biases, and in four layers parts of two experts."""
    layers = config["num_hidden_layers"]
    some = {config["first_k_dense_replace"], layers // 2, layers - 1, layers}
    chosen = {f".layers.{i}.mlp.experts.{e}." for i in some for e in (0, config["n_routed_experts"] - 1)}

    def fill(entry: Entry) -> Data | None:
        is_small = "norm" in entry.name or entry.name.endswith("e_score_correction_bias")
        if not is_small and not any(part in entry.name for part in chosen):
            return None
        numbers = np.random.default_rng([zlib.crc32(checkpoint.encode()), zlib.crc32(entry.name.encode())])
        if entry.dtype == "F8_E4M3":  # a piece with holes before and behind it
            codes = numbers.integers(0, 127, min(_PIECE, entry.nbytes), np.uint8)  # 127 is NaN
            return Data((entry.nbytes - codes.size) // 2, codes.tobytes())
        values = numbers.uniform(0.5, 1.5, entry.elements).astype(np.float32)
        if entry.dtype == "BF16":
            return Data(0, (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        return Data(0, values.tobytes())

    return fill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--names", nargs="+", default=["v3", "r1"], help="a checkpoint for each (v3 r1)")
    parser.add_argument("--layers", type=int, default=61, help="layers, the MTP layer not counted")
    parser.add_argument("--experts", type=int, default=256, help="routed experts in each layer")
    given = parser.parse_args()
    config = CONFIG | {"num_hidden_layers": given.layers, "n_routed_experts": given.experts}
    shards = deal(layout(config))
    for name in given.names:
        write_checkpoint(given.out / name, config, shards, sparse_fill(name, config))
        nbytes = sum(file.stat().st_size for file in (given.out / name).glob("*.safetensors"))
        print(f"{given.out / name}: {sum(map(len, shards))} tensors, {len(shards)} shards, {nbytes} bytes")


if __name__ == "__main__":
    main()
