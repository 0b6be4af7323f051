"""What is said of the routers of two checkpoints, layer by layer: their rows, their biases, the experts they choose."""

import math
from statistics import median

from msgspec import Struct

Figures = tuple[float | None, ...]
"""One for each expert; None where it has no meaning."""


class Choices(Struct, frozen=True, kw_only=True, gc=False):
    """The experts that two routers choose for the same tokens, counted."""

    tokens: int
    top_k: int
    """Experts that each chooses for a token."""
    shared: int
    """Experts that both choose, over all tokens."""
    same: int
    """Tokens for which both choose the same experts."""
    loads_a: tuple[int, ...]
    """How often a chooses each expert."""
    loads_b: tuple[int, ...]

    @property
    def overlap(self) -> float:
        """The share of chosen experts that both choose, on the mean over tokens."""
        return self.shared / (self.tokens * self.top_k)

    @property
    def same_tokens(self) -> float:
        """The share of tokens for which both choose the same experts."""
        return self.same / self.tokens

    @property
    def most_shifted(self) -> int:
        """The expert whose load differs most."""
        shifts = [abs(b - a) for a, b in zip(self.loads_a, self.loads_b, strict=True)]
        return shifts.index(max(shifts))


class RouterDifference(Struct, frozen=True, kw_only=True, gc=False):
    """The router of one layer in two checkpoints; expert by expert where not said otherwise."""

    layer: int
    gate: str
    """The gate's name."""
    cosines: Figures
    """Of the angle between the rows of the gates; None for rows of zeros, or with NaN or infinity."""
    norm_changes: Figures
    """(|b| - |a|) / |a| of these rows; None likewise."""
    bias_changes: Figures | None = None
    """b - a of the correction biases; None if there is none that can be compared."""
    choices: Choices | None = None
    objection: str = ""
    """Why there are no choices, though there are states."""

    @property
    def least_cosine(self) -> float | None:
        """The smallest cosine of a row."""
        return min(_known(self.cosines), default=None)

    @property
    def median_cosine(self) -> float | None:
        """The median of the rows' cosines."""
        known = _known(self.cosines)
        return median(known) if known else None

    @property
    def largest_norm_change(self) -> float | None:
        """The largest |relative change| of a row's norm."""
        return max(map(abs, _known(self.norm_changes)), default=None)

    @property
    def largest_bias_change(self) -> float | None:
        """The largest |change| of the bias."""
        return max(map(abs, _known(self.bias_changes or ())), default=None)

    @property
    def bias_rms(self) -> float | None:
        """The RMS of the change of the bias."""
        known = _known(self.bias_changes or ())
        return math.sqrt(math.fsum(change * change for change in known) / len(known)) if known else None


def _known(figures: Figures) -> list[float]:
    return [figure for figure in figures if figure is not None]
