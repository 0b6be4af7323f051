"""Reads the routers of two checkpoints, and asks both on the same states which experts they choose.

A router's choices are the model's own: each side chooses by its config. Where that can't be done, gates and biases are
compared all the same, and the reason stands in the choices' place. Gates are small; those of a layer are in memory at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from chimerakit.anatomy import Anatomy
from chimerakit.anatomy.routing import Routing
from chimerakit.compare.routers import Choices, Figures, RouterDifference
from chimerakit.compare.states import SIDE, AnyStates, RecordedStates, check_states, read_rows
from chimerakit.dtypes import numel_of
from chimerakit.errors import CheckpointError
from chimerakit.events import Listener, Report
from chimerakit.execute import Inputs
from chimerakit.plan.memory import needs_of_scan
from chimerakit.plan.panels import largest_panel
from chimerakit.records import Checkpoint
from chimerakit.runners import Runner
from chimerakit.scan import ScanJob, ScanUnit, run_scan

if TYPE_CHECKING:
    from chimerakit.numerics.fp8 import F32
    from chimerakit.numerics.routing import Chosen

A, B = "a", "b"


class _Router(NamedTuple):
    """What is to be compared of one layer."""

    layer: int
    experts: int
    hidden: int
    gate: ScanUnit
    bias: ScanUnit | None
    routings: dict[str, Routing]
    """How each side chooses; empty where choices are not compared, as there are no states, or nobody could be asked."""
    objection: str
    """Why they are not, though there are states."""


def compare_routers(
    sides: Mapping[str, Checkpoint],
    anatomies: Mapping[str, Anatomy],
    units: Sequence[ScanUnit],
    states: AnyStates | None,
    *,
    runner: Runner,
    listener: Listener,
) -> list[RouterDifference]:
    """The routers of all layers. units: those that both sides have with the same shape, and that can be decoded.

    Read are gates, biases and states. Raises PlanError (memory), CheckpointError (states that fit no router).
    """
    routers = _find_routers(anatomies, units, states)
    _check_states(states, routers)
    if not routers:
        return []
    sizes = [(router.experts, router.hidden) for router in routers]
    read = [tensor.shape for tensor in states.layers.values()] if isinstance(states, RecordedStates) else []
    weights = max(*map(numel_of, sizes), largest_panel((shape, ()) for shape in read))
    workers = runner.workers(needs_of_scan(len(units), weights, len(sides)))
    jobs = _make_jobs(sides, routers, states)
    found = run_scan(
        "comparing routers", partial(_compare_job, routers, states), jobs, workers=workers, listener=listener
    )
    return sorted(found, key=lambda router: (router.layer, router.gate))


def _find_routers(
    anatomies: Mapping[str, Anatomy], units: Sequence[ScanUnit], states: AnyStates | None
) -> list[_Router]:
    """A router is the gate, which is a matrix, and its correction bias, a number for each expert."""
    parts = [(unit, unit.sides[A].tensors[0].shape) for unit in units if unit.role.component == "router"]
    biases = {(unit.role.layer, *shape): unit for unit, shape in parts if len(shape) == 1}
    known = {side: anatomy.routing() for side, anatomy in anatomies.items()}
    found = []
    for gate, shape in parts:
        if len(shape) == 2 and gate.role.layer is not None and numel_of(shape):
            router = _Router(gate.role.layer, *shape, gate, biases.get((gate.role.layer, shape[0])), {}, "")
            is_asked = states is not None and (not isinstance(states, RecordedStates) or router.layer in states.layers)
            found.append(_with_routings(router, known) if is_asked else router)
    return found


def _with_routings(router: _Router, known: Mapping[str, Routing | str]) -> _Router:
    """How the sides choose, or why their choices can't be compared."""
    routings = {side: routing for side, routing in known.items() if isinstance(routing, Routing)}
    reasons = [f"{side}: {routing}" for side, routing in known.items() if isinstance(routing, str)]
    for side, routing in routings.items():
        if routing.num_experts != router.experts:
            reasons.append(f"{side}: {router.experts} rows in the gate, {routing.num_experts} experts in config.json")
        if routing.has_bias and router.bias is None:
            reasons.append(f"{side}: a correction bias is added, and there is none that can be compared")
    numbers = sorted({routing.top_k for routing in routings.values()})
    if len(numbers) > 1:
        reasons.append(f"they choose different numbers of experts: {' and '.join(map(str, numbers))}")
    return router._replace(routings={} if reasons else routings, objection="; ".join(reasons))


def _check_states(states: AnyStates | None, routers: Sequence[_Router]) -> None:
    """Refuse states that nobody can be asked on."""
    if states is not None and not routers:
        raise CheckpointError("states are given, and there is no router that both checkpoints have")
    if isinstance(states, RecordedStates):
        check_states(states, {router.layer: router.hidden for router in routers})


