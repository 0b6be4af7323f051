"""The census of an inspection as a part of its section: NaN and infinity, saturation, the largest numbers."""

import math
from collections.abc import Iterator, Mapping

from chimerakit.inspect.records import Census, Censuses, Inspection, Part
from chimerakit.report.axes import Grid, component_grid, expert_grid, roles_of
from chimerakit.report.blocks import Block, Chart, Figure, Listing, Map, Place, Table, make_figure
from chimerakit.report.cells import Cell, Mark
from chimerakit.report.words import say_lines, say_number, say_share, say_text

_MARKS = {Mark.ZERO: "0", Mark.UNDEFINED: "not in FP8 blocks", Mark.WRONG: "NaN or infinity"}


def show_values(found: Inspection) -> Iterator[Block]:
    """Maps of what numbers are; nothing where nobody has looked."""
    if found.values is None:
        return
    parts = [part for part in found.parts if part.census is not None]
    grid = component_grid(roles_of(parts))
    censuses = {_place(grid, part): part.census for part in parts if part.census is not None}
    data = Map("", grid.rows, grid.columns, tuple(_figures(censuses, grid)))
    yield Chart("Values: components", "Decoded values, code × scale, per component and layer.", data)  # noqa: RUF001
    experts = expert_grid([unit.role for unit in found.values.units])
    if experts is not None:
        data = Map("expert", experts.rows, experts.columns, tuple(_figures(_by_expert(found.values, experts), experts)))
        yield Chart("Values: experts", "Per routed expert and layer.", data)
    yield _worst(found.values)
    if found.values.unread:
        yield Listing("Not read", say_lines([f"{unit}: {why}" for unit, why in found.values.unread.items()]))


def _place(grid: Grid, part: Part) -> Place:
    return grid.place(part.component, part.layers[0] if part.layers else None)


def _by_expert(values: Censuses, grid: Grid) -> dict[Place, Census]:
    found: dict[Place, Census] = {}
    for unit in values.units:
        if unit.role.expert is not None:
            place = grid.place(unit.role.component, unit.role.layer, unit.role.expert)
            found[place] = found.get(place, Census()) + unit.census
    return found


def _figures(censuses: Mapping[Place, Census], grid: Grid) -> Iterator[Figure]:
    saturation: dict[Place, Cell] = {
        place: census.saturation if census.codes else math.nan for place, census in censuses.items()
    }
    yield make_figure("saturated codes", saturation, grid.shape, _MARKS, is_percent=True)
    largest: dict[Place, Cell] = {
        place: Mark.WRONG if census.nonfinite else float(census.largest) for place, census in censuses.items()
    }
    yield make_figure("largest magnitude", largest, grid.shape, _MARKS)
    zeros: dict[Place, Cell] = {place: census.zeros / max(1, census.values) for place, census in censuses.items()}
    yield make_figure("zeros", zeros, grid.shape, _MARKS, is_percent=True)
    nonfinite: dict[Place, Cell] = {place: float(census.nonfinite) for place, census in censuses.items()}
    yield make_figure("NaN and infinite", nonfinite, grid.shape, _MARKS)


def _worst(values: Censuses) -> Table:
    rows = []
    for each in values.worst():
        largest, saturated = each.largest, each.most_saturated
        rows.append((each.component, say_number(largest.census.largest), say_text(largest.unit)))
        if saturated.census.saturated:
            rows.append(
                (each.component, f"{say_share(saturated.census.saturation)} saturated", say_text(saturated.unit))
            )
    return Table("Units to look at first", ("component", "at most", "unit"), tuple(rows), words=(0, 2), is_folded=True)
