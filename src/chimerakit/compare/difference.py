"""The records of a difference map, and what follows from them by arithmetic: figures, roll-ups, deltas.

Kept are sums, of which every figure of a unit, and of any group of units, is exact.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeVar

from msgspec import Struct

from chimerakit.compare.routers import RouterDifference
from chimerakit.compare.states import States
from chimerakit.records import COMPONENTS, Component, ParentRecord, Role


class Sums(Struct, frozen=True, kw_only=True):
    """What is added up over pairs of values: of the base, a, and of the other, b. Values are code x scale in float32.

    Pairs in which a value is NaN or infinite are counted, and left out of everything else.
    """

    weights: int
    """Pairs."""
    nonfinite: int
    """Pairs in which a value is NaN or infinite."""
    unlike_values: int
    """Pairs of unlike numbers; zeros of either sign are alike."""
    squared_difference: float
    """The sum of (a - b)^2."""
    inner_product: float
    """The sum of a * b."""
    squared_norm_a: float
    """The sum of a^2."""
    squared_norm_b: float
    """The sum of b^2."""
    largest: float
    """The largest |a - b|."""
    nbytes_a: int
    """Bytes as a stores it, scales included."""
    nbytes_b: int
    """The same of b."""
    alike_bytes: int
    """Those bytes where both store with the same dtypes, else 0."""
    unlike_bytes: int
    """Of these, bytes that differ."""

    @property
    def rms(self) -> float:
        """The root of the mean (a - b)^2: the normalised Frobenius distance ||A - B|| / sqrt(numel) of arXiv 2506.14794.

        NaN where no pair is finite.
        """
        pairs = self.weights - self.nonfinite
        return math.sqrt(self.squared_difference / pairs) if pairs else self._of_nothing

    @property
    def relative_rms(self) -> float:
        """The same, relative to a's RMS; infinite where a is all zeros and b is not."""
        if self.weights == self.nonfinite or self.squared_difference == 0:
            return self.rms
        return math.sqrt(self.squared_difference / self.squared_norm_a) if self.squared_norm_a else math.inf

    @property
    def cosine(self) -> float:
        """Of the angle between a and b; NaN where one of them is all zeros."""
        norms = math.sqrt(self.squared_norm_a) * math.sqrt(self.squared_norm_b)
        return max(-1.0, min(1.0, self.inner_product / norms)) if norms else math.nan

    @property
    def changed_values(self) -> float:
        """The share of unlike numbers."""
        pairs = self.weights - self.nonfinite
        return self.unlike_values / pairs if pairs else self._of_nothing

    @property
    def changed_bytes(self) -> float:
        """The share of stored bytes that differ; NaN where nothing is stored alike."""
        return self.unlike_bytes / self.alike_bytes if self.alike_bytes else math.nan

    @property
    def _of_nothing(self) -> float:
        return math.nan if self.weights else 0.0


FIGURES = ("rms", "relative_rms", "cosine", "largest", "changed_bytes", "changed_values", "nonfinite")
"""What is said of sums, in the order of tables."""


class UnitDifference(Sums, frozen=True, kw_only=True, gc=False):
    """One unit that both have with the same shape."""

    unit: str
    role: Role
    storages: tuple[str, str]
    """How a and b store it."""

    @property
    def distance(self) -> float:
        """What a delta is held against: the RMS; infinite if there is NaN or infinity, so that no delta hides it."""
        return math.inf if self.nonfinite else self.rms


class Identity(Struct, frozen=True):
    """A checkpoint, by its headers and some of its weights; two of one family may have the same headers."""

    record: ParentRecord
    fingerprint: dict[str, str]
    """xxh3-128 of the first bytes of two units of each component in each layer."""


class DifferenceMap(Struct, frozen=True):
    """How far two checkpoints lie apart, unit by unit."""

    a: Identity
    """The base."""
    b: Identity
    units: tuple[UnitDifference, ...]
    """In the order of the base's files."""
    only_in: dict[Literal["a", "b"], tuple[str, ...]]
    """Units that the other side lacks."""
    problems: dict[str, str]
    """Units that both have and that can't be compared, and why."""
    routers: tuple[RouterDifference, ...] = ()
    """By layer."""
    states: States | None = None
    """On which the routers were asked what they choose; None if they were not."""

    @property
    def is_complete(self) -> bool:
        """Whether every value of either side was compared, and every router asked where there are states."""
        return not (
            self.problems
            or any(self.only_in.values())
            or any(unit.nonfinite for unit in self.units)
            or any(router.objection for router in self.routers)
        )


