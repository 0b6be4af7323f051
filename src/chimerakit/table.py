"""What a child is made of, unit by unit, read out of the weights: the check that people wrote by hand for merges.

Needs no manifest, so it works on any child. Each unit is equal to one parent, to several, mixed, or unexplained:

    by bytes     the stored bytes are those of a parent, scales included
    by values    decoded values (code x scale, float32) are close: |a - b| <= 1e-5 + 1e-5 |b|
    mixed        some weighted sum of the parents comes as near as storing it would have lost anyway; the shares are
                 least squares, a first guess that is biased where rounding is as large as the parents' difference

With `codes` stored codes are compared without their scales, as published scripts did; it says less than it seems to.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.anatomy import Anatomy
from chimerakit.dtypes import FP8_BLOCKS, MIXABLE
from chimerakit.errors import PlanError
from chimerakit.events import Listener, ignore
from chimerakit.execute import Inputs, Report, Source
from chimerakit.formats import open_checkpoint
from chimerakit.plan.panels import Panel, cut
from chimerakit.records import COMPONENTS, Checkpoint, Component, Role
from chimerakit.scan import Pair, ScanUnit, equal_pairs, scan, scan_units

if TYPE_CHECKING:
    from chimerakit.numerics.fp8 import F32

CHILD = "child"
Verdict = Literal["equal", "mixed", "unexplained"]


class TableRow(Struct, frozen=True):
    """One unit of the child beside its namesakes."""

    unit: str
    role: Role
    nbytes: int
    same_bytes: tuple[Pair, ...]
    close_values: tuple[Pair, ...]
    """Pairs with the same bytes are among them."""
    verdict: Verdict
    parents: tuple[str, ...] = ()
    """equal: to whom. mixed: of whom."""
    shares: dict[str, float] | None = None
    """mixed: least squares."""
    why: str = ""
    """unexplained: what is the matter, or how far the nearest mix is."""


class Table(Struct, frozen=True):
    """All units of the child, and what only parents have."""

    parents: tuple[str, ...]
    codes: bool
    rows: tuple[TableRow, ...]
    missing: dict[str, tuple[str, ...]]
    """Units of each parent that the child lacks."""

    @property
    def is_explained(self) -> bool:
        """Whether every unit of the child is equal or mixed, and it lacks nothing that all parents have."""
        lacking = set.intersection(*(set(names) for names in self.missing.values())) if self.missing else set()
        return not lacking and all(row.verdict != "unexplained" for row in self.rows)


class TableSummary(Struct, frozen=True):
    """The rows of one component, or of one layer or expert of it."""

    component: Component
    layer: int | None
    expert: int | None
    units: int
    close: dict[str, int]
    """Units whose values are close, for each pair: "v3/child"."""
    same: dict[str, int]
    """Units whose bytes are equal, for each pair."""
    verdicts: dict[str, int]
    """Units for each verdict in words: "= r1", "mixed ~ 0.25 v3 + 0.75 r1" with the mean of the shares."""


def verify_table(
    child: Path | str,
    parents: Mapping[str, Checkpoint],
    *,
    codes: bool = False,
    threads: int | None = None,
    listener: Listener = ignore,
) -> Table:
    """Compare every unit of a child with those of its suspected parents.

    The first parent counts as the base. Raises PlanError for a parent of another architecture.
    """
    sides = {CHILD: open_checkpoint(child), **parents}
    anatomies = {name: Anatomy(checkpoint) for name, checkpoint in sides.items()}
    families = {anatomy.family.name for anatomy in anatomies.values()}
    if len(families) > 1:
        raise PlanError([f"child and parents are of several architectures: {', '.join(sorted(families))}"])
    units = {name: anatomy.units() for name, anatomy in anatomies.items()}
    mine = [unit for unit in scan_units(units) if CHILD in unit.sides]

    def ask(unit: ScanUnit, inputs: Inputs, report: Report) -> TableRow:
        return _row(unit, tuple(parents), inputs, report, codes=codes)

    found = {unit.name: row for unit, row in scan("comparing", ask, sides, mine, threads=threads, listener=listener)}
    missing = {name: tuple(u for u in units[name] if u not in units[CHILD]) for name in parents}
    return Table(tuple(parents), codes, tuple(found[unit.name] for unit in mine), missing)


def _row(unit: ScanUnit, parents: tuple[str, ...], inputs: Inputs, report: Report, *, codes: bool) -> TableRow:
    same = equal_pairs(unit, inputs, report)
    close, problem = _close_pairs(unit, inputs, same, codes=codes)
    row = TableRow(
        unit=unit.name,
        role=unit.role,
        nbytes=sum(t.nbytes for t in unit.sides[CHILD].tensors),
        same_bytes=_ordered(same),
        close_values=_ordered(close),
        verdict="unexplained",
    )
    for relation in (same, close):
        if equal := tuple(parent for parent in parents if (CHILD, parent) in relation):
            return replace(row, verdict="equal", parents=equal)
    there = [parent for parent in parents if parent in unit.sides]
    if problem or len(there) < 2:
        return replace(row, why=problem or (f"only {there[0]!r} has it, too" if there else "no parent has it"))
    shares, left, allowed = _fit(unit, there, inputs)
    if left <= allowed:
        rounded = {parent: round(share, 3) for parent, share in zip(there, shares, strict=True)}
        return replace(row, verdict="mixed", parents=tuple(there), shares=rounded)
    return replace(row, why=f"the nearest mix is off by {left:.2%} of its RMS; storing it costs at most {allowed:.2%}")


def _ordered(pairs: set[Pair]) -> tuple[Pair, ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0] != CHILD, pair)))


def _close_pairs(unit: ScanUnit, inputs: Inputs, same: set[Pair], *, codes: bool) -> tuple[set[Pair], str]:
    """Pairs whose values are close, and why the values could not be compared, if so."""
    from chimerakit.numerics.compare import are_close

    shapes = {side.tensors[0].shape for side in unit.sides.values()}
    if len(shapes) > 1:
        return same, f"the shapes differ: {', '.join(str(list(s)) for s in sorted(shapes))}"
    unsettled = {pair for pair in combinations(unit.sides, 2) if pair not in same}
    if not unsettled:
        return same, ""
    if not all(side.storage in MIXABLE for side in unit.sides.values()):
        storages = sorted({side.storage for side in unit.sides.values()})
        return same, f"values stored as {', '.join(storages)} can't be compared"
    values = _Values(unit, inputs, codes=codes)
    for panel in values.panels():
        decoded = {side: values.of(side, panel) for side in {side for pair in unsettled for side in pair}}
        unsettled = {(a, b) for a, b in unsettled if are_close(decoded[a], decoded[b])}
    return same | unsettled, ""


def _fit(unit: ScanUnit, parents: list[str], inputs: Inputs) -> tuple[list[float], float, float]:
    """Shares of the parents, what is left, and what storing the child may have cost."""
    import numpy as np

    from chimerakit.numerics.compare import ROUNDING, add_products, fit_shares

    products = np.zeros((len(parents) + 1, len(parents) + 1))
    values = _Values(unit, inputs, codes=False)
    for panel in values.panels():
        add_products(products, values.of(CHILD, panel), [values.of(parent, panel) for parent in parents])
    shares, left = fit_shares(products)
    return shares, left, ROUNDING[unit.sides[CHILD].storage]


class _Values:
    """The float32 values of a unit's sides, panel by panel."""

    def __init__(self, unit: ScanUnit, inputs: Inputs, *, codes: bool):
        is_blocked = any(side.storage in FP8_BLOCKS for side in unit.sides.values())
        self._whole = cut(unit.sides[CHILD].tensors[0].shape, is_blocked=is_blocked)
        self._sources = {name: Source(side, inputs, self._whole) for name, side in unit.sides.items()}
        self._dtypes = {name: side.tensors[0].dtype for name, side in unit.sides.items()}
        self._codes = codes

    def panels(self) -> Iterator[Panel]:
        """All panels of the unit."""
        return self._whole.panels()

    def of(self, side: str, panel: Panel) -> "F32":
        """A side's values in a panel: code x scale, or the codes alone."""
        from chimerakit.numerics import compare, mix

        term = self._sources[side].term(panel)
        if self._codes:
            return compare.codes(term.data, self._dtypes[side])
        return mix.mix([term], (panel.rows, panel.cols))


