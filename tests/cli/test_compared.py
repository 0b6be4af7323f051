"""`chimerakit compare`: exit codes, JSON when piped, tables on a terminal, going on after Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from chimerakit.cli.app import app
from chimerakit.compare import compare_checkpoints, load_map, summarize_map, thresholds
from chimerakit.errors import ChimerakitError
from chimerakit.formats import open_checkpoint
from tests import synthetic
from tests.cli.test_app import parse, run, run_on_terminal

NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sides")
    return synthetic.make(root / "a", 1, "fp8"), synthetic.make(root / "b", 2, "fp8", shards=2, shuffle=3)


@pytest.fixture(scope="module")
def saved(sides: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map that the command made."""
    path = tmp_path_factory.mktemp("maps") / "map.npz"
    assert run("compare", *sides, "-o", path, "-q").returncode == 0
    return path


def test_a_map_is_saved_and_nothing_else(sides: tuple[Path, Path], saved: Path) -> None:
    """It is the library's, and what was kept to go on with is gone."""
    assert load_map(saved) == compare_checkpoints(*map(open_checkpoint, sides))
    assert list(saved.parent.iterdir()) == [saved]


def test_json_holds_everything(saved: Path) -> None:
    """Units with sums and figures, all roll-ups, deltas; from a saved map as from two checkpoints."""
    done = run("compare", "--map", saved, "--deltas", "0.1,0.5")
    assert (done.returncode, done.stderr) == (0, "")
    view, found = parse(done), load_map(saved)
    assert [unit["rms"] for unit in view["units"]] == [unit.rms for unit in found.units]
    assert {unit["unit"]: unit["squared_difference"] for unit in view["units"]} == {
        unit.unit: unit.squared_difference for unit in found.units
    }
    assert [c["cosine"] for c in view["components"]] == [s.cosine for s in summarize_map(found)]
    assert len(view["layers"]) == len(summarize_map(found, by="layer"))
    assert {(e["layer"], e["expert"]) for e in view["experts"]} == {(i, e) for i in (1, 2, 3) for e in range(4)}
    assert [t["delta"] for t in view["deltas"]] == [t.delta for t in thresholds(found, [0.1, 0.5])]
    assert view["is_complete"]


def test_a_terminal_shows_a_row_for_each_component(saved: Path) -> None:
    """With figures as people read them; `--detail` adds the layers, `--deltas` the deltas."""
    code, shown = run_on_terminal("compare", "--map", saved)
    router = next(s for s in summarize_map(load_map(saved)) if s.component == "router")
    (row,) = [line for line in shown.splitlines() if line.startswith("router")]
    assert (code, row.split()[1]) == (0, str(router.units))
    assert f"{router.rms:.2g}" in row
    assert f"{router.relative_rms:.2%}" in row
    assert "mixed at most" not in shown
    _, more = run_on_terminal("compare", "--map", saved, "--detail", "--deltas", "0.5")
    assert len([line for line in more.splitlines() if line.startswith("router")]) == 1 + 3 + 2
    assert "50 % of units" in more


def test_what_could_not_be_compared_is_named_and_exits_with_1(tmp_path: Path) -> None:
    """Missing units, other shapes and NaN, on a terminal and in JSON."""
    first, second = synthetic.tensors_of(1), synthetic.tensors_of(2)
    del second["lm_head.weight"]
    second[NORM] = second[NORM][:100].copy()
    second["model.norm.weight"][7] = np.nan
    config = synthetic.config_of("bf16")
    roots = [synthetic.write_checkpoint(tmp_path / n, t, config) for n, t in (("a", first), ("b", second))]
    code, shown = run_on_terminal("compare", *roots, "-q")
    assert code == 1
    assert "not compared: lm_head.weight: only in a" in shown
    assert f"not compared: {NORM}: the shapes differ: [200] in a, [100] in b" in shown
    assert "not compared: model.norm.weight: NaN or infinity in 1 of 200 pairs" in shown
    done = run("compare", *roots, "-q")
    assert done.returncode == 1
    assert parse(done)["only_in"] == {"a": ["lm_head.weight"], "b": []}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "takes two checkpoints, or --map"),
        (("{a}",), "takes two checkpoints, or --map"),
        (("{a}", "{b}", "--map", "{map}"), "--map takes the place of checkpoints"),
        (("--map", "{map}", "-o", "{map}"), "--map takes the place of checkpoints"),
        (("{a}", "{b}", "-o", "{map}"), "is there already"),
        (("{a}", "{b}", "-o", "{a}/no/map.npz"), "can't be opened: No such file or directory"),
        (("--map", "{a}/config.json"), "this is no difference map"),
        (("--map", "{map}", "--deltas", "0.1,x"), "expected: shares from 0 to 1, as 0.1,0.5"),
        (("--map", "{map}", "--deltas", "10"), "expected: shares from 0 to 1, as 0.1,0.5"),
        (("{a}", "{a}/nothing"), "nothing"),
    ],
)
def test_wrong_requests_are_one_clear_error(
    sides: tuple[Path, Path], saved: Path, arguments: tuple[str, ...], says: str
) -> None:
    """Before any weight is read."""
    with pytest.raises(ChimerakitError, match=re.escape(says)):
        app(["compare", *(text.format(a=sides[0], b=sides[1], map=saved) for text in arguments)], standalone_mode=False)


def test_a_wrong_request_exits_with_2(sides: tuple[Path, Path]) -> None:
    """And says nothing on standard output."""
    done = run("compare", sides[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: compare: takes two checkpoints, or --map\n"


def write_sparse(root: Path, units: int) -> None:
    """A checkpoint of units of 64 MiB, none of which takes any space."""
    nbytes = 64 << 20
    header = {
        f"w{n}": {"dtype": "BF16", "shape": [nbytes // 2], "data_offsets": [n * nbytes, (n + 1) * nbytes]}
        for n in range(units)
    }
    text = json.dumps(header).encode()
    root.mkdir()
    with (root / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + units * nbytes)


def test_ctrl_c_leaves_what_is_done_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Exit 130 with how to go on; the second call makes the map, and leaves nothing else."""
    for side in "ab":
        write_sparse(tmp_path / side, units=6)
    path = tmp_path / "map.npz"
    partial = tmp_path / "map.npz.partial"
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(path), "--threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "chimerakit", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and (not partial.exists() or partial.stat().st_size == 0):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("this machine was done before the signal came")
    assert (process.returncode, said) == (130, "stopped; run the same command again to go on\n")
    assert json.loads(partial.read_text().split("\n")[1])["job"] == 0
    assert not path.exists()
    done = run(*command)
    assert done.returncode == 0
    assert "jobs were done before" in done.stderr
    assert [unit["weights"] for unit in parse(done)["units"]] == [1 << 25] * 6
    assert (path.exists(), partial.exists()) == (True, False)
