"""How much memory running a plan takes at most, and how many jobs may run at a time within a bound.

The process and a plan's records, which grow with the number of tensors and not with their size; then a few buffers for
each job that runs, whatever it does: the stage that it writes from, what it reads into, and for a mix each parent's panel.
Tests hold this against processes that merge tensors of gigabytes.
"""

from collections.abc import Sequence

from msgspec import Struct

from chimerakit.dtypes import BLOCK, FP8_BLOCKS, QUANTS, numel_of
from chimerakit.errors import PlanError
from chimerakit.plan.panels import cut
from chimerakit.records import Plan, Row
from chimerakit.stores.local import CHUNK
from chimerakit.stores.part import STAGE

MAX_MEMORY = 2 << 30
"""Bytes; the bound if none is asked for. It matters on machines with very many cores."""

_COPYING = 90 << 20
"""Bytes of a process that only copies, before it begins."""
_MIXING = 240 << 20
"""The same with compiled kernels loaded."""
_QUANT = 64
"""Bytes for each weight of a panel while quants are decoded or encoded: numpy makes copies."""
_ROW = 2500
"""Bytes of a unit's records, from its tensors to its line in the manifest."""


class Needs(Struct, frozen=True):
    """What jobs take of memory, in bytes."""

    process: int
    """A process that does such jobs, before it begins."""
    records: int
    """The records of all units, which only the process has that gives the jobs out."""
    job: int
    """Each job that runs."""


def peak_memory(plan: Plan, threads: int) -> int:
    """Bytes of memory that running the plan takes at most with so many jobs at a time."""
    needs = needs_of(plan)
    return needs.process + needs.records + threads * needs.job


def needs_of(plan: Plan, *, records: int = 1) -> Needs:
    """What the jobs of a plan take.

    records: how often the records of all units are held; a proof holds a manifest that is given and one that is made.
    """
    panel = max((_panel_nbytes(row) for row in plan.rows if row.kind != "copy"), default=0)
    return Needs(_MIXING if panel else _COPYING, records * _ROW * len(plan.rows), STAGE + 2 * CHUNK + panel)


def needs_together(plans: Sequence[Plan]) -> Needs:
    """What jobs take that make the same units of several children."""
    needs = max(map(needs_of, plans), key=lambda needs: needs.job)
    scales = max((_scales_nbytes(row) for plan in plans for row in plan.rows if row.kind != "copy"), default=0)
    rows = sum(len(plan.rows) for plan in plans)
    return Needs(needs.process, _ROW * rows, needs.job + (len(plans) - 1) * (STAGE + CHUNK + scales))


def needs_of_scan(num_units: int, weights: int, sides: int) -> Needs:
    """What reading `num_units` units of some checkpoints takes, whose panels have at most so many weights; 0 weights for
    reading bytes only."""
    # Of a panel: bytes, float32 and float64 of each side, and the float64 of a base and of a child beside them.
    job = 2 * CHUNK * sides + weights * (4 + 4 + 16) * sides + weights * 16
    return Needs(_MIXING if weights else _COPYING, _ROW * num_units * sides, job)


def check_room(room: int, needed: int, max_memory: int) -> None:
    """Refuse to begin where there is no room for one job. Raises PlanError."""
    if room < 1:
        raise PlanError(
            [f"one job at a time takes up to {needed / 1e6:.0f} MB; {max_memory / 1e6:.0f} MB are allowed"],
            "there is too little memory for this",
        )


def _panel_nbytes(row: Row) -> int:
    """Each parent's panel, the float32 sum, its scaled copy and its encoding; and all block scales of the unit."""
    if row.inputs[0].arrangement is not None:
        return 4 * row.nbytes + sum(tensor.nbytes for tensor in row.inputs[0].tensors)
    storages = {row.storage, *(part.storage for part in row.inputs)}
    most = cut(row.outputs[0].shape, storages).most
    scales = _scales_nbytes(row)
    in_quants = 0 if storages.isdisjoint(QUANTS) else _QUANT
    return most * (12 + 4 * len(row.inputs) + in_quants) + scales * (1 + len(row.inputs))


def _scales_nbytes(row: Row) -> int:
    """All block scales of one side of a unit."""
    storages = {row.storage, *(part.storage for part in row.inputs)}
    return 4 * numel_of(row.outputs[0].shape) // BLOCK**2 if not storages.isdisjoint(FP8_BLOCKS) else 0
