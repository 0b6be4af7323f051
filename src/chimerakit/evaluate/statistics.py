"""Means and their intervals, by the bootstrap over problems (Efron; percentiles of resampled means).

Every figure of a model is a mean over problems, or a ratio of two: so one draw of how often each problem counts serves all
of them, and differences between models are paired by drawing the same problems for both.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from chimerakit.evaluate.records import Estimate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F64 = npt.NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
_PIECE = 1 << 22
"""Numbers that are drawn at a time."""
_KEPT = 1 << 26
"""Numbers that are kept for the next figure."""


class Bootstrap:
    """Draws of some problems with replacement; the same for every figure."""

    def __init__(self, count: int, *, seed: int = 0, resamples: int = RESAMPLES):
        if count < 1:
            raise ValueError("no problems")
        self.count = count
        self._seed = seed
        self._resamples = resamples

    def means(self, columns: Sequence[Sequence[float]]) -> "F64":
        """(resamples, columns): the mean of each column in each draw."""
        import numpy as np

        values = np.asarray(columns, np.float64).T
        pieces = _drawn(self.count, self._seed, self._resamples)
        return np.concatenate([piece @ values / self.count for piece in pieces])

    def mean(self, values: Sequence[float]) -> Estimate:
        """The mean of one number for each problem."""
        return _estimate(fmean(values), self.means([values])[:, 0])

    def ratio(self, above: Sequence[float], below: Sequence[float]) -> Estimate | None:
        """The ratio of two means; None if the lower one is 0. Draws where it is 0 are left out of the interval."""
        if not any(below):
            return None
        found = self.means([above, below])
        found = found[found[:, 1] > 0]
        return _estimate(sum(above) / sum(below), found[:, 0] / found[:, 1])


def _estimate(value: float, drawn: "npt.NDArray[Any]") -> Estimate:
    import numpy as np

    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _drawn(count: int, seed: int, resamples: int) -> "Iterable[npt.NDArray[np.int16]]":
    """How often each problem counts in each draw: (draws, problems), some draws at a time."""
    is_small = count * resamples <= _KEPT and count < 1 << 15
    return _draw_all(count, seed, resamples) if is_small else _draw(count, seed, resamples)


@lru_cache(maxsize=1)
def _draw_all(count: int, seed: int, resamples: int) -> "tuple[npt.NDArray[np.int16], ...]":
    """All of them, kept for the figures of all models."""
    import numpy as np

    return tuple(piece.astype(np.int16) for piece in _draw(count, seed, resamples))


def _draw(count: int, seed: int, resamples: int) -> "Iterator[npt.NDArray[Any]]":
    import numpy as np

    rng = np.random.default_rng(seed)
    step = max(1, _PIECE // count)
    for first in range(0, resamples, step):
        yield rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - first))
