"""Two dense parents of a DeepSeek-V3 layout, R1-like = V3-like + noise, in seconds: `python -m benchmarks.parents OUT KIND`.

BF16: 8 layers and the MTP layer, 901 tensors, 3.73 GB. FP8: 16 layers, 3,453 tensors, 3.70 GB. Weights are slices of one
pool of normal numbers, so no two tensors are alike, and a tensor of one parent is close to that of the other.
"""

import argparse
import importlib.util
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parent.parent
MAKE = ROOT / "examples" / "full-size" / "make.py"
_POOL = 1 << 25
_SHARDS = 4


def load_make() -> ModuleType:
    """The generator of full-size checkpoints, whose layout this is."""
    spec = importlib.util.spec_from_file_location("full_size", MAKE)
    if spec is None or spec.loader is None:
        raise ImportError(str(MAKE))
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module
    spec.loader.exec_module(module)
    return module


def config_of(full: Mapping[str, Any], kind: str, scale: float) -> dict[str, Any]:
    """config.json of the small ones; bytes grow with the square of `scale`."""
    config = dict(full) | {
        "num_hidden_layers": max(2, round((16 if kind == "fp8" else 8) * scale)),
        "first_k_dense_replace": 1,
        "n_routed_experts": max(8, 8 * round(4 * scale)),
        "hidden_size": 2048,
        "moe_intermediate_size": 1024,
        "intermediate_size": 4096,
        "q_lora_rank": 768,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 8192,
    }
    del config["auto_map"]  # no code of its own: transformers knows the model
    if kind != "fp8":
        del config["quantization_config"]
    return config


def pools(parent: str) -> dict[str, npt.NDArray[Any]]:
    """Numbers of each storage type, for one parent."""
    common = np.random.default_rng(1).standard_normal(_POOL, np.float32)
    own = np.random.default_rng(zlib.crc32(parent.encode())).standard_normal(_POOL, np.float32)
    values = common + np.float32(0.25) * own
    codes = np.clip(values * 100, -448, 448).astype(ml_dtypes.float8_e4m3fn)  # the largest of a block is near 448
    weights = (values * np.float32(0.02)).astype(ml_dtypes.bfloat16)
    scales = np.float32(2e-4) * (1 + np.float32(0.05) * np.tanh(own))
    return {"F8_E4M3": codes, "BF16": weights, "F32": scales}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=["bf16", "fp8"])
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    make = load_make()
    config = config_of(make.CONFIG, given.kind, given.scale)
    layout = list(make.layout(config))
    limit = -(-sum(entry.elements for _, entry in layout) // _SHARDS)
    shards = make.deal(layout, limit, stages=())
    for parent in ("v3", "r1"):
        pool = pools(parent)

        def fill(entry: Any, pool: Mapping[str, npt.NDArray[Any]] = pool) -> Any:
            start = zlib.crc32(entry.name.encode()) % (_POOL - entry.elements)
            return make.Data(0, pool[entry.dtype][start : start + entry.elements].view(np.uint8).data)

        make.write_checkpoint(given.out / parent, config, shards, fill)


if __name__ == "__main__":
    main()
