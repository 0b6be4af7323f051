"""`chimerakit inspect`: exit codes, JSON in a pipe, tables that fit a terminal, nothing that a file could write to it."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chimerakit import inspect_checkpoint
from chimerakit.cli import inspected
from chimerakit.cli.inspected import inspection_view, print_inspection
from chimerakit.inspect.records import Inspection
from tests import synthetic
from tests.cli.test_app import parse, run, run_on_terminal
from tests.merging import merge

RULES = "- {take: r1, components: routed_experts}\n- {mix: {r1: {from: 0.25, to: 0.75}}, components: attention}"


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged child with an unknown tensor, weights of another format, and a tensor of whole numbers."""
    root = tmp_path_factory.mktemp("made")
    parents = {}
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed, "fp8") | {"model.steps": np.arange(3, dtype=np.int64)}
        parents[name] = synthetic.write_checkpoint(root / name, tensors, synthetic.config_of("fp8"))
    merge(parents, RULES, root / "child")
    (root / "child" / "old.bin").write_bytes(b"x")
    return root / "child"


@pytest.fixture(scope="module")
def found(child: Path) -> Inspection:
    return inspect_checkpoint(child, values=True)


def shown(capsys: pytest.CaptureFixture[str], found: Inspection, *, detail: bool = False) -> str:
    """What a terminal shows; runs of spaces are one."""
    print_inspection(found, detail=detail)
    return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


def test_in_a_pipe_it_is_json_and_exit_0(child: Path) -> None:
    """The whole command; without --values nothing is said of values."""
    done = run("inspect", child, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    view = parse(done)
    assert (view["ok"], view["family"], view["values"]) == (True, "deepseek_v3", None)
    assert [c["component"] for c in view["components"]] == list(dict.fromkeys(p["component"] for p in view["parts"]))
    assert view["provenance"]["recipe"]["base"] == "v3"


def test_nan_is_exit_1(tmp_path: Path) -> None:
    """Only --values can find it; on a terminal the tensor is named."""
    tensors = synthetic.tensors_of(1)
    tensors["lm_head.weight"][0, 0] = np.nan
    root = synthetic.write_checkpoint(tmp_path / "it", tensors, synthetic.config_of("bf16"))
    assert run("inspect", root, "-q").returncode == 0
    code, text = run_on_terminal("inspect", root, "--values", "-q")
    assert code == 1
    assert "WRONG  lm_head.weight: 1 NaN and 0 infinite values of 19200" in text


def test_an_unfinished_child_is_exit_2(tmp_path: Path) -> None:
    """One clear error with what to do."""
    (tmp_path / "child" / ".chimerakit").mkdir(parents=True)
    done = run("inspect", tmp_path / "child")
    assert done.returncode == 2
    assert "this child is unfinished" in done.stderr
    assert "run the same merge again to finish it" in done.stderr


def test_json_with_detail_holds_every_unit(found: Inspection) -> None:
    """Without it only the worst of each component."""
    view: Any = inspection_view(found, detail=True)
    assert len(view["values"]["units"]) + len(view["values"]["unread"]) == found.units
    view = inspection_view(found, detail=False)
    assert set(view["values"]) == {"worst", "unread"}
    assert {each.component for each in view["values"]["worst"]} == {p.component for p in found.parts}


def test_one_row_for_each_component(found: Inspection, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers, units, parameters, bytes, storage; then the sum, parameters, files, what is odd."""
    text = shown(capsys, found)
    assert "3 layers and 1 MTP layer; 4 routed experts a layer, 2 a token" in text
    assert "quantisation: fp8, activation_scheme dynamic, fmt e4m3, weight_block_size [128, 128]" in text
    assert "\nrouted_experts 1-2 36 518.4k 172.8k 518.7 kB FP8 128x128\n" in text
    assert "\ndense_mlp 0 3 158.4k 158.5 kB FP8 128x128\n" in text
    assert "\nparameters: 1.4M (927.3k and 434.7k in MTP layers); routed: 345.6k\n" in text
    assert "\nno part of it: old.bin\n" in text
    assert "\nunknown to deepseek_v3: model.steps\n" in text
    assert "\nnot read: model.steps: values stored as I64 can't be " in text


def test_detail_folds_layers_that_are_alike(found: Inspection, capsys: pytest.CaptureFixture[str]) -> None:
    """One row for a run of layers, MTP apart; of their numbers, too."""
    text = shown(capsys, found, detail=True)
    assert "\nrouted_experts 1-2: 2 layers x 4 experts 24 345.6k 345.8 kB FP8 128x128\n" in text
    assert "\n3 MTP: 4 experts 12 172.8k 172.9 kB FP8 128x128\n" in text
    assert "\nembedding outside layers 1 19.2k 38.4 kB BF16\n" in text
    assert "\nrouted_experts 1-2 345.6k " in text
    assert "\nrouted_experts 3 MTP 172.8k " in text


def test_provenance_is_told_in_words(found: Inspection, capsys: pytest.CaptureFixture[str]) -> None:
    """The rules as written, and what each component came to."""
    text = shown(capsys, found)
    assert "v3: 3 weight files" in text
    assert "1. take: r1, components: routed_experts" in text
    assert "routed_experts: 36 units copied: r1" in text
    assert "attention: 28 units mixed: 0.25 to 0.75 v3, 0.25 to 0.75 r1" in text
    assert "largest rounding error of a unit: 2." in text


@pytest.mark.parametrize("detail", [False, True])
def test_tables_fit_80_columns(
    found: Inspection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, detail: bool
) -> None:
    """No row of a table is broken by the terminal, and no component's name within itself."""
    monkeypatch.setattr(inspected, "terminal_width", lambda: 80)
    print_inspection(found, detail=detail)
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith(("routed_experts", "shared_experts", " "))]
    assert max(map(len, rows)) <= 80
    assert all(any(row.startswith(part.component + " ") for row in text.splitlines()) for part in found.parts)


def test_nothing_is_written_to_the_terminal_by_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names with escape codes are shown with the codes in letters, wherever they stand."""
    evil = "model.\x1b[2J\nWRONG"
    tensors = synthetic.tensors_of(1) | {evil: np.full(3, np.nan, ml_dtypes.bfloat16), evil + "x": np.arange(3)}
    config = synthetic.config_of("bf16") | {"quantization_config": {"quant_method": "\x1b[31m", "\x07": "\x1b"}}
    root = synthetic.write_checkpoint(tmp_path / "it", tensors, config)
    (root / "a\x1b[2Jb.bin").write_bytes(b"")
    print_inspection(inspect_checkpoint(root, values=True), detail=True)
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert "unknown to deepseek_v3: model.\\x1b[2J\\nWRONG\n" in text
    assert "quantisation: \\x1b[31m, \\x07 \\x1b\n" in text


def test_long_lists_end_with_how_many_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty unknown tensors are enough for a terminal; the record holds all."""
    tensors = synthetic.tensors_of(1) | {f"model.extra{n}": np.zeros(1, np.float32) for n in range(23)}
    found = inspect_checkpoint(synthetic.write_checkpoint(tmp_path / "it", tensors, synthetic.config_of("bf16")))
    text = shown(capsys, found)
    assert text.count("unknown to deepseek_v3") == 20
    assert "\nand 3 more unknown tensors (--json shows all)" in text
    assert len(found.unknown) == 23
