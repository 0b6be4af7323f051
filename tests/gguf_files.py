"""GGUF files as gguf-py writes them: small DeepSeek-V3 models with random bytes, and files of any keys and tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter

from chimerakit.dtypes import GGML_TYPES

EXPERTS, LAYERS, HIDDEN, WIDTH, VOCABULARY = 4, 3, 256, 512, 96
_ARCHITECTURE = "deepseek2"
Stored = tuple[str, tuple[int, ...]]
"""(dtype, shape)."""


def layout(types: Mapping[str, str] | None = None, *, old_mla: bool = False, mtp: bool = False) -> dict[str, Stored]:
    """Every tensor of a small model. types: a dtype for each part of a name in place of Q8_0."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS + mtp):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q_a": (256, HIDDEN),
            "attn_q_a_norm": (256,),
            "attn_q_b": (512, 256),
            "attn_kv_a_mqa": (320, HIDDEN),
            "attn_kv_a_norm": (256,),
            **({"attn_kv_b": (512, 256)} if old_mla else {"attn_k_b": (2, 256, 128), "attn_v_b": (2, 128, 256)}),
            "attn_output": (HIDDEN, 256),
            "ffn_norm": (HIDDEN,),
        }
        if layer == 0:
            block |= {"ffn_gate": (WIDTH, HIDDEN), "ffn_up": (WIDTH, HIDDEN), "ffn_down": (HIDDEN, WIDTH)}
        else:
            stacks = {"gate": (EXPERTS, 256, HIDDEN), "up": (EXPERTS, 256, HIDDEN), "down": (EXPERTS, HIDDEN, 256)}
            block |= {"ffn_gate_inp": (EXPERTS, HIDDEN), **{f"ffn_{p}_exps": shape for p, shape in stacks.items()}}
            block |= {f"ffn_{p}_shexp": shape[1:] for p, shape in stacks.items()}
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        if layer > 0:
            found[f"blk.{layer}.exp_probs_b.bias"] = (EXPERTS,)
        if layer == LAYERS:
            found |= {
                f"blk.{layer}.nextn.eh_proj.weight": (HIDDEN, 2 * HIDDEN),
                f"blk.{layer}.nextn.enorm.weight": (HIDDEN,),
            }
    found |= {"output_norm.weight": (HIDDEN,), "output.weight": (VOCABULARY, HIDDEN)}
    return {name: (_dtype(name, shape, types or {}), shape) for name, shape in found.items()}


def _dtype(name: str, shape: tuple[int, ...], types: Mapping[str, str]) -> str:
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    return next((dtype for part, dtype in types.items() if part in name), "F16" if shape[-1] % 256 else "Q8_0")


def keys_of(*, mtp: bool = False, **more: Any) -> dict[str, Any]:
    """The keys of such a model."""
    return {
        "general.name": "a small model",
        f"{_ARCHITECTURE}.block_count": LAYERS + mtp,
        **({f"{_ARCHITECTURE}.nextn_predict_layers": 1} if mtp else {}),
        f"{_ARCHITECTURE}.embedding_length": HIDDEN,
        f"{_ARCHITECTURE}.attention.head_count": 2,
        f"{_ARCHITECTURE}.attention.kv_lora_rank": 256,
        f"{_ARCHITECTURE}.expert_count": EXPERTS,
        f"{_ARCHITECTURE}.expert_used_count": 2,
        f"{_ARCHITECTURE}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"token {number}" for number in range(VOCABULARY)],
        "tokenizer.chat_template": "{{ messages }}",
        "general.file_type": 7,
        **more,
    }


def write(
    path: Path,
    tensors: Mapping[str, Stored],
    keys: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    alignment: int | None = None,
    endian: GGUFEndian = GGUFEndian.LITTLE,
    split_max_tensors: int = 0,
    values: bool = False,
) -> Path:
    """A file with random bytes in every tensor; with `values`, F32, F16 and BF16 hold small numbers. Split, if asked for."""
    writer = GGUFWriter(path, _ARCHITECTURE, endianess=endian, split_max_tensors=split_max_tensors)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in (keys_of() if keys is None else keys).items():
        add_key(writer, key, value)
    for number, (name, (dtype, shape)) in enumerate(tensors.items()):
        random = np.random.default_rng([seed, number])
        writer.add_tensor(name, data_of(random, dtype, shape, values=values), raw_dtype=type_of(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def type_of(dtype: str) -> GGMLQuantizationType:
    """A type as gguf-py has it."""
    return GGMLQuantizationType(GGML_TYPES[dtype].id)


def data_of(random: np.random.Generator, dtype: str, shape: tuple[int, ...], *, values: bool) -> npt.NDArray[Any]:
    """A tensor's bytes, rows last."""
    kind = GGML_TYPES[dtype]
    nbytes = shape[-1] // kind.weights * kind.nbytes if shape else 0
    if not values or dtype not in ("F32", "F16", "BF16"):
        return random.integers(0, 256, (*shape[:-1], nbytes), np.uint8)
    numbers = (random.standard_normal(shape) * 0.02).astype(np.float32)
    if dtype == "BF16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(*shape[:-1], nbytes)
    return numbers.astype({"F32": np.float32, "F16": np.float16}[dtype]).view(np.uint8).reshape(*shape[:-1], nbytes)


def add_key(writer: GGUFWriter, key: str, value: Any) -> None:
    """A key of the type that its value is; a tuple says the type."""
    if isinstance(value, tuple):
        value, kind = value
        is_list = isinstance(value, list)
        writer.add_key_value(key, value, GGUFValueType.ARRAY if is_list else kind, sub_type=kind if is_list else None)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        kinds = {
            bool: GGUFValueType.BOOL,
            int: GGUFValueType.UINT32,
            float: GGUFValueType.FLOAT32,
            str: GGUFValueType.STRING,
        }
        writer.add_key_value(key, value, kinds[type(value)])


def make(path: Path, seed: int, **options: Any) -> Path:
    """A small DeepSeek-V3 model. options: of `layout` and `write`, and keys in `more`."""
    parts = {name: options.pop(name) for name in ("types", "old_mla", "mtp") if name in options}
    more = options.pop("more", {})
    return write(path, layout(**parts), keys_of(mtp=parts.get("mtp", False), **more), seed=seed, **options)