def _make_jobs(sides: Mapping[str, Checkpoint], routers: Sequence[_Router], states: AnyStates | None) -> list[ScanJob]:
    """A job for each router: its gate, its bias, the states that it is asked on."""
    read = {**sides, SIDE: states.file} if isinstance(states, RecordedStates) else sides
    roots = {name: checkpoint.root for name, checkpoint in read.items()}
    signatures = {name: checkpoint.signatures for name, checkpoint in read.items()}
    jobs = []
    for number, router in enumerate(routers):
        units = [router.gate] if router.bias is None else [router.gate, router.bias]
        if isinstance(states, RecordedStates) and router.routings:
            part = states.part(router.layer)
            units.append(ScanUnit(part.tensors[0].name, router.gate.role, {SIDE: part}))
        jobs.append(ScanJob(number, roots, signatures, tuple(units)))
    return jobs


# ------------------------------------------------------------------------------------------ one router


def _compare_job(
    routers: Sequence[_Router], states: AnyStates | None, job: ScanJob, inputs: Inputs, report: Report
) -> RouterDifference:
    return _compare_router(routers[job.id], states, inputs, report)


def _compare_router(router: _Router, states: AnyStates | None, inputs: Inputs, report: Report) -> RouterDifference:
    from chimerakit.numerics.routing import compare_rows

    gates = _read(router.gate, (router.experts, router.hidden), inputs, report)
    biases = _read(router.bias, (1, router.experts), inputs, report)
    rows = compare_rows(gates[A], gates[B])
    objection = router.objection or _nonfinite(router, gates, biases)
    choices = None
    if states is not None and router.routings and not objection:
        pieces = states.of(router.layer, router.hidden, inputs, report)
        choices = _compare_choices(router, gates, biases, pieces)
    return RouterDifference(
        layer=router.layer,
        gate=router.gate.name,
        cosines=_figures(rows.cosines.tolist()),
        norm_changes=_figures(rows.norm_changes.tolist()),
        bias_changes=None if router.bias is None else _figures(_changes(biases)),
        choices=choices,
        objection=objection,
    )


def _read(unit: ScanUnit | None, shape: tuple[int, int], inputs: Inputs, report: Report) -> "dict[str, F32]":
    import numpy as np

    sides = {} if unit is None else unit.sides
    return {side: np.concatenate(list(read_rows(part, shape, inputs, report))) for side, part in sides.items()}


def _nonfinite(router: _Router, gates: "Mapping[str, F32]", biases: "Mapping[str, F32]") -> str:
    """Whose numbers leave open what is chosen, if anybody's."""
    from chimerakit.numerics.compare import is_finite

    bad = []
    for side, routing in router.routings.items():
        bad += [f"{side}: NaN or infinity in the gate"] if not is_finite(gates[side]) else []
        bad += [f"{side}: NaN or infinity in the bias"] if routing.has_bias and not is_finite(biases[side]) else []
    return "; ".join(bad)


def _changes(biases: "Mapping[str, F32]") -> list[float]:
    a, b = biases[A][0].tolist(), biases[B][0].tolist()
    return [y - x for x, y in zip(a, b, strict=True)]


def _figures(numbers: Sequence[float]) -> Figures:
    return tuple(number if math.isfinite(number) else None for number in numbers)


def _compare_choices(
    router: _Router, gates: "Mapping[str, F32]", biases: "Mapping[str, F32]", states: "Iterator[F32]"
) -> Choices:
    import numpy as np

    from chimerakit.numerics.routing import count_agreement

    tokens = shared = same = 0
    loads = np.zeros((2, router.experts), np.int64)
    for values in states:
        chosen = {side: choose(how, values, gates[side], biases.get(side)) for side, how in router.routings.items()}
        found = count_agreement(chosen[A], chosen[B])
        tokens, shared, same = tokens + len(values), shared + found.shared, same + found.same
        loads += found.loads
    loads_a, loads_b = map(tuple, loads.tolist())
    top_k = router.routings[A].top_k
    return Choices(tokens=tokens, top_k=top_k, shared=shared, same=same, loads_a=loads_a, loads_b=loads_b)


def choose(routing: Routing, states: "F32", gate: "F32", bias: "F32 | None") -> "Chosen":
    """The experts that a router chooses: (tokens, experts). bias: (1, experts)."""
    from chimerakit.numerics.routing import choose_experts, score_experts

    return choose_experts(
        score_experts(states, gate, routing.scoring),
        bias[0] if routing.has_bias and bias is not None else None,
        top_k=routing.top_k,
        num_groups=routing.num_groups,
        chosen_groups=routing.chosen_groups,
        group_score=routing.group_score,
    )
