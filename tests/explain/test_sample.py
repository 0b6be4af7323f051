"""A sample of a child: drawn by seed, of every component and layer, in whole rows of blocks; what it says, and what not."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chimerakit.anatomy import Anatomy
from chimerakit.dtypes import FP8_BLOCK
from chimerakit.events import Event, Started
from chimerakit.explain import Explanation, explain_child
from chimerakit.explain.sample import Span, cut_unit, draw, nbytes_on
from chimerakit.formats import open_checkpoint
from chimerakit.records import Input, Role, Tensor
from chimerakit.scan import ScanUnit, scan_units
from tests import synthetic
from tests.merging import MIX, R1T, merge

SIDES = ("child", "v3")
CONFIG = synthetic.CONFIG | {"moe_intermediate_size": 520}
"""Experts of five rows of blocks."""


@pytest.fixture(scope="module", params=["fp8", "bf16"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp(request.param)
    config = synthetic.config_of(request.param, CONFIG)
    return {
        name: synthetic.write_checkpoint(root / name, synthetic.tensors_of(seed, request.param, config=CONFIG), config)
        for seed, name in enumerate(("v3", "r1"), 1)
    }


def units_of(root: Path) -> list[ScanUnit]:
    """A checkpoint's units, on both sides."""
    units = Anatomy(open_checkpoint(root)).units()
    return scan_units(dict.fromkeys(SIDES, units))


