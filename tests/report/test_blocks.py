"""What sections are made of: scales, marks, bins, texts of cells."""

import base64
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.report.blocks import bins, make_figure, pack_texts
from chimerakit.report.cells import Cell, Mark
from tests.report.results import unpack

MARKS = {Mark.ZERO: "0", Mark.INFINITE: "infinite", Mark.UNDEFINED: "none", Mark.WRONG: "wrong"}


@pytest.mark.parametrize(
    ("numbers", "scale", "ends"),
    [
        ([1.0, 20.0], "linear", (1.0, 20.0)),
        ([1.0, 20.1], "log", (1.0, 20.1)),
        ([0.0, 3.0, math.inf, math.nan], "linear", (3.0, 3.0)),
        ([0.0], "linear", (1.0, 1.0)),
    ],
)
def test_a_scale_spans_its_finite_numbers(numbers: list[float], scale: str, ends: tuple[float, float]) -> None:
    """Logarithmic from twentyfold on; zeros, NaN and infinity have no say in it."""
    cells: dict[tuple[int, int], Cell] = {(0, n): value for n, value in enumerate(numbers)}
    figure = make_figure("it", cells, (1, len(numbers)), MARKS)
    assert (figure.scale, figure.ends) == (scale, ends)


def test_only_marks_that_are_there_are_explained() -> None:
    """A legend without entries for nothing."""
    cells: dict[tuple[int, int], Cell] = {(0, 0): 0.0, (0, 1): math.nan, (1, 1): Mark.WRONG}
    figure = make_figure("it", cells, (2, 2), MARKS)
    assert figure.marks == {1: "0", 3: "none", 5: "wrong"}
    assert unpack(figure.cells) == ["mark 1", "mark 3", None, "mark 5"]


@given(st.lists(st.integers(0, 40), min_size=1))
def test_bins_are_those_of_numpy(numbers: list[int]) -> None:
    """Counted by an independent hand."""
    edges = [0.0, 7.0, 10.0, 20.0, 40.0]
    expected = np.histogram(numbers, edges)[0] / len(numbers)
    found = bins([float(n) for n in numbers], edges, [1.0] * len(numbers), len(numbers))
    assert found == pytest.approx(expected, abs=1e-4)


def test_texts_of_cells_are_kept_once() -> None:
    """And numbered from 1; a cell without one has 0."""
    texts, text_of = pack_texts({(0, 0): "a", (1, 1): "b", (1, 0): "a"}, (2, 2))
    assert texts == ("a", "b")
    assert struct.unpack("<4H", base64.b64decode(text_of)) == (1, 0, 1, 2)


def test_texts_beyond_what_a_page_holds_are_left_out() -> None:
    """The map keeps its colours; a thousand reasons make no page of a MB."""
    texts, text_of = pack_texts({(0, n): str(n) for n in range(1000)}, (1, 1000))
    assert len(texts) == 512
    assert struct.unpack("<1000H", base64.b64decode(text_of))[511:513] == (512, 0)
