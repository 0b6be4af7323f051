"""One reading pass for what only numbers show: a census of each unit."""

from collections.abc import Mapping

from msgspec.structs import replace

from chimerakit.anatomy import Anatomy
from chimerakit.dtypes import FP8_BLOCKS, numel_of
from chimerakit.events import Listener, Report
from chimerakit.execute import Inputs
from chimerakit.inspect.records import Census, Censuses, UnitCensus
from chimerakit.plan.memory import needs_of_scan
from chimerakit.plan.panels import largest_panel
from chimerakit.records import Unit
from chimerakit.runners import Runner
from chimerakit.scan import ScanUnit, Values, is_hole, objection_to, scan, scan_units

_SIDE = "checkpoint"


def take_censuses(anatomy: Anatomy, units: Mapping[str, Unit], runner: Runner, listener: Listener) -> Censuses:
    """A census of every unit that can be decoded; each is read once."""
    unread = {name: why for name, unit in units.items() if (why := objection_to(anatomy, unit))}
    readable = [unit for unit in scan_units({_SIDE: units}) if unit.name not in unread]
    most = largest_panel(unit.kind for unit in readable)
    workers = runner.workers(needs_of_scan(len(readable), most, 1))
    sides = {_SIDE: anatomy.checkpoint}
    found = {u.name: c for u, c in scan("counting", _take_census, sides, readable, workers=workers, listener=listener)}
    return Censuses(tuple(UnitCensus(unit.name, unit.role, found[unit.name]) for unit in readable), unread)


def _take_census(unit: ScanUnit, inputs: Inputs, report: Report) -> Census:
    """What the numbers of one unit are; reports all of its bytes."""
    from chimerakit.numerics.census import count

    part = unit.sides[_SIDE]
    weight, is_blocked = part.tensors[0], part.storage in FP8_BLOCKS
    scales = numel_of(part.tensors[1].shape) if is_blocked else 0
    found = Census(values=numel_of(weight.shape), codes=numel_of(weight.shape) if is_blocked else 0, scales=scales)
    if all(is_hole(_SIDE, tensor, inputs) for tensor in part.tensors):
        report(unit.nbytes)
        zero_scales = scales if part.tensors[-1].dtype == "F32" else 0  # an exponent of 0 is 2^-127
        return replace(found, zeros=found.values, zero_scales=zero_scales)
    values, done = Values(unit, [_SIDE], inputs, report), 0
    for panel in values.panels():
        term = values.term(_SIDE, panel)
        found += Census(**count(term, (panel.rows, panel.cols))._asdict())
        done += term.data.nbytes
        report(term.data.nbytes)
    report(unit.nbytes - done)
    return found
