"""A difference map as a section: how far two checkpoints lie apart, where, and what a delta would take."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from chimerakit.compare import (
    DifferenceMap,
    DifferenceSummary,
    Identity,
    Sums,
    UnitDifference,
    summarize_map,
    thresholds,
)
from chimerakit.compare.difference import add_up
from chimerakit.records import COMPONENTS, Component
from chimerakit.report.axes import Grid, component_grid, expert_grid
from chimerakit.report.blocks import (
    Block,
    Chart,
    Figure,
    Listing,
    Map,
    Place,
    Section,
    Series,
    Spread,
    Table,
    bins,
    color_of,
    make_figure,
    rounded,
)
from chimerakit.report.cells import Cell, Mark
from chimerakit.report.routers import show_routers
from chimerakit.report.words import say_lines, say_number, say_share
from chimerakit.stores.digest import digest_of
from chimerakit.words import say_many, say_nbytes

_FIGURES: Mapping[str, tuple[Callable[[Sums], float], bool]] = {
    "RMS": (lambda sums: sums.rms, False),
    "relative RMS": (lambda sums: sums.relative_rms, True),
    "1 − cosine": (lambda sums: 1 - sums.cosine, False),  # noqa: RUF001 - a minus is what is meant
    "changed bytes": (lambda sums: sums.changed_bytes, True),
}
"""What is drawn, and whether it is a share."""
_MARKS = {
    Mark.ZERO: "0",
    Mark.INFINITE: "infinite",
    Mark.UNDEFINED: "no such figure",
    Mark.WRONG: "NaN or infinity",
}
_BINS = 48
_POINTS = 192
"""Of a curve."""
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""For which deltas are listed."""


def show_map(found: DifferenceMap, name: str) -> Section:
    """Everything that a map says."""
    blocks = [*_maps(found), *show_routers(found), *_deltas(found), _components(found), _layers(found), *_gaps(found)]
    title = "How far two checkpoints lie apart"
    return Section("compare", title, name, tuple(_facts(found)), tuple(blocks))


def _facts(found: DifferenceMap) -> Iterator[tuple[str, str]]:
    yield "a, the base", _say_identity(found.a)
    yield "b", _say_identity(found.b)
    equal = sum(unit.alike_bytes > 0 and unit.unlike_bytes == 0 for unit in found.units)
    yield "units compared", f"{len(found.units):,}, of which {equal:,} have the same bytes"
    yield "complete", "yes" if found.is_complete else "no: see what is not compared"


def _say_identity(identity: Identity) -> str:
    files = identity.record.shards.values()
    nbytes = say_nbytes(sum(size for size, _ in files))
    return f"{say_many(len(files), 'weight file')}, {nbytes}, identity {digest_of(msgspec.json.encode(identity))}"


# ------------------------------------------------------------------------------------------------ maps


def _maps(found: DifferenceMap) -> Iterator[Block]:
    if not found.units:
        return
    roles = [unit.role for unit in found.units]
    grid = component_grid(roles)
    layers = {grid.place(s.component, s.layer): s for s in summarize_map(found, by="layer")}
    data = Map("", grid.rows, grid.columns, tuple(_figures(layers, grid)))
    yield Chart("Difference: components", "Per component and layer. RMS is of b − a, over all its weights.", data)  # noqa: RUF001
    experts = expert_grid(roles)
    if experts is not None:
        summaries = [s for s in summarize_map(found, by="expert") if s.expert is not None]
        cells = {experts.place(s.component, s.layer, s.expert): s for s in summaries}
        data = Map("expert", experts.rows, experts.columns, tuple(_figures(cells, experts)))
        yield Chart("Difference: experts", "Per routed expert and layer, over its matrices.", data)


def _figures(cells: Mapping[Place, DifferenceSummary], grid: Grid) -> Iterator[Figure]:
    for name, (figure, is_percent) in _FIGURES.items():
        values = {place: _cell(sums, figure) for place, sums in cells.items()}
        yield make_figure(name, values, grid.shape, _MARKS, is_percent=is_percent)


def _cell(sums: Sums, figure: Callable[[Sums], float]) -> Cell:
    return Mark.WRONG if sums.nonfinite else float(figure(sums))


# ---------------------------------------------------------------------------------------------- deltas