class DifferenceSummary(Sums, frozen=True, kw_only=True):
    """The units of one component, or of one layer or expert of it."""

    component: Component
    layer: int | None
    expert: int | None
    units: int
    equal_units: int
    """Units without a changed byte."""


class Threshold(Struct, frozen=True):
    """The least delta at which no more than a share of something is mixed."""

    component: Component | None
    """None for all of them."""
    share: float
    of: Literal["units", "bytes"]
    """Of what it is the share; bytes are the base's."""
    delta: float
    """Units whose RMS is larger are mixed."""
    units: int
    """Units that are mixed then."""
    nbytes: int
    """Their bytes in the base."""
    all_units: int
    all_nbytes: int


# ----------------------------------------------------------------------------------------- roll-up


def summarize_map(
    found: DifferenceMap, *, by: Literal["component", "layer", "expert"] = "component"
) -> list[DifferenceSummary]:
    """The map rolled up per component, per component and layer, or per component, layer and expert; exact."""

    def key(unit: UnitDifference) -> tuple[Component, int | None, int | None]:
        layer = unit.role.layer if by != "component" else None
        return unit.role.component, layer, unit.role.expert if by == "expert" else None

    order = {component: rank for rank, component in enumerate(COMPONENTS)}
    return [
        DifferenceSummary(
            component=component,
            layer=layer,
            expert=expert,
            units=len(units),
            equal_units=sum(unit.alike_bytes > 0 and unit.unlike_bytes == 0 for unit in units),
            **add_up(units),
        )
        for (component, layer, expert), units in sorted(
            _grouped(found.units, key).items(),
            key=lambda group: (order[group[0][0]], *(-1 if n is None else n for n in group[0][1:])),
        )
    ]


def add_up(units: Sequence[Sums]) -> dict[str, Any]:
    """The sums of several units, whatever their order."""

    def total(field: str) -> float:
        values = [getattr(unit, field) for unit in units]
        if field == "largest":
            return max(values, default=0.0)
        return math.fsum(values) if isinstance(values[0], float) else sum(values)

    return {field: total(field) for field in Sums.__struct_fields__}


G = TypeVar("G")


def _grouped(units: Iterable[UnitDifference], key: Callable[[UnitDifference], G]) -> dict[G, list[UnitDifference]]:
    groups: dict[G, list[UnitDifference]] = {}
    for unit in units:
        groups.setdefault(key(unit), []).append(unit)
    return groups


# ------------------------------------------------------------------------------------------- deltas


def thresholds(found: DifferenceMap, shares: Sequence[float]) -> list[Threshold]:
    """The deltas at which these shares (0 to 1) of the units, and of the bytes, would be mixed: all, and per component."""
    groups: dict[Component | None, list[UnitDifference]] = {None: list(found.units)}
    by_component = _grouped(found.units, lambda unit: unit.role.component)
    groups |= {component: by_component[component] for component in COMPONENTS if component in by_component}
    of: tuple[Literal["units", "bytes"], ...] = ("units", "bytes")
    steps = {component: _far_first(units) for component, units in groups.items()}
    return [
        _threshold(component, steps[component], share, what) for component in steps for share in shares for what in of
    ]


class _Step(NamedTuple):
    """Units that are equally far, and so are mixed together."""

    distance: float
    units: int
    nbytes: int
    """In the base."""


def _far_first(units: Iterable[UnitDifference]) -> list[_Step]:
    far_first = sorted(((unit.distance, unit.nbytes_a) for unit in units), key=lambda found: -found[0])
    steps = ((distance, [nbytes for _, nbytes in group]) for distance, group in groupby(far_first, key=itemgetter(0)))
    return [_Step(distance, len(sizes), sum(sizes)) for distance, sizes in steps]


def _threshold(
    component: Component | None, steps: Sequence[_Step], share: float, of: Literal["units", "bytes"]
) -> Threshold:
    """The threshold among units, the farthest first."""
    all_units, all_nbytes = sum(step.units for step in steps), sum(step.nbytes for step in steps)
    allowed = round(share * (all_units if of == "units" else all_nbytes), 6)  # 0.29 * 100 is 28.999999999999996
    delta, mixed, nbytes = 0.0, 0, 0
    for step in steps:
        if step.distance == 0 or (mixed + step.units if of == "units" else nbytes + step.nbytes) > allowed:
            delta = step.distance
            break
        mixed, nbytes = mixed + step.units, nbytes + step.nbytes
    return Threshold(component, share, of, delta, mixed, nbytes, all_units, all_nbytes)
