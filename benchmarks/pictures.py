"""The pictures in docs/pictures: `make pictures`, or `python -m benchmarks.pictures [--keep FOLDER]`.

Two parents with DeepSeek-V3's names and counts (61 layers and the MTP layer, 256 experts, FP8) but tiny matrices, of random
numbers that are made to have something to show; a child by `chimerakit merge`, two of whose units are then spoilt; explain,
compare, inspect and report as anybody runs them; a sweep of the tiny trained family; and screenshots of the pages.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.browser import Browser, find_chromium
from benchmarks.counts import make_parents
from benchmarks.parents import ROOT

PICTURES = ROOT / "docs" / "pictures"
FAMILY = ROOT / "examples" / "tiny-family"
RECIPE = """\
# synthetic
parents: {v3: , r1: }
base: v3
rules:
  - {take: r1, components: [attention, routed_experts, shared_experts], layers: 40-60}
  - {mix: {r1: 0.6}, components: routed_experts, experts: 64-191}
"""
SPOILT = ("model.layers.23.mlp.experts.100.up_proj.weight", "model.layers.52.mlp.experts.200.down_proj.weight")


# --------------------------------------------------------------------------------------------- results


def spoil(child: Path, names: Sequence[str]) -> None:
    """Put noise into some weights of a child."""
    files = json.loads((child / "model.safetensors.index.json").read_text())["weight_map"]
    for name in names:
        with (child / files[name]).open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            start, end = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + start)
            file.write(np.random.default_rng(4).integers(0, 120, end - start, np.uint8).tobytes())


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
    make_sweep(root)


def make_sweep(root: Path) -> None:
    """The tiny family's sweep on 200 problems."""
    asked = ("--task", FAMILY / "task.yaml", "--count", 200, "--max-tokens", 160, "--against", "r1", "--keep", "none")
    chimerakit("sweep", FAMILY / "sweep.yaml", *asked, "-o", root / "sweep", "-q")


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
    Shot("sweep", "sweep/sweep.json", 1280, 1370, at=(0, 0.55, 0.3)),
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
