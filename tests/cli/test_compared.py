"""`chimerakit compare`: exit codes, JSON when piped, tables on a terminal, going on after Ctrl-C."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from chimerakit.cli.app import app
from chimerakit.cli.compared import print_map
from chimerakit.compare import DrawnStates, compare_checkpoints, load_map, open_states, summarize_map, thresholds
from chimerakit.errors import ChimerakitError
from chimerakit.formats import open_checkpoint
from tests import synthetic
from tests.cli.test_app import parse, run, run_on_terminal, run_until
from tests.compare import models

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


def test_what_routers_choose_is_shown_with_the_states_it_is_on(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal in a few lines, with --detail a row for each layer; in JSON all of it; saved, and shown again."""
    path = tmp_path / "map.npz"
    code, shown = run_on_terminal("compare", *sides, "--synthetic-states", 50, "-o", path, "-q")
    found = load_map(path)
    assert found == compare_checkpoints(*map(open_checkpoint, sides), states=DrawnStates(50))
    least = min(cosine for router in found.routers for cosine in router.cosines if cosine is not None)
    asked = [router.choices for router in found.routers if router.choices is not None]
    share = sum(choices.shared for choices in asked) / sum(choices.tokens * choices.top_k for choices in asked)
    assert code == 0
    assert f"gates of 3 layers: cosines of their rows are {least:.4f} or more" in shown
    assert f"both choose {share:.2%}, on synthetic isotropic states (50 tokens, seed 0)" in shown
    assert "largest shift of load" not in shown
    print_map(load_map(path), (), detail=True)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("2 ")]
    expert = asked[1].most_shifted
    assert row.split()[6:8] == [f"{asked[1].overlap:.2%}", f"{asked[1].same_tokens:.2%}"]
    assert f"expert {expert}: {asked[1].loads_a[expert] / 50:.2%} to {asked[1].loads_b[expert] / 50:.2%}" in row
    view = parse(run("compare", "--map", path))
    assert view["states"] == {"source": "synthetic isotropic states (50 tokens, seed 0)", "is_synthetic": True}
    assert [router["choices"]["overlap"] for router in view["routers"]] == [choices.overlap for choices in asked]
    assert view["routers"][0]["cosines"] == list(found.routers[0].cosines)


def test_the_layers_in_which_routers_agree_least_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The least first, so that nobody has to look for them."""
    sides = [models.write(tmp_path / side, models.tensors_of(seed)) for seed, side in enumerate("ab")]
    states = open_states(models.write_states(tmp_path / "states.safetensors"))
    found = compare_checkpoints(*map(open_checkpoint, sides), states=states)
    print_map(found, (), detail=False)
    overlaps = {router.layer: router.choices.overlap for router in found.routers if router.choices is not None}
    order = sorted(overlaps, key=lambda layer: overlaps[layer])
    assert len(set(overlaps.values())) == 3
    said = ", ".join(f"layer {layer} ({overlaps[layer]:.2%})" for layer in order)
    shown = capsys.readouterr().out
    assert f"they agree least in {said}\n" in shown
    assert f"on {models.SOURCE}\n" in shown


def test_routers_that_can_not_be_asked_are_named_and_exit_with_1(tmp_path: Path) -> None:
    """Once for all layers with the same reason."""
    sides = [models.write(tmp_path / "a", models.tensors_of(1))]
    sides.append(models.write(tmp_path / "b", models.tensors_of(2), topk_method="greedy"))
    path = models.write_states(tmp_path / "states.safetensors")
    code, shown = run_on_terminal("compare", *sides, "--states", path, "-q")
    assert code == 1
    assert "not compared: choices of routers, layers 1, 2, 3: b: config.json says scoring_func 'sigmoid'" in shown
    assert "both choose" not in shown


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
        (("{a}", "{b}", "-o", "{a}/no/map.npz"), "no/map.npz: its folder is not there"),
        (("--map", "{a}/config.json"), "this is no difference map"),
        (("--map", "{map}", "--deltas", "0.1,x"), "expected: shares from 0 to 1, as 0.1,0.5"),
        (("--map", "{map}", "--deltas", "10"), "expected: shares from 0 to 1, as 0.1,0.5"),
        (("{a}", "{a}/nothing"), "nothing"),
        (("--map", "{map}", "--synthetic-states", "5"), "they can't be asked again without weights"),
        (("{a}", "{b}", "--states", "{map}", "--synthetic-states", "5"), "are two kinds of states: give one"),
        (("{a}", "{b}", "--states", "{map}"), "is no weight file that can be read"),
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
    command = ["compare", tmp_path / "a", tmp_path / "b", "-o", path, "--threads=1"]
    stopped = run_until(lambda: partial.exists() and partial.stat().st_size > 0, *command)
    assert stopped == (130, "stopped; run the same command again to go on\n")
    assert json.loads(partial.read_text().split("\n")[1])["job"] == 0
    assert not path.exists()
    done = run(*command)
    assert done.returncode == 0
    assert "jobs were done before" in done.stderr
    assert [unit["weights"] for unit in parse(done)["units"]] == [1 << 25] * 6
    assert (path.exists(), partial.exists()) == (True, False)
