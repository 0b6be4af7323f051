"""An inspection as a section, against the bytes and numbers of the checkpoint itself."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from chimerakit.inspect import inspect_checkpoint
from chimerakit.inspect.records import Inspection
from chimerakit.report.blocks import Bars, Chart, Listing, Map, RecipeText, Section, Table
from chimerakit.report.inspected import show_inspection
from tests import synthetic
from tests.merging import MIX, merge
from tests.report.results import unpack

NAN = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, synthetic.Array]:
    found = synthetic.tensors_of(1, "fp8")
    found[NAN][0, 0] = ml_dtypes.float8_e4m3fn(np.nan)
    return found


@pytest.fixture(scope="module")
def inspection(tensors: dict[str, synthetic.Array], tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    root = tmp_path_factory.mktemp("made") / "it"
    return inspect_checkpoint(synthetic.write_checkpoint(root, tensors, synthetic.config_of("fp8")), values=True)


@pytest.fixture(scope="module")
def section(inspection: Inspection) -> Section:
    return show_inspection(inspection, "x.json")


def data_of(section: Section, title: str) -> object:
    return next(block.data for block in section.blocks if isinstance(block, Chart) and block.title == title)


def test_bars_hold_every_byte(section: Section, tensors: dict[str, synthetic.Array]) -> None:
    """Of each layer, by component and by storage; what is in no layer stands first."""
    data = data_of(section, "What each layer holds")
    assert isinstance(data, Bars)
    assert [column.tick for column in data.columns] == ["out", "0", "1", "2", "MTP"]
    expected = [0] * 5
    for name, tensor in tensors.items():
        parts = name.split(".")
        expected[1 + int(parts[2]) if parts[1] == "layers" else 0] += tensor.nbytes
    for view in data.views[:2]:
        assert [sum(s.values[n] for s in view.series) for n in range(5)] == expected
    assert [series.name for series in data.views[1].series] == ["FP8 128×128", "BF16", "F32"]  # noqa: RUF001


def test_the_census_is_drawn_expert_by_expert(section: Section, tensors: dict[str, synthetic.Array]) -> None:
    """The share of saturated codes over an expert's matrices; NaN is marked, and counted."""
    data = data_of(section, "Values: experts")
    assert isinstance(data, Map)
    figures = {figure.name: unpack(figure.cells) for figure in data.figures}
    width = len(data.columns)
    own = [tensors[f"model.layers.2.mlp.experts.3.{p}_proj.weight"] for p in ("gate", "up", "down")]
    saturated = sum(int((np.abs(t.astype(np.float32)) == 448).sum()) for t in own) / sum(t.size for t in own)
    place = 3 * width + [column.tick for column in data.columns].index("2")
    assert figures["saturated codes"][place] == float(f"{saturated:.2e}")
    place = 2 * width + [column.tick for column in data.columns].index("1")
    assert figures["NaN and infinite"][place] == 1.0
    assert figures["largest magnitude"][place] == "mark 5"


def test_what_is_wrong_comes_first(section: Section) -> None:
    """By name."""
    block = section.blocks[0]
    assert isinstance(block, Listing)
    assert block.is_wrong
    assert block.lines[0].startswith(f"{NAN}: 1 NaN and 0 infinite values of ")


def test_parameters_are_told_exactly(section: Section, inspection: Inspection) -> None:
    """And as people say them."""
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert table.rows[0] == ("total", "1.4 M", f"{inspection.parameters.total:,}")


def test_without_values_there_are_no_maps_of_them(tmp_path: Path) -> None:
    """Nor a word."""
    section = show_inspection(inspect_checkpoint(synthetic.make(tmp_path / "it", 1)), "x.json")
    assert not [block.title for block in section.blocks if "Values" in block.title]


def test_a_child_s_manifest_is_told(tmp_path: Path) -> None:
    """Its recipe, and what each component came to."""
    parents = {name: synthetic.make(tmp_path / name, seed, "fp8") for seed, name in enumerate(("v3", "r1"))}
    merge(parents, MIX, tmp_path / "child")
    section = show_inspection(inspect_checkpoint(tmp_path / "child"), "x.json")
    recipe = next(block for block in section.blocks if isinstance(block, RecipeText))
    assert recipe.rules == ("mix: {r1: 0.75}, components: routed_experts",)
    made = next(block for block in section.blocks if isinstance(block, Table) and block.title == "How it was made")
    assert ("routed_experts", "36", "mixed", "0.25 v3, 0.75 r1") in made.rows
