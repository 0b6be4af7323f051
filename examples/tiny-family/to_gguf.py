"""The tiny family in GGUF: a folder of DeepSeek-V3 safetensors -> BF16, and from that what llama.cpp quantises it to.

    python to_gguf.py v3-like v3-like.gguf                        # BF16, named as llama.cpp's converter names tensors
    python to_gguf.py v3-like v3-like-q4_k_m.gguf --type Q4_K_M
    python to_gguf.py v3-like v3-like-old.gguf --old-mla          # attn_kv_b whole, as before llama.cpp's pull request 12801

Needs `pip install "chimerakit[eval,dev]"`: the writer is gguf-py's, the quantiser the llama.cpp inside of xllamacpp.
"""

import argparse
import ctypes
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import xllamacpp
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGUFReader, GGUFValueType, GGUFWriter, Keys, TokenType
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors.torch import load_file

FILE_TYPES = {"F32": 0, "Q8_0": 7, "Q4_K_M": 15, "BF16": 32}
"""llama.cpp's llama_ftype."""
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
IN_FLOAT32 = ("norm", "ffn_gate_inp", "exp_probs_b")


def convert(source: Path, target: Path, *, old_mla: bool = False) -> None:
    """Write a folder of safetensors as one BF16 GGUF file."""
    config = json.loads((source / "config.json").read_text())
    tensors = {
        name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    writer = GGUFWriter(target, "deepseek2")
    write_keys(writer, source, config, old_mla=old_mla)
    write_vocabulary(writer, source)
    for name, tensor in stacked(tensors, config, old_mla=old_mla).items():
        if tensor.ndim < 2 or any(part in name for part in IN_FLOAT32):
            writer.add_tensor(name, tensor.float().numpy())
        else:
            data = tensor.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, data.reshape(*tensor.shape[:-1], -1), raw_dtype=Type.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stacked(tensors: dict[str, torch.Tensor], config: dict, *, old_mla: bool) -> dict[str, torch.Tensor]:
    """Tensors by llama.cpp's names, experts stacked."""
    found = {"token_embd.weight": tensors["model.embed_tokens.weight"]}
    for layer in range(config["num_hidden_layers"]):
        prefix, block = f"model.layers.{layer}", f"blk.{layer}"
        for theirs, ours in NAMES.items():
            if f"{prefix}.{theirs}.weight" in tensors:
                found[f"{block}.{ours}.weight"] = tensors[f"{prefix}.{theirs}.weight"]
        if not old_mla:
            kv_b = found.pop(f"{block}.attn_kv_b.weight")
            heads, nope, v = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
            k_b, v_b = kv_b.view(heads, nope + v, config["kv_lora_rank"]).split([nope, v], dim=1)
            found |= {f"{block}.attn_k_b.weight": k_b.transpose(1, 2), f"{block}.attn_v_b.weight": v_b}
        bias = f"{prefix}.mlp.gate.e_score_correction_bias"
        if bias in tensors:
            found[f"{block}.exp_probs_b.bias"] = tensors[bias]
            for projection in ("gate", "up", "down"):
                experts = range(config["n_routed_experts"])
                parts = [tensors[f"{prefix}.mlp.experts.{e}.{projection}_proj.weight"] for e in experts]
                found[f"{block}.ffn_{projection}_exps.weight"] = torch.stack(parts)
    found |= {"output_norm.weight": tensors["model.norm.weight"], "output.weight": tensors["lm_head.weight"]}
    return found


def write_keys(writer: GGUFWriter, source: Path, config: dict, *, old_mla: bool) -> None:
    """What llama.cpp's converter writes of a DeepSeek-V3 config."""
    heads, rope = config["num_attention_heads"], config["qk_rope_head_dim"]
    key, value = config["qk_nope_head_dim"] + rope, config["v_head_dim"]
    writer.add_type("model")
    writer.add_name(f"tiny family {source.name}")
    writer.add_organization("chimerakit")
    writer.add_file_type(FILE_TYPES["BF16"])
    writer.add_quantization_version(2)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads if old_mla else 1)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(rope)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(key if old_mla else config["kv_lora_rank"] + rope)
    writer.add_value_length(value if old_mla else config["kv_lora_rank"])
    if not old_mla:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def write_vocabulary(writer: GGUFWriter, source: Path) -> None:
    """One token for each character: bytes as GPT-2 writes them, no merges."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    kinds = [
        TokenType.NORMAL if t not in special else TokenType.CONTROL if special[t] else TokenType.USER_DEFINED
        for t in vocabulary
    ]
    config = json.loads((source / "config.json").read_text())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.replace(" ", "\u0120") for token in vocabulary])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_array("tokenizer.ggml.merges", ["0 0"])  # llama.cpp asks for at least one
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((source / "chat_template.jinja").read_text())


def quantize(source: Path, target: Path, kind: str, importance: dict[str, np.ndarray] | None = None) -> None:
    """Quantise a GGUF file by ggml_quantize_chunk, to the types that llama-quantize gives the tensors of such a model.

    importance: by tensor, (experts or 1, cols): mean squares of what its columns are multiplied with.
    """
    reader, writer = GGUFReader(source), GGUFWriter(target, "deepseek2")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE):
            continue
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(FILE_TYPES[kind])
    num_layers = reader.fields["deepseek2.block_count"].contents()
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        chosen = type_of(tensor.name, values.shape, kind, num_layers)
        if chosen == Type.F32:
            writer.add_tensor(tensor.name, values)
        else:
            rows = (importance or {}).get(tensor.name)
            stored = (
                quantize_chunk(values, chosen, None if rows is None else rows[0])
                if rows is None or len(rows) == 1
                else np.stack([quantize_chunk(each, chosen, row) for each, row in zip(values, rows, strict=True)])
            )
            writer.add_tensor(tensor.name, stored, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def type_of(name: str, shape: tuple[int, ...], kind: str, num_layers: int) -> Type:
    """What llama-quantize stores a tensor as (llama_tensor_get_type in llama-quant.cpp)."""
    if len(shape) < 2 or any(part in name for part in IN_FLOAT32):
        return Type.F32
    if kind != "Q4_K_M":
        return Type[kind]
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    is_early_or_late = layer < num_layers // 8 or layer >= 7 * num_layers // 8 or (layer - num_layers // 8) % 3 == 2
    if name == "output.weight" or (".ffn_down" in name and is_early_or_late):
        return Type.Q6_K if shape[-1] % 256 == 0 else Type.Q8_0
    return Type.Q4_K if shape[-1] % 256 == 0 else Type.Q5_0


def quantize_chunk(values: np.ndarray, kind: Type, importance: np.ndarray | None = None) -> np.ndarray:
    """Rows as llama.cpp stores them. importance: (cols,)."""
    library = llama_cpp()
    weights_of = None if importance is None else np.ascontiguousarray(importance, np.float32)
    address = None if weights_of is None else weights_of.ctypes.data
    values = np.ascontiguousarray(values, np.float32)
    weights, nbytes = GGML_QUANT_SIZES[kind]
    found = np.empty((*values.shape[:-1], values.shape[-1] // weights * nbytes), np.uint8)
    rows = values.size // values.shape[-1]
    library.ggml_quantize_chunk(int(kind), values.ctypes.data, found.ctypes.data, 0, rows, values.shape[-1], address)
    return found


def llama_cpp() -> ctypes.CDLL:
    """The llama.cpp inside of xllamacpp."""
    library = ctypes.CDLL(next(str(file) for file in Path(xllamacpp.__file__).parent.glob("*.so")))
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of safetensors")
    parser.add_argument("target", type=Path, help="the GGUF file to write")
    parser.add_argument("--type", choices=FILE_TYPES, default="BF16")
    parser.add_argument("--old-mla", action="store_true", help="attn_kv_b in one tensor")
    given = parser.parse_args()
    if given.type == "BF16":
        convert(given.source, given.target, old_mla=given.old_mla)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "bf16.gguf")
        convert(given.source, whole, old_mla=given.old_mla)
        quantize(whole, given.target, given.type)


if __name__ == "__main__":
    main()
