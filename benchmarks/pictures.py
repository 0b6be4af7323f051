"""The pictures in docs/pictures: `make pictures`, or `python -m benchmarks.pictures [--keep FOLDER]`.

Two parents with DeepSeek-V3's names and counts (61 layers and the MTP layer, 256 experts, FP8) but tiny matrices, of random
numbers that are made to have something to show; a child by `chimerakit merge`, two of whose units are then spoilt; explain,
compare, inspect and report as anybody runs them; and screenshots of the pages.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
from benchmarks.browser import Browser, find_chromium
from benchmarks.parents import ROOT, load_make

PICTURES = ROOT / "docs" / "pictures"
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
RECIPE = """\
# synthetic
parents: {v3: , r1: }
base: v3
rules:
  - {take: r1, components: [attention, routed_experts, shared_experts], layers: 40-60}
  - {mix: {r1: 0.6}, components: routed_experts, experts: 64-191}
"""
TEMPLATES = {"v3": "{{ messages }}", "r1": "{{ messages }}<think>\n"}
SPOILT = ("model.layers.23.mlp.experts.100.up_proj.weight", "model.layers.52.mlp.experts.200.down_proj.weight")
_POOL = 1 << 22


# --------------------------------------------------------------------------------------------- parents


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
        self._scales: dict[str, npt.NDArray[np.float32]] = {}

    def of(self, entry: Any) -> npt.NDArray[Any]:
        """One tensor as it is stored; scales after the weight that they are of."""
        if entry.name in self._scales:
            return self._scales.pop(entry.name)
        start = zlib.crc32(entry.name.encode()) % (_POOL - entry.elements)
        here = slice(start, start + entry.elements)
        values = self._common[here] * np.float32(0.02)
        if not self._is_base:
            values = values + np.float32(0.02 * self._distance(entry.name)) * self._own[here]
        if entry.dtype == "F8_E4M3":
            scale = np.abs(values).max() / np.float32(448)
            self._scales[entry.name + "_scale_inv"] = np.array([scale], np.float32)
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


def make_parents(root: Path) -> dict[str, Path]:
    """Two checkpoints of a few tens of MB each."""
    make = load_make()
    config = dict(make.CONFIG) | TINY
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


def spoil(child: Path, names: Sequence[str]) -> None:
    """Put noise into some weights of a child."""
    files = json.loads((child / "model.safetensors.index.json").read_text())["weight_map"]
    for name in names:
        with (child / files[name]).open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            start, end = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + start)
            file.write(np.random.default_rng(4).integers(0, 120, end - start, np.uint8).tobytes())


# --------------------------------------------------------------------------------------------- results


def chimerakit(*arguments: object, output: Path | None = None) -> None:
    """The command; a finding (exit 1) is a result, too."""
    command = [sys.executable, "-m", "chimerakit", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    if output is not None:
        output.write_bytes(done.stdout)


def make_results(root: Path) -> None:
    """Everything that the pages show, in files of the folder."""
    parents = make_parents(root)
    flags = [f"--parent={name}={path}" for name, path in parents.items()]
    (root / "recipe.yaml").write_text(RECIPE)
    child = root / "synthetic-r1t"
    chimerakit("compare", *parents.values(), "--synthetic-states", 1024, "-o", root / "synthetic-v3-r1.npz", "-q")
    chimerakit("merge", root / "recipe.yaml", *flags, "-o", child, "-q")
    chimerakit("inspect", child, "--values", "--detail", "--json", "-q", output=root / "inspection.json")
    spoil(child, SPOILT)
    chimerakit("explain", child, *flags, "--detail", "--json", "-q", output=root / "explanation.json")


# ------------------------------------------------------------------------------------------- pictures


class Shot(NamedTuple):
    """One picture of one page."""

    name: str
    result: str
    width: int
    height: int | None = None
    """None for the whole page."""
    dark: bool = False
    at: tuple[int, float, float] | None = None
    """A chart that is pointed at, and where, in shares of its width and height."""


SHOTS = (
    Shot("explain", "explanation.json", 1280, at=(1, 0.442, 0.3667)),
    Shot("compare", "synthetic-v3-r1.npz", 1280, 2990, at=(4, 0.48, 0.3)),
    Shot("inspect-dark", "inspection.json", 1280, dark=True),
    Shot("phone", "synthetic-v3-r1.npz", 390, 2100),
)
POINT = """(() => {
  const box = document.querySelectorAll(".plot svg")[%d].getBoundingClientRect();
  const at = {clientX: box.left + %f * box.width, clientY: box.top + %f * box.height};
  document.querySelectorAll(".plot")[%d].dispatchEvent(new PointerEvent("pointermove", at));
})()"""


def take_pictures(root: Path, pictures: Path) -> None:
    """A page for each result, and its pictures."""
    pictures.mkdir(exist_ok=True)
    with Browser() as browser:
        for shot in SHOTS:
            page = (root / shot.result).with_suffix(".html")
            if not page.exists():
                chimerakit("report", root / shot.result, "-o", page)
            browser.open(page, width=shot.width, dark=shot.dark)
            if shot.at is not None:
                chart, x, y = shot.at
                browser.ask(POINT % (chart, x, y, chart))
            (pictures / f"{shot.name}.png").write_bytes(browser.screenshot(height=shot.height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave checkpoints, results and pages there")
    given = parser.parse_args()
    find_chromium()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        make_results(root)
        take_pictures(root, PICTURES)
    for shot in SHOTS:
        print(f"{PICTURES / shot.name}.png")


if __name__ == "__main__":
    main()