# ----------------------------------------------------------------------------------------- roll-up


def summarize(table: Table, *, by: Literal["component", "layer", "expert"] = "component") -> list[TableSummary]:
    """The table rolled up per component, per component and layer, or per component, layer and expert."""
    groups: dict[tuple[Component, int | None, int | None], list[TableRow]] = {}
    for row in table.rows:
        layer = row.role.layer if by != "component" else None
        expert = row.role.expert if by == "expert" else None
        groups.setdefault((row.role.component, layer, expert), []).append(row)
    pairs = [*((p, CHILD) for p in table.parents), *combinations(table.parents, 2)]
    found = []
    order = {component: rank for rank, component in enumerate(COMPONENTS)}
    for (component, layer, expert), rows in sorted(
        groups.items(), key=lambda group: (order[group[0][0]], *(-1 if n is None else n for n in group[0][1:]))
    ):
        found.append(
            TableSummary(
                component,
                layer,
                expert,
                len(rows),
                {f"{a}/{b}": sum(_has(row.close_values, a, b) for row in rows) for a, b in pairs},
                {f"{a}/{b}": sum(_has(row.same_bytes, a, b) for row in rows) for a, b in pairs},
                _verdicts(rows),
            )
        )
    return found


def _has(pairs: tuple[Pair, ...], a: str, b: str) -> bool:
    return (a, b) in pairs or (b, a) in pairs


def say_verdict(row: TableRow) -> str:
    """A row's verdict in few words."""
    if row.verdict == "equal":
        is_bytes = any((CHILD, parent) in row.same_bytes for parent in row.parents)
        return "= " + " = ".join(row.parents) + ("" if is_bytes else " (by values)")
    if row.verdict == "mixed" and row.shares is not None:
        return "mixed ~ " + " + ".join(f"{share:.2f} {parent}" for parent, share in row.shares.items())
    return "unexplained"


def _verdicts(rows: list[TableRow]) -> dict[str, int]:
    """Units for each verdict; those that are mixed of the same parents stand together, with their mean shares."""
    found = Counter(say_verdict(row) for row in rows if row.verdict != "mixed")
    mixed: dict[tuple[str, ...], list[TableRow]] = {}
    for row in rows:
        if row.verdict == "mixed":
            mixed.setdefault(row.parents, []).append(row)
    for parents, together in mixed.items():
        mean = {p: sum((row.shares or {})[p] for row in together) / len(together) for p in parents}
        found[say_verdict(replace(together[0], shares=mean))] += len(together)
    return dict(found)
