"""What is known of one unit of a child; found in `look.py`."""

from msgspec import Struct

from chimerakit.numerics.cells import Bound, Interval
from chimerakit.records import Role
from chimerakit.scan import Pair


class Mixture(Struct, frozen=True):
    """Shares that give all of a unit's bytes; or, for another encoder, such as its numbers allow."""

    shares: dict[str, float]
    """The shortest decimals that do; parents with a share of 0 left out."""
    ranges: dict[str, Interval]
    """How far each of them may go, with all numbers that were looked at still given."""
    bounds: tuple[Bound, ...]
    """What the numbers looked at allow besides: shares of all readable parents, in their order."""
    width: float
    """How much room that leaves, in units of a share."""
    encoder: str = ""
    """By whose rounding the shares are only estimated; empty if chimerakit's gives the bytes."""


class Evidence(Struct, frozen=True):
    """What was found out about one unit of the child."""

    unit: str
    role: Role
    nbytes: int
    equal: tuple[str, ...]
    """Parents whose bytes these are."""
    alike: tuple[Pair, ...]
    """Parents that have the same bytes as each other."""
    usable: tuple[str, ...] = ()
    """Parents whose values can be had."""
    is_readable: bool = True
    """Whether the child's can, too."""
    mixture: Mixture | None = None
    """With one parent: its values, stored otherwise."""
    converted: tuple[str, ...] = ()
    """All parents whose values, stored as the child stores them, are these bytes; there may be more than one."""
    others: tuple[Mixture, ...] = ()
    """What other encoders may have done, the tightest first; where chimerakit gives the bytes, too, if that may be chance."""
    is_touched: bool = False
    """Whether so few numbers are otherwise than in the nearest mix that somebody may have changed just these."""
    nonfinite: int = 0
    """NaN and infinite numbers that making the unit again came upon."""
    why: str = ""
    """What is the matter, if nothing gives the unit's bytes."""

    @property
    def readable(self) -> tuple[str, ...]:
        """Parents that the child can be compared with in numbers."""
        return self.usable if self.is_readable else ()
