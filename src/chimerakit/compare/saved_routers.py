"""Routers in the file of a difference map: an array of [layers, experts] for each figure, the rest in its description.

    m = np.load("map.npz")
    routers = json.loads(m["description.json"])["routers"]        # in the order of the arrays' rows
    least = np.nanmin(m["router_cosine"], axis=1)

NaN stands where a figure has no meaning, and behind the last expert of a layer that has fewer than others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from chimerakit.compare.arrays import DamageError, DType, decode_array, encode_array
from chimerakit.compare.routers import Choices, Figures, RouterDifference

if TYPE_CHECKING:
    import numpy.typing as npt

ROUTER_MEANINGS = {
    "router_cosine": "[layers, experts]: cosine of the rows of the gates of a and b; NaN where there is none",
    "router_norm_change": "(|b| - |a|) / |a| of these rows",
    "router_bias_change": "b - a of the correction biases; NaN where there are none",
    "router_load_a": "how many of the layer's tokens a's router chooses the expert for; 0 where it was not asked",
    "router_load_b": "the same of b's router",
}
"""What each array holds, layer by layer in the order of `routers`, expert by expert."""


class DescribedChoices(Struct, frozen=True, gc=False):
    """What is counted of a layer's choices besides loads."""

    tokens: int
    top_k: int
    shared: int
    same: int


class DescribedRouter(Struct, frozen=True, gc=False):
    """One row of the arrays."""

    layer: int
    gate: str
    experts: int
    has_bias: bool
    choices: DescribedChoices | None
    objection: str


def describe_routers(routers: Iterable[RouterDifference]) -> tuple[DescribedRouter, ...]:
    """Everything of routers that is in no array."""
    return tuple(
        DescribedRouter(
            layer=router.layer,
            gate=router.gate,
            experts=len(router.cosines),
            has_bias=router.bias_changes is not None,
            choices=None if (c := router.choices) is None else DescribedChoices(c.tokens, c.top_k, c.shared, c.same),
            objection=router.objection,
        )
        for router in routers
    )


def encode_routers(routers: Sequence[RouterDifference]) -> dict[str, bytes]:
    """The bytes of each array."""
    width = max((len(router.cosines) for router in routers), default=0)
    choices = [router.choices for router in routers]
    rows: dict[str, list[Any]] = {
        "router_cosine": [_padded(router.cosines, width) for router in routers],
        "router_norm_change": [_padded(router.norm_changes, width) for router in routers],
        "router_bias_change": [_padded(router.bias_changes or (), width) for router in routers],
        "router_load_a": [_counts(() if c is None else c.loads_a, width) for c in choices],
        "router_load_b": [_counts(() if c is None else c.loads_b, width) for c in choices],
    }
    return {field: encode_array(rows[field], _dtype(field), (len(routers), width)) for field in ROUTER_MEANINGS}


def _padded(figures: Figures, width: int) -> list[float]:
    return [math.nan if figure is None else figure for figure in figures] + [math.nan] * (width - len(figures))


def _counts(loads: tuple[int, ...], width: int) -> list[int]:
    return [*loads, *[0] * (width - len(loads))]


def _dtype(field: str) -> DType:
    return "<i8" if field.startswith("router_load") else "<f8"


# ------------------------------------------------------------------------------------------- reading


def decode_routers(said: Sequence[DescribedRouter], members: Mapping[str, bytes]) -> tuple[RouterDifference, ...]:
    """Routers of their arrays' bytes, each with what can be true of a router. Raises DamageError."""
    if len({router.gate for router in said}) != len(said) or any(router.experts < 0 for router in said):
        raise DamageError("a router is in it twice, or has no number of experts")
    shape = (len(said), max((router.experts for router in said), default=0))
    arrays = {field: decode_array(field, members[field], _dtype(field), shape) for field in ROUTER_MEANINGS}
    return tuple(
        _decode_router(router, {field: array[row] for field, array in arrays.items()})
        for row, router in enumerate(said)
    )


def _decode_router(said: DescribedRouter, row: "Mapping[str, npt.NDArray[Any]]") -> RouterDifference:
    count = said.experts
    if said.layer < 0 or any(_is_set(numbers[count:]) for numbers in row.values()):
        raise DamageError(f"the router {said.gate} has more than its {count} experts, or a layer below 0")
    if not said.has_bias and _is_set(row["router_bias_change"]):
        raise DamageError(f"router_bias_change holds changes of {said.gate}, which has no bias")
    return RouterDifference(
        layer=said.layer,
        gate=said.gate,
        cosines=_figures("router_cosine", row, count, -1.0, 1.0),
        norm_changes=_figures("router_norm_change", row, count, -1.0),
        bias_changes=_figures("router_bias_change", row, count, -math.inf) if said.has_bias else None,
        choices=_choices(said, row["router_load_a"].tolist()[:count], row["router_load_b"].tolist()[:count]),
        objection=said.objection,
    )


def _is_set(numbers: "npt.NDArray[Any]") -> bool:
    """Whether there is anything but what fills a row up: 0 or NaN."""
    return any(number != 0 and number == number for number in numbers.tolist())


def _figures(
    field: str, row: "Mapping[str, npt.NDArray[Any]]", count: int, least: float, most: float = math.inf
) -> Figures:
    numbers = row[field].tolist()[:count]
    if any(math.isinf(number) or number < least or number > most for number in numbers):
        raise DamageError(f"{field} holds what is none")
    return tuple(None if math.isnan(number) else number for number in numbers)


def _choices(said: DescribedRouter, loads_a: list[int], loads_b: list[int]) -> Choices | None:
    found = said.choices
    if found is None:
        if any(loads_a) or any(loads_b):
            raise DamageError(f"the router {said.gate} chooses experts without having been asked")
        return None
    pairs = found.tokens * found.top_k
    if (
        not 0 < found.top_k <= said.experts
        or not 0 <= found.same <= found.tokens
        or found.tokens == 0
        or not found.same * found.top_k <= found.shared <= pairs
        or any(not 0 <= load <= found.tokens for load in (*loads_a, *loads_b))
        or (sum(loads_a), sum(loads_b)) != (pairs, pairs)
    ):
        raise DamageError(f"the choices of the router {said.gate} do not add up")
    return Choices(
        tokens=found.tokens,
        top_k=found.top_k,
        shared=found.shared,
        same=found.same,
        loads_a=tuple(loads_a),
        loads_b=tuple(loads_b),
    )