def explain(child: Path, family: Mapping[str, Path], share: float, seed: int = 0, **options: object) -> Explanation:
    parents = {name: open_checkpoint(path) for name, path in family.items()}
    return explain_child(child, parents, sample=share, seed=seed, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ drawn


def test_every_component_of_every_layer_is_drawn(family: Mapping[str, Path]) -> None:
    """However small the share is."""
    units = units_of(family["v3"])
    groups = {(unit.role.component, unit.role.layer) for unit in units}
    drawn = draw(units, "child", 1e-9, 0)
    assert {(unit.role.component, unit.role.layer) for unit in units if unit.name in drawn} == groups
    assert len(drawn) == len(groups)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
def test_about_as_many_bytes_are_drawn_as_asked_for(family: Mapping[str, Path], share: float) -> None:
    """At least so many if every unit can be had in whole rows of blocks, and not many more."""
    units = units_of(family["v3"])
    drawn = draw(units, "child", share, 1)
    nbytes = nbytes_on("child", [cut_unit(unit, drawn[unit.name]) for unit in units if unit.name in drawn])
    assert nbytes / nbytes_on("child", units) == pytest.approx(share, abs=0.08)


def test_the_sample_depends_on_the_seed_alone(family: Mapping[str, Path]) -> None:
    """The order in which units lie makes no difference; another seed draws others."""
    units = units_of(family["v3"])
    assert draw(units, "child", 0.2, 3) == draw(units[::-1], "child", 0.2, 3)
    assert draw(units, "child", 0.2, 3) != draw(units, "child", 0.2, 4)


@given(rows=st.integers(1, 700), cols=st.integers(1, 300), share=st.floats(0.001, 1), seed=st.integers(0, 9))
def test_rows_of_blocks_are_whole(rows: int, cols: int, share: float, seed: int) -> None:
    """A span begins with a block and ends with one, or with the matrix; scales are cut to the same blocks."""
    high, wide = -(-rows // 128), -(-cols // 128)
    weight = Tensor("w", "F8_E4M3", (rows, cols), "file", 1000, rows * cols)
    scale = Tensor("s", "F32", (high, wide), "file", 9_000_000, high * wide * 4)
    side = Input("child", 1.0, FP8_BLOCK, (weight, scale))
    unit = ScanUnit("w", Role("attention", layer=0), {"child": side})
    span = draw([unit], "child", share, seed)["w"]
    assert span is not None
    first, last = span.first, span.first + span.count
    assert 0 <= first < last <= rows
    assert first % 128 == 0
    assert last % 128 == 0 or last == rows
    cut_weight, cut_scale = cut_unit(unit, span).sides["child"].tensors
    assert (cut_weight.start, cut_weight.nbytes) == (1000 + first * cols, span.count * cols)
    assert cut_scale.shape == (-(-span.count // 128), wide)
    assert (cut_scale.start, cut_scale.nbytes) == (9_000_000 + first // 128 * wide * 4, cut_scale.shape[0] * wide * 4)


def test_what_is_no_matrix_on_all_sides_is_looked_at_whole() -> None:
    """Norms, and what has another shape in a parent; of stacked experts whole experts are drawn."""

    def unit(*shapes: tuple[int, ...]) -> ScanUnit:
        sides = {}
        for name, shape in zip(SIDES, shapes, strict=True):
            tensor = Tensor("w", "BF16", shape, "file", 0, 2 * torch.Size(shape).numel())
            sides[name] = Input(name, 1.0, "BF16", (tensor,))
        return ScanUnit("w", Role("attention", layer=0), sides)

    assert draw([unit((500,), (500,))], "child", 0.1, 0) == {"w": None}
    assert draw([unit((500, 8), (400, 8))], "child", 0.1, 0) == {"w": None}
    span = draw([unit((50, 8, 8), (50, 8, 8))], "child", 0.1, 0)["w"]
    assert isinstance(span, Span)
    assert span.count == 5


# ---------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("rules", [R1T, MIX])
def test_a_sample_gives_the_recipe(family: Mapping[str, Path], rules: str, tmp_path: Path) -> None:
    """The rules are those of the whole child; only units of the sample are spoken of, and no more is read."""
    merge(family, rules, tmp_path / "child")
    totals: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, Started):
            totals.append(event.total)

    found = explain(tmp_path / "child", family, 0.3, listener=listen)
    whole = explain_child(tmp_path / "child", {n: open_checkpoint(path) for n, path in family.items()})
    assert found.is_explained
    assert found.recipe is not None
    assert whole.recipe is not None
    assert found.recipe.rules == whole.recipe.rules
    assert found.sample is not None
    assert (len(found.units), len(whole.units)) == (found.sample.units, found.sample.all_units)
    assert {u.unit: (u.verdict, u.nbytes) for u in found.units}.items() <= {
        u.unit: (u.verdict, u.nbytes) for u in whole.units
    }.items()
    assert found.sample.nbytes < 0.4 * found.sample.all_nbytes
    assert totals[0] == 3 * found.sample.nbytes
    assert whole.sample is None


def test_a_replaced_unit_in_the_sample_is_named(family: Mapping[str, Path], tmp_path: Path) -> None:
    """As its rows are noise; one that is not in the sample is not seen."""
    merge(family, R1T, tmp_path / "child")
    drawn = {unit.unit for unit in explain(tmp_path / "child", family, 0.3).units}
    file = next(
        file
        for file in sorted((tmp_path / "child").glob("*.safetensors"))
        if any(e in load_file(file) for e in experts(drawn))
    )
    tensors = load_file(file)
    seen = next(name for name in experts(drawn) if name in tensors)
    unseen = next(name for name in tensors if ".experts." in name and name.endswith("weight") and name not in drawn)
    for name in (seen, unseen):
        tensors[name] = torch.randn(tensors[name].shape).mul(100).to(tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    found = explain(tmp_path / "child", family, 0.3)
    assert {unit.unit for unit in found.units if unit.verdict == "unexplained"} == {seen}
    assert not found.is_explained


def experts(names: set[str]) -> list[str]:
    return sorted(name for name in names if ".experts." in name)


def test_confidence_grows_with_the_sample(family: Mapping[str, Path], tmp_path: Path) -> None:
    """It is the share of odd units of which none would be drawn once in twenty times."""
    merge(family, R1T, tmp_path / "child")
    for share in (0.1, 0.5):
        sample = explain(tmp_path / "child", family, share).sample
        assert sample is not None
        assert (1 - sample.at_most) ** sample.units == pytest.approx(0.05)
