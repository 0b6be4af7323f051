"""Two GGUF parents with stacked experts in Q4_K, random bytes: `python -m benchmarks.gguf_parents OUT [--scale S]`, 1.9 GB each."""

import argparse
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

LAYERS, EXPERTS, HIDDEN, WIDTH = 8, 64, 2048, 1024


def make(path: Path, seed: int, scale: float) -> None:
    """One parent; its size grows with the square of the scale."""
    step = 256
    hidden, width = (max(step, round(side * scale / step) * step) for side in (HIDDEN, WIDTH))
    writer = GGUFWriter(path, "deepseek2")
    writer.add_name(f"benchmark {seed}")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(hidden)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        kind = GGMLQuantizationType.Q4_K if len(shape) > 1 else GGMLQuantizationType.F32
        weights, nbytes = GGML_QUANT_SIZES[kind]
        size = (*shape[:-1], shape[-1] // weights * nbytes)
        writer.add_tensor(name, random.integers(0, 256, size, np.uint8), raw_dtype=kind)

    add("token_embd.weight", 8192, hidden)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", hidden)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{name}.weight", hidden, hidden)
        for name, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
            add(f"{block}.ffn_{name}_exps.weight", EXPERTS, *shape)
            add(f"{block}.ffn_{name}_shexp.weight", *shape)
    add("output.weight", 8192, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    for seed, name in enumerate(("v3", "r1"), 1):
        (given.output / name).mkdir(parents=True)
        make(given.output / name / "model.gguf", seed, given.scale)
