"""What a child is made of, unit by unit, read out of the weights: the check that people wrote by hand for merges.

Needs no manifest, so it works on any child. Each unit is equal to one parent, to several, mixed, or unexplained:

    by bytes     the stored bytes are those of a parent, scales included
    by values    decoded values (code x scale, float32) are close: |a - b| <= 1e-5 + 1e-5 |b|
    converted    the stored bytes are those of a parent's values once they are stored the child's way
    mixed        some weighted sum of the parents comes as near as storing it may have lost anyway; the shares are
                 least squares, a first guess that is biased where rounding is as large as the parents' difference
    unexplained  anything else; also NaN and infinity, and storage that can't be decoded, unless the bytes are a parent's

With `codes` stored codes are compared without their scales, as published scripts did (`by codes`, in place of values);
it says less than it seems to.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.anatomy import Anatomy
from chimerakit.errors import PlanError
from chimerakit.events import Listener, Report, ignore
from chimerakit.execute import Inputs
from chimerakit.formats import open_checkpoint
from chimerakit.plan.memory import needs_of_scan
from chimerakit.plan.panels import Panel, largest_panel
from chimerakit.records import COMPONENTS, Checkpoint, Component, Role, Unit
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL
from chimerakit.scan import Pair, ScanUnit, Values, equal_pairs, objection_to, scan_about, scan_units

if TYPE_CHECKING:
    from chimerakit.numerics.fp8 import F32

CHILD = "child"
_REFUSED = "these can't be compared"
Verdict = Literal["equal", "mixed", "unexplained"]
How = Literal["bytes", "values", "codes", "converted"]
"""In what way a unit of the child is equal to a parent's."""


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
    """equal: to whom, by bytes first. mixed: of whom."""
    how: dict[str, How] = {}
    """equal: in what way to each of them."""
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
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> Table:
    """Compare every unit of a child with those of its suspected parents.

    The first parent counts as the base. runner: where jobs are done. Raises PlanError for a parent of another architecture, or one named "child", or if one job needs more memory.
    """
    if CHILD in parents:
        raise PlanError([f"a parent can't be called {CHILD!r} here"], _REFUSED)
    sides = {CHILD: open_checkpoint(child), **parents}
    anatomies = {name: Anatomy(checkpoint) for name, checkpoint in sides.items()}
    families = {anatomy.family.name for anatomy in anatomies.values()}
    if len(families) > 1:
        raise PlanError([f"child and parents are of several architectures: {', '.join(sorted(families))}"], _REFUSED)
    units = {name: anatomy.units() for name, anatomy in anatomies.items()}
    mine = [unit for unit in scan_units(units) if CHILD in unit.sides]

    problems = {
        unit.name: {s: _problem(anatomies[s], units[s][unit.name], units[CHILD][unit.name]) for s in unit.sides}
        for unit in mine
    }
    ask = partial(_row, tuple(parents), codes)
    most = largest_panel(unit.kind for unit in mine)
    workers = runner.workers(needs_of_scan(len(mine), most, len(sides)))
    rows = scan_about("comparing", ask, problems, sides, mine, workers=workers, listener=listener)
    found = {unit.name: row for unit, row in rows}
    missing = {name: tuple(u for u in units[name] if u not in units[CHILD]) for name in parents}
    return Table(tuple(parents), codes, tuple(found[unit.name] for unit in mine), missing)


def _problem(anatomy: Anatomy, unit: Unit, child: Unit) -> str:
    """Why a side's values can't be compared with the child's, if so; its bytes always can."""
    if objection := objection_to(anatomy, unit):
        return objection
    if unit.shape != child.shape:
        return f"the shapes differ: {list(child.shape)}, {list(unit.shape)}"
    return ""


