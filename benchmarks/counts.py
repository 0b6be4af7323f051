"""Two parents with DeepSeek-V3's names and counts (61 layers and the MTP layer, 256 experts, FP8: 46,183 units), but small
matrices: `python -m benchmarks.counts OUT [--large]`. Numbers are random, and made to have something to show: how far the
parents lie apart depends on the layer, the component and the expert.
"""

import argparse
import math
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from benchmarks.parents import load_make

TINY = {
    "hidden_size": 64,
    "moe_intermediate_size": 16,
    "intermediate_size": 128,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
LARGE = {"hidden_size": 512, "moe_intermediate_size": 64, "intermediate_size": 512}
TEMPLATES = {"v3": "{{ messages }}", "r1": "{{ messages }}<think>\n"}
_POOL = 1 << 22


class Weights:
    """Numbers of one parent: common ones, and for r1 a part of its own that depends on what a tensor is."""

    def __init__(self, parent: str, config: dict[str, Any]):
        self._common = np.random.default_rng(1).standard_normal(_POOL, np.float32)
        self._own = np.random.default_rng(2).standard_normal(_POOL, np.float32)
        self._is_base = parent == "v3"
        self._layers = config["num_hidden_layers"]
        shape = (self._layers + 1, config["n_routed_experts"])
        numbers = np.random.default_rng(3)
        # A few experts of each layer are trained on far more than others.
        self._experts = np.clip(0.4 * (1 + numbers.pareto(2.2, shape)), 0.4, 8)
        self._scales: dict[str, np.float32] = {}

    def of(self, entry: Any) -> npt.NDArray[Any]:
        """One tensor as it is stored; scales after the weight that they are of."""
        if entry.name in self._scales:
            return np.full(entry.elements, self._scales.pop(entry.name), np.float32)
        start = zlib.crc32(entry.name.encode()) % (_POOL - entry.elements)
        here = slice(start, start + entry.elements)
        values = self._common[here] * np.float32(0.02)
        if not self._is_base:
            values = values + np.float32(0.02 * self._distance(entry.name)) * self._own[here]
        if entry.dtype == "F8_E4M3":
            scale = np.abs(values).max() / np.float32(448)
            self._scales[entry.name + "_scale_inv"] = scale
            return (values / scale).astype(ml_dtypes.float8_e4m3fn)
        if entry.dtype == "BF16":
            return (values + ("norm" in entry.name)).astype(ml_dtypes.bfloat16)
        return values

    def _distance(self, name: str) -> float:
        """How far the parents lie apart in a tensor, in units of its own spread."""
        parts = name.split(".")
        if parts[1] != "layers":
            return 0.01 if "embed" in name else 0.05
        layer = int(parts[2])
        depth = layer / self._layers
        bump = 0.3 + math.exp(-(((depth - 0.62) / 0.22) ** 2)) + 0.5 * math.exp(-((depth / 0.06) ** 2))
        if ".experts." in name:
            kind = {"gate_proj": 0.9, "up_proj": 1.0, "down_proj": 1.15}[parts[6]]
            return 0.4 * bump * kind * float(self._experts[min(layer, self._layers), int(parts[5])])
        if "norm" in name:
            return 0.0 if layer % 3 else 0.02  # many norms are never changed
        return {"self_attn": 0.6, "mlp": 0.4}.get(parts[3], 0.1) * bump


def make_parents(root: Path, *, is_large: bool = False) -> dict[str, Path]:
    """Two checkpoints, of 61 MB or of 1.6 GB each."""
    make = load_make()
    config = dict(make.CONFIG) | TINY | (LARGE if is_large else {})
    del config["auto_map"]
    entries = list(make.layout(config))
    shards = make.deal(entries, sum(entry.elements for _, entry in entries) // 3, stages=())
    for parent, template in TEMPLATES.items():
        weights = Weights(parent, config)

        def fill(entry: Any, weights: Weights = weights) -> Any:
            return make.Data(0, weights.of(entry).tobytes())

        make.write_checkpoint(root / parent, config, shards, fill)
        (root / parent / "chat_template.jinja").write_text(template)
    return {parent: root / parent for parent in TEMPLATES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--large", action="store_true", help="1.6 GB each")
    given = parser.parse_args()
    make_parents(given.out, is_large=given.large)


if __name__ == "__main__":
    main()