def _deltas(found: DifferenceMap) -> Iterator[Block]:
    """What is mixed at each delta, over how distances are spread."""
    distances = [unit.distance for unit in found.units if 0 < unit.distance < math.inf]
    if not distances:
        return
    low, high = min(distances) / 1.05, max(distances) * 1.05
    edges, at = _log_steps(low, high, _BINS), _log_steps(low, high, _POINTS)
    groups = {component: [u for u in found.units if u.role.component == component] for component in COMPONENTS}
    there = {component: units for component, units in groups.items() if units}
    lines = [Series("all", -1, _mixed(found.units, at))]
    lines += [Series(component, color_of(component), _mixed(units, at)) for component, units in there.items()]
    rows = [_histogram(component, units, edges) for component, units in there.items()]
    spread = Spread(
        across="delta (RMS)",
        scale="log",
        edges=edges,
        of="the component's bytes",
        rows=tuple(rows),
        at=at,
        lines=tuple(lines),
        says="bytes mixed",
    )
    says = (
        "The curves say which share of the base's bytes lies farther apart than a delta, and so would be mixed; below, "
    )
    says += "how the bytes of each component are spread over RMS."
    yield Chart("What a delta takes", says, spread)
    yield _thresholds(found)


def _log_steps(low: float, high: float, steps: int) -> tuple[float, ...]:
    return tuple(rounded(low * (high / low) ** (n / steps)) for n in range(steps + 1))


def _mixed(units: Sequence[UnitDifference], at: Sequence[float]) -> tuple[float, ...]:
    """The share of the base's bytes whose distance is larger than each delta."""
    ordered = sorted(units, key=lambda unit: unit.distance)
    distances, sums = [unit.distance for unit in ordered], [0]
    for unit in ordered:
        sums.append(sums[-1] + unit.nbytes_a)
    return tuple(rounded(1 - sums[bisect_right(distances, delta)] / max(1, sums[-1])) for delta in at)


def _histogram(component: Component, units: Sequence[UnitDifference], edges: Sequence[float]) -> Series:
    whole = max(1, sum(unit.nbytes_a for unit in units))
    inside = [unit for unit in units if 0 < unit.distance < math.inf]
    weights = [float(unit.nbytes_a) for unit in inside]
    equal = sum(unit.nbytes_a for unit in units if unit.distance == 0) / whole
    note = f"{say_share(equal)} at 0" if equal else ""
    return Series(component, color_of(component), bins([u.distance for u in inside], edges, weights, whole), note)


def _thresholds(found: DifferenceMap) -> Table:
    """The deltas at which shares of the bytes would be mixed."""
    rows: dict[str, list[str]] = {}
    for threshold in thresholds(found, _SHARES):
        if threshold.of == "bytes":
            rows.setdefault(threshold.component or "all", []).append(say_number(threshold.delta))
    columns = ("mixed at most", *(f"{100 * share:.0f} %" for share in _SHARES))
    says = "The least delta at which no more than this share of the bytes is mixed."
    return Table("Deltas", columns, tuple((name, *cells) for name, cells in rows.items()), says)


# ---------------------------------------------------------------------------------------------- tables

_COLUMNS = ("units", "bytes", "RMS", "relative RMS", "cosine", "max abs", "unlike bytes", "unlike values")


def _components(found: DifferenceMap) -> Table:
    summaries = summarize_map(found)
    rows = [(s.component, f"{s.units:,}", *_numbers(s)) for s in summaries]
    if found.units:
        rows.append(("all", f"{len(found.units):,}", *_numbers(Sums(**add_up(found.units)))))
    return Table("Components", ("component", *_COLUMNS), tuple(rows))


def _layers(found: DifferenceMap) -> Table:
    summaries = summarize_map(found, by="layer")
    rows = [(s.component, "" if s.layer is None else str(s.layer), f"{s.units:,}", *_numbers(s)) for s in summaries]
    return Table("Components and layers", ("component", "layer", *_COLUMNS), tuple(rows), is_folded=True)


def _numbers(sums: Sums) -> tuple[str, ...]:
    shares = say_share(sums.changed_bytes), say_share(sums.changed_values)
    relative, cosine = say_share(sums.relative_rms), "–" if math.isnan(sums.cosine) else f"{sums.cosine:.5f}"  # noqa: RUF001
    return say_nbytes(sums.nbytes_a), say_number(sums.rms), relative, cosine, say_number(sums.largest), *shares


def _gaps(found: DifferenceMap) -> Iterator[Block]:
    """What could not be compared, by name."""
    gaps = [f"{unit}: {why}" for unit, why in found.problems.items()]
    gaps += [f"{u.unit}: NaN or infinity in {u.nonfinite} of {u.weights} pairs" for u in found.units if u.nonfinite]
    gaps += [f"{unit}: only in {side}" for side, units in found.only_in.items() for unit in units]
    if gaps:
        yield Listing("Not compared", say_lines(gaps), is_wrong=True)
