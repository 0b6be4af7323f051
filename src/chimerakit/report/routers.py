"""The routers of two checkpoints as a part of a map's section: where one would choose other experts than the other."""

from collections.abc import Iterator, Sequence

from chimerakit.compare import DifferenceMap, RouterDifference, States
from chimerakit.records import Role
from chimerakit.report.axes import Grid, expert_grid
from chimerakit.report.blocks import Block, Chart, Figure, Label, Listing, Map, Place, Table, make_figure
from chimerakit.report.cells import Cell, Mark
from chimerakit.report.words import say_lines, say_share, say_text

_MARKS = {Mark.ZERO: "0", Mark.INFINITE: "infinite", Mark.UNDEFINED: "no such figure"}


def show_routers(found: DifferenceMap) -> Iterator[Block]:
    """Rows and biases expert by expert, choices layer by layer; nothing where no routers were compared."""
    if not found.routers:
        return
    layers = dict.fromkeys(Role("router", unit.role.layer, mtp=unit.role.mtp) for unit in found.units)
    rows = [Role("router", router.layer, row) for router in found.routers for row in range(len(router.cosines))]
    grid = expert_grid([*layers, *rows])
    if grid is not None:
        says = "Per expert and layer: the expert's row of the gate, and its correction bias."
        data = Map("expert", grid.rows, grid.columns, tuple(_figures(found.routers, grid)))
        yield Chart("Routers: experts", says, data)
    yield from _choices_by_layer(found, [*layers, *rows])
    yield _table(found)
    objections = [f"{router.gate}: {router.objection}" for router in found.routers if router.objection]
    if objections:
        yield Listing("Routers that were not asked", say_lines(objections), is_wrong=True)


def _choices_by_layer(found: DifferenceMap, roles: Sequence[Role]) -> Iterator[Block]:
    """Where the routers choose alike; nothing where they were not asked."""
    names = ("overlap", "tokens alike")
    grid = Grid([(row, Label(name, name)) for row, name in enumerate(names)], roles)
    cells: dict[Place, Cell] = {
        grid.place("router", router.layer, row): share
        for router in found.routers
        if router.choices is not None
        for row, share in enumerate((router.choices.overlap, router.choices.same_tokens))
    }
    if cells and found.states is not None:
        figure = make_figure("share", cells, grid.shape, _MARKS, is_percent=True, ends=(0.0, 1.0))
        says = "The share of chosen experts that both choose, and of tokens for which both choose the same, on "
        data = Map("", grid.rows, grid.columns, (figure,))
        yield Chart("Routers: choices", f"{says}{say_text(_say_states(found.states))}.", data)


def _figures(routers: Sequence[RouterDifference], grid: Grid) -> Iterator[Figure]:
    cells: dict[str, dict[Place, Cell]] = {}
    for router in routers:
        for name, values in _values(router):
            for expert, value in enumerate(values):
                place = grid.place("router", router.layer, expert)
                cells.setdefault(name, {})[place] = Mark.UNDEFINED if value is None else value
    for name, own in cells.items():
        yield make_figure(name, own, grid.shape, _MARKS, is_percent="relative" in name)


def _values(router: RouterDifference) -> Iterator[tuple[str, list[float | None]]]:
    """Each figure of a layer, for its experts; none of them below 0."""
    yield "1 − cosine of rows", [None if c is None else max(0.0, 1 - c) for c in router.cosines]  # noqa: RUF001
    yield "relative change of norm", [None if c is None else abs(c) for c in router.norm_changes]
    if router.bias_changes is not None:
        yield "change of bias", [None if c is None else abs(c) for c in router.bias_changes]
    if router.choices is not None:
        loads = zip(router.choices.loads_a, router.choices.loads_b, strict=True)
        yield "relative change of load", [abs(b - a) / max(1, a) for a, b in loads]


def _table(found: DifferenceMap) -> Table:
    """A row for each layer; what routers choose where they were asked."""
    rows = [
        (str(r.layer), *map(_or_dash, (r.median_cosine, r.least_cosine, r.bias_rms)), *_choices(r))
        for r in found.routers
    ]
    says = (
        "Asked on nothing: compare with hidden states to see what they choose."
        if found.states is None
        else (say_text(f"Overlap: the share of chosen experts that both choose, on {_say_states(found.states)}."))
    )
    columns = (
        "layer",
        "median cosine",
        "least cosine",
        "RMS of bias change",
        "overlap",
        "tokens alike",
        "load shifts most",
    )
    return Table("Routers: layers", columns, tuple(rows), says, is_folded=True)


def _say_states(states: States) -> str:
    return states.source + (", which are of no model" if states.is_synthetic else "")


def _choices(router: RouterDifference) -> tuple[str, str, str]:
    if (choices := router.choices) is None:
        return "", "", ""
    return say_share(choices.overlap), say_share(choices.same_tokens), f"expert {choices.most_shifted}"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"  # noqa: RUF001 - a dash is what is meant
