"""How a matrix is cut into panels."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.dtypes import FP8_BLOCK
from chimerakit.plan.panels import BLOCKED_COLS, FLAT_WEIGHTS, cut

SIDES = st.integers(1, 300) | st.sampled_from([128, 256, 576])


@given(SIDES, SIDES)
def test_blocked_panels_cover_once(rows: int, cols: int) -> None:
    """Panels of blocks cover a matrix once, begin at block bounds, and are some rows of blocks high."""
    seen = np.zeros((rows, cols), int)
    for panel in cut((rows, cols), (FP8_BLOCK,)).panels():
        seen[panel.row : panel.row + panel.rows, panel.col : panel.col + panel.cols] += 1
        assert (panel.row % 128, panel.col % 128) == (0, 0)
        assert panel.rows <= 128 or panel.rows * panel.cols <= 1 << 21
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("shape", "is_blocked", "count", "is_in_order"),
    [
        ((), False, 1, True),
        ((0, 5), False, 0, True),
        ((3, 5, 7), False, 1, True),
        ((FLAT_WEIGHTS,), False, 1, True),
        ((FLAT_WEIGHTS, 2), False, 2, True),
        ((FLAT_WEIGHTS + 1,), False, 2, True),
        ((129280, 7168), False, 884, True),  # DeepSeek's embedding
        ((576, 7168), True, 3, True),
        ((200, BLOCKED_COLS), True, 2, True),
        ((200, BLOCKED_COLS + 1), True, 4, False),
    ],
)
def test_number_of_panels(shape: tuple[int, ...], is_blocked: bool, count: int, is_in_order: bool) -> None:
    """Panels have a bounded size whatever the tensor, come in storage order unless blocks are very wide, and cover all weights."""
    whole = cut(shape, (FP8_BLOCK,) if is_blocked else ())
    panels = list(whole.panels())
    assert len(panels) == count
    assert sum(p.rows * p.cols for p in panels) == int(np.prod(shape))
    assert all(p.rows * p.cols <= max(FLAT_WEIGHTS, 128 * BLOCKED_COLS) for p in panels)
    if is_in_order:
        ends = [(p.row * whole.cols + p.col, p.rows * p.cols) for p in panels]
        assert all(start + size == following for (start, size), (following, _) in itertools.pairwise(ends))


@given(SIDES, SIDES, st.booleans())
def test_the_pieces_of_panels_are_where_their_weights_lie(rows: int, cols: int, is_blocked: bool) -> None:
    """A panel put together of its pieces in storage is the panel cut out of the matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chimerakit.plan.panels.BLOCKED_COLS", 128)  # so that some are narrower than the matrix
        whole = cut((rows, cols), (FP8_BLOCK,) if is_blocked else ())
        stored = np.arange(rows * cols)
        matrix = stored.reshape(whole.rows, whole.cols)
        for panel in whole.panels():
            expected = matrix[panel.row : panel.row + panel.rows, panel.col : panel.col + panel.cols].reshape(-1)
            found = np.full_like(expected, -1)
            for piece in whole.pieces(panel):
                found[piece.within : piece.within + piece.weights] = stored[piece.start : piece.start + piece.weights]
            assert (found == expected).all()


@pytest.mark.parametrize("cols", [1, 32, 127, 129, 7168])
def test_panels_stay_small_when_their_edges_are_filled_up(cols: int) -> None:
    """Kernels fill ragged blocks up to 128 columns, so a narrow matrix has lower panels than its weights would allow."""
    padded = -(-cols // 128) * 128
    assert max(p.rows * padded for p in cut((1 << 22, cols), (FP8_BLOCK,)).panels()) <= 1 << 21