def _row(
    parents: tuple[str, ...],
    codes: bool,
    problems: Mapping[str, str],
    unit: ScanUnit,
    inputs: Inputs,
    report: Report,
) -> TableRow:
    same = equal_pairs(unit, inputs, report)
    sides = [] if problems[CHILD] else [side for side in unit.sides if not problems[side]]
    values = Values(unit, sides, inputs, report)
    close = same | _close_pairs(values, same, codes=codes)
    row = TableRow(
        unit=unit.name,
        role=unit.role,
        nbytes=sum(t.nbytes for t in unit.sides[CHILD].tensors),
        same_bytes=_ordered(same),
        close_values=_ordered(close),
        verdict="unexplained",
    )
    how: dict[str, How] = {parent: "bytes" for parent in parents if (CHILD, parent) in same}
    how |= {p: "codes" if codes else "values" for p in parents if (CHILD, p) in close and p not in how}
    there = [parent for parent in parents if parent in sides]
    own = unit.sides[CHILD].storage
    others = [p for p in there if p not in how and (not how or unit.sides[p].storage != own)]
    how |= dict.fromkeys(_converted(values, others), "converted")
    if how:
        return replace(row, verdict="equal", parents=tuple(how), how=how)
    problem = "".join(f"; {side}: {why}" for side, why in problems.items() if why)
    if not there:
        return replace(row, why=problem.removeprefix("; ") or "no parent has it")
    shares, left, allowed, nonfinite = _fit(values, there)
    if nonfinite:
        return replace(row, why=f"NaN or infinity in {' and '.join(map(repr, nonfinite))}{problem}")
    if len(there) == 1:
        return replace(
            row, why=f"it is off by {left:.2%} of its RMS from {there[0]!r}, the only one to compare{problem}"
        )
    if left <= allowed:
        rounded = {parent: round(share, 3) for parent, share in zip(there, shares, strict=True)}
        if sorted(rounded.values())[-1] == 1 and sum(map(abs, rounded.values())) == 1:
            near = next(parent for parent, share in rounded.items() if share == 1)
            return replace(row, why=f"nearly {near!r} (off by {left:.2g} of its RMS), yet not equal to it{problem}")
        return replace(row, verdict="mixed", parents=tuple(there), shares=rounded)
    far = f"the nearest mix is off by {left:.2%} of its RMS; storing it costs at most {allowed:.2%}"
    return replace(row, why=far + problem)


def _ordered(pairs: set[Pair]) -> tuple[Pair, ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0] != CHILD, pair)))


def _close_pairs(values: Values, same: set[Pair], *, codes: bool) -> set[Pair]:
    """Pairs whose values are close, of those whose bytes differ."""
    close = {pair for pair in combinations(values.sides, 2) if pair not in same}
    if not close:
        return close
    from chimerakit.numerics import compare

    def read(side: str, panel: Panel) -> "F32":
        if codes:
            return compare.codes(values.term(side, panel).data, values.dtypes[side])
        return values.of(side, panel)

    for panel in values.panels():
        decoded = {side: read(side, panel) for side in {side for pair in close for side in pair}}
        close = {(a, b) for a, b in close if compare.are_close(decoded[a], decoded[b])}
        if not close:
            break
    return close


def _converted(values: Values, parents: list[str]) -> list[str]:
    """Parents whose values, stored as the child stores them, are the child's bytes."""
    if not parents:
        return []
    from chimerakit.numerics.compare import are_stored_as

    for panel in values.panels():
        child = values.term(CHILD, panel)
        parents = [parent for parent in parents if are_stored_as(values.of(parent, panel), child)]
        if not parents:
            break
    return parents


def _fit(values: Values, parents: list[str]) -> tuple[list[float], float, float, list[str]]:
    """Shares of the parents, what is left, what storing the child may have cost; and sides that hold NaN or infinity."""
    import numpy as np

    from chimerakit.numerics.compare import ROUNDING, add_products, fit_shares, is_finite

    products = np.zeros((len(parents) + 1, len(parents) + 1))
    nonfinite: set[str] = set()
    for panel in values.panels():
        decoded = {side: values.of(side, panel) for side in (CHILD, *parents)}
        nonfinite |= {side for side, found in decoded.items() if not is_finite(found)}
        if not nonfinite:
            add_products(products, decoded[CHILD], [decoded[parent] for parent in parents])
    shares, left = fit_shares(products)
    return shares, left, ROUNDING[values.storages[CHILD]], [s for s in (CHILD, *parents) if s in nonfinite]


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


_SAID: dict[How, str] = {"bytes": "", "values": " (by values)", "codes": " (by codes)", "converted": " (converted)"}


def say_verdict(row: TableRow) -> str:
    """A row's verdict in few words."""
    if row.verdict == "equal":
        if len(set(row.how.values())) > 1:
            return "= " + " = ".join(p if how == "bytes" else f"{p} ({how})" for p, how in row.how.items())
        return "= " + " = ".join(row.parents) + _SAID[row.how[row.parents[0]]]
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
