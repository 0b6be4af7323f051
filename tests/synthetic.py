"""Small checkpoints with every kind of tensor that DeepSeek-V3 has, written without the code under test.

Two checkpoints of the same `family` seed and other `seed`s are like fine-tunes of one base: close, but unequal.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NAMES = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(ml_dtypes.float8_e8m0fnu): "F8_E8M0",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint8): "U8",
}

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 200,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 72,
    "intermediate_size": 264,
    "q_lora_rank": 136,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "vocab_size": 96,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
SMALL = CONFIG | {
    "hidden_size": 130,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "n_routed_experts": 2,
    "moe_intermediate_size": 20,
    "q_lora_rank": 20,
    "num_nextn_predict_layers": 0,
}
"""One layer, so few bytes that a test can go through many of them; ragged blocks of FP8 all the same."""


def layout(config: Mapping[str, Any] = CONFIG, *, mtp: bool = True) -> Iterable[tuple[str, tuple[int, ...], str]]:
    """(name, shape, kind) of every tensor; kind is linear (FP8 in an FP8 checkpoint), plain, or bias (always F32)."""
    h, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    heads, q, kv = config["num_attention_heads"], config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]

    def mlp(prefix: str, width: int) -> Iterable[tuple[str, tuple[int, ...], str]]:
        yield prefix + "gate_proj.weight", (width, h), "linear"
        yield prefix + "up_proj.weight", (width, h), "linear"
        yield prefix + "down_proj.weight", (h, width), "linear"

    yield "model.embed_tokens.weight", (vocab, h), "plain"
    for layer in range(layers + mtp):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", (h,), "plain"
        yield p + "self_attn.q_a_proj.weight", (q, h), "linear"
        yield p + "self_attn.q_a_layernorm.weight", (q,), "plain"
        yield p + "self_attn.q_b_proj.weight", (heads * (nope + rope), q), "linear"
        yield p + "self_attn.kv_a_proj_with_mqa.weight", (kv + rope, h), "linear"
        yield p + "self_attn.kv_a_layernorm.weight", (kv,), "plain"
        yield p + "self_attn.kv_b_proj.weight", (heads * (nope + v), kv), "linear"
        yield p + "self_attn.o_proj.weight", (h, heads * v), "linear"
        yield p + "post_attention_layernorm.weight", (h,), "plain"
        if layer < config["first_k_dense_replace"]:
            yield from mlp(p + "mlp.", config["intermediate_size"])
        else:
            yield p + "mlp.gate.weight", (config["n_routed_experts"], h), "plain"
            yield p + "mlp.gate.e_score_correction_bias", (config["n_routed_experts"],), "bias"
            for expert in range(config["n_routed_experts"]):
                yield from mlp(f"{p}mlp.experts.{expert}.", config["moe_intermediate_size"])
            yield from mlp(p + "mlp.shared_experts.", config["moe_intermediate_size"])
        if layer == layers:
            yield p + "embed_tokens.weight", (vocab, h), "plain"
            yield p + "enorm.weight", (h,), "plain"
            yield p + "hnorm.weight", (h,), "plain"
            yield p + "eh_proj.weight", (h, 2 * h), "plain"
            yield p + "shared_head.norm.weight", (h,), "plain"
            yield p + "shared_head.head.weight", (vocab, h), "plain"
    yield "model.norm.weight", (h,), "plain"
    yield "lm_head.weight", (vocab, h), "plain"


def values(name: str, shape: tuple[int, ...], seed: int, spread: float = 0.25) -> npt.NDArray[np.float32]:
    """float32 weights of a tensor: common to all seeds but for a part of the size `spread`."""
    return _drawn(name, tuple(shape), seed, spread).copy()


@lru_cache(maxsize=1 << 10)  # a few checkpoints, of which most tests draw the same
def _drawn(name: str, shape: tuple[int, ...], seed: int, spread: float) -> npt.NDArray[np.float32]:
    common = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    own = np.random.default_rng([zlib.crc32(name.encode()), seed]).normal(size=shape)
    return ((common + spread * own) * 0.02).astype(np.float32)


def quantize(weights: npt.NDArray[np.float32], *, ue8m0: bool = False) -> tuple[Array, npt.NDArray[np.float32]]:
    """FP8 codes and scales, one for each 128x128 block."""
    rows, cols = weights.shape
    high, wide = -(-rows // 128), -(-cols // 128)
    padded = np.zeros((high * 128, wide * 128), np.float32)
    padded[:rows, :cols] = weights
    blocks = padded.reshape(high, 128, wide, 128)
    scales = (np.abs(blocks).max((1, 3)) / 448).astype(np.float32)
    scales[scales == 0] = 1
    if ue8m0:
        scales = np.exp2(np.ceil(np.log2(scales))).astype(np.float32)
    codes = (blocks / scales[:, None, :, None]).reshape(padded.shape)[:rows, :cols]
    return np.ascontiguousarray(codes.astype(ml_dtypes.float8_e4m3fn)), scales


def tensors_of(
    seed: int, storage: str = "bf16", *, config: Mapping[str, Any] = CONFIG, mtp: bool = True, spread: float = 0.25
) -> dict[str, Array]:
    """All tensors as stored. storage: bf16, f16, f32, fp8 (float32 scales), ue8m0 (powers of two), e8m0 (those as F8_E8M0)."""
    kinds: dict[str, npt.DTypeLike] = {"f16": np.float16, "f32": np.float32}
    plain = np.dtype(kinds.get(storage, ml_dtypes.bfloat16))
    found: dict[str, Array] = {}
    for name, shape, kind in layout(config, mtp=mtp):
        weights = values(name, shape, seed, spread)
        if kind == "linear" and storage in ("fp8", "ue8m0", "e8m0"):
            codes, scales = quantize(weights, ue8m0=storage != "fp8")
            found[name] = codes
            found[name + "_scale_inv"] = scales.astype(ml_dtypes.float8_e8m0fnu) if storage == "e8m0" else scales
        else:
            found[name] = weights if kind == "bias" else weights.astype(plain)
    return found


def config_of(storage: str, config: Mapping[str, Any] = CONFIG, *, mtp: bool = True) -> dict[str, Any]:
    """config.json of such a checkpoint."""
    found = dict(config) | ({} if mtp else {"num_nextn_predict_layers": 0})
    if storage in ("fp8", "ue8m0", "e8m0"):
        quantization = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
        quantization["weight_block_size"] = [128, 128]  # type: ignore[assignment]
        found["quantization_config"] = quantization | ({} if storage == "fp8" else {"scale_fmt": "ue8m0"})
    return found


def write_shard(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file with the tensors in the given order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


def write_checkpoint(
    root: Path, tensors: Mapping[str, Array], config: Mapping[str, Any], *, shards: int = 3, shuffle: int | None = None
) -> Path:
    """A folder: shards with an index (or one file), config and some other files.

    shuffle: a seed that deals tensors to shards in random order, so that scales lie in other shards than their weights.
    """
    root.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(names)
    size = -(-len(names) // shards)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    weight_map = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):06d}.safetensors" if shards > 1 else "model.safetensors"
        write_shard(root / file, {name: tensors[name] for name in group}, {"format": "pt"})
        weight_map.update(dict.fromkeys(group, file))
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (root / "config.json").write_text(json.dumps(config, indent=2))
    (root / "generation_config.json").write_text('{"eos_token_id": 1}')
    (root / "tokenizer.json").write_text('{"version": "1.0"}')
    (root / "tokenizer_config.json").write_text(json.dumps({"chat_template": f"template of {root.name}"}))
    (root / "README.md").write_text("the parent's own card")
    (root / "LICENSE").write_text("a licence")
    return root


def make(root: Path, seed: int, storage: str = "bf16", *, mtp: bool = True, **layout_options: Any) -> Path:
    """A whole synthetic checkpoint on disk."""
    return write_checkpoint(root, tensors_of(seed, storage, mtp=mtp), config_of(storage, mtp=mtp), **layout_options)
