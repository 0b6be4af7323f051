"""Files of states and the checkpoints that gave them -> how healthy a child's routers are, layer by layer.

The router of each layer is asked by its own code (`numerics.routing`), on the states that transformers gave it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from chimerakit.anatomy import Anatomy
from chimerakit.anatomy.routing import Routing
from chimerakit.compare.asking import choose
from chimerakit.compare.states import RecordedStates, open_states, read_rows
from chimerakit.errors import CheckpointError
from chimerakit.evaluate.reading import gates_of
from chimerakit.evaluate.records import LayerHealth, RouterHealth
from chimerakit.execute import Inputs
from chimerakit.formats import open_checkpoint
from chimerakit.records import Input, Unit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chimerakit.numerics.fp8 import F32
    from chimerakit.numerics.routing import Chosen

_OVERLOADED = 2.0
"""Times the mean load."""
_SIDE = "model"


class _Router(NamedTuple):
    """What chooses in one layer of one model."""

    routing: Routing
    gate: "F32"
    bias: "F32 | None"

    def choose(self, states: "F32") -> "Chosen":
        """(tokens, experts)."""
        return choose(self.routing, states, self.gate, self.bias)

    def margin(self, states: "F32", chosen: "Chosen") -> float | None:
        """The median over tokens; None where all experts are chosen."""
        from chimerakit.numerics.routing import margins, score_experts

        scores = score_experts(states, self.gate, self.routing.scoring)
        bias = self.bias[0] if self.routing.has_bias and self.bias is not None else None
        found = float(median(margins(scores, bias, chosen, self.routing.num_groups).tolist()))
        return found if math.isfinite(found) else None


def check_routers(models: Mapping[str, Path]) -> None:
    """Refuse models whose routers can't be asked, or compared with each other."""
    shapes = {}
    for name, path in models.items():
        routing = Anatomy(open_checkpoint(path)).routing()
        if isinstance(routing, str):
            raise CheckpointError(f"its routers can't be asked: {routing}", where=path)
        shapes[name] = {layer: gate.shape for layer, gate in gates_of(path).items()}, routing.top_k
    (first, wanted), *others = shapes.items()
    for name, found in others:
        if found != wanted:
            raise CheckpointError("has other routers", where=models[name], expected=f"those of {first}")


def health_of(models: Mapping[str, Path], states: Mapping[str, Path]) -> list[RouterHealth]:
    """Every model's routers, against those of all others. states: what each model's routers received, of the same tokens."""
    files = {name: open_states(path) for name, path in states.items()}
    layers = sorted(gates_of(next(iter(models.values()))))
    found: dict[str, list[LayerHealth]] = {name: [] for name in models}
    for layer in layers:
        routers = {name: _read_router(path, layer) for name, path in models.items()}
        received = {name: _states_of(file, layer) for name, file in files.items()}
        own = {name: routers[name].choose(received[name]) for name in models}
        for name, router in routers.items():
            others = [other for other in models if other != name]
            found[name].append(
                _layer_health(
                    layer,
                    own[name],
                    router.margin(received[name], own[name]),
                    {other: _overlap(own[name], own[other]) for other in others},
                    {other: _overlap(own[name], router.choose(received[other])) for other in others},
                )
            )
    return [RouterHealth(name, tuple(each)) for name, each in found.items()]


def _layer_health(
    layer: int, chosen: "Chosen", margin: float | None, overlap: dict[str, float], steady: dict[str, float]
) -> LayerHealth:
    loads = chosen.sum(0).tolist()
    total, mean = sum(loads), sum(loads) / len(loads)
    shares = [load / total for load in loads if load]
    return LayerHealth(
        layer=layer,
        loads=tuple(loads),
        evenness=-math.fsum(p * math.log(p) for p in shares) / math.log(len(loads)) if len(loads) > 1 else 1.0,
        dead=loads.count(0),
        overloaded=sum(load > _OVERLOADED * mean for load in loads),
        margin=margin,
        overlap=overlap,
        steady=steady,
    )


def _overlap(a: "Chosen", b: "Chosen") -> float:
    """The share of chosen experts that are chosen in both."""
    return float((a & b).sum() / a.sum())


def _read_router(path: Path, layer: int) -> _Router:
    checkpoint = open_checkpoint(path)
    anatomy = Anatomy(checkpoint)
    routing = anatomy.routing()
    assert isinstance(routing, Routing)  # looked at before
    parts = {
        len(unit.shape): unit
        for unit in anatomy.units().values()
        if unit.role.component == "router" and unit.role.layer == layer and not unit.role.mtp
    }
    with Inputs({_SIDE: checkpoint.root}, {_SIDE: checkpoint.signatures}) as inputs:
        bias = _values(parts[1], inputs) if 1 in parts else None
        return _Router(routing, _values(parts[2], inputs), bias)


def _values(unit: Unit, inputs: Inputs) -> "F32":
    """(rows, cols); of a vector one row."""
    import numpy as np

    rows, cols = unit.shape if len(unit.shape) == 2 else (1, unit.shape[0])
    part = Input(_SIDE, 1.0, unit.storage, unit.tensors)
    return np.concatenate(list(read_rows(part, (rows, cols), inputs, lambda _: None)))


def _states_of(file: RecordedStates, layer: int) -> "npt.NDArray[np.float32]":
    import numpy as np

    side = file.part(layer).parent
    with Inputs({side: file.file.root}, {side: file.file.signatures}) as inputs:
        return np.concatenate(list(file.of(layer, file.layers[layer].shape[1], inputs, lambda _: None)))
