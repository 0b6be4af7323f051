"""Means and their intervals, by the bootstrap over problems (Efron; percentiles of resampled means).

Every figure of a model is a mean over problems, or a ratio of two: so one draw of how often each problem counts serves all
of them, and differences between models are paired by drawing the same problems for both.
"""

from collections.abc import Sequence
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
        rng = np.random.default_rng(self._seed)
        step = max(1, _PIECE // self.count)
        even = np.full(self.count, 1 / self.count)
        parts = [
            rng.multinomial(self.count, even, size=min(step, self._resamples - first)) @ values / self.count
            for first in range(0, self._resamples, step)
        ]
        return np.concatenate(parts)

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
