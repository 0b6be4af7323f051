"""Which experts a router chooses for a token, and how two routers differ: rows of gates, scores, groups, the best few.

    logit  = state . row of the gate       added up in float64, rounded to float32 once
    score  = sigmoid(logit), or softmax over all logits; float32
    choice = the top_k experts with the largest score + bias, only in the groups whose best score (or best two together) is
             largest, where experts stand in groups

The share with which a chosen expert is weighted is left out: it changes no choice. Ties, which torch.topk leaves open,
go to the lowest number. Models that multiply in bfloat16 have coarser logits, and more ties. Everything is computed in
one order, the exponential included, so that choices are the same on every CPU.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from chimerakit.numerics.compare import Differences
from chimerakit.numerics.fp8 import F32
from chimerakit.numerics.kernels import inlined, kernel, require

F64 = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]
"""(tokens, experts)."""

_STEP = 64
"""Columns of the gate that are used for all tokens before the next; they stay in the cache."""
_LARGEST = float(np.finfo(np.float32).max)
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
"""Their sum is ln 2; the first has so few bits that its product with an exponent is exact."""
_INVERSES = tuple(1 / n for n in range(1, 14))
_LEAST = -745.0
"""Below it the exponential is 0 in float64."""


class RowFigures(NamedTuple):
    """How two gates' rows lie to each other: one figure for each expert, NaN where there is none."""

    cosines: F64
    norm_changes: F64
    """(|b| - |a|) / |a|."""


class Agreement(NamedTuple):
    """The choices of two routers for the same tokens, counted."""

    shared: int
    """Chosen by both, over all tokens."""
    same: int
    """Tokens for which both choose the same experts."""
    loads: npt.NDArray[np.int64]
    """(2, experts): how often each router chooses each expert."""


def compare_rows(a: F32, b: F32) -> RowFigures:
    """Row by row; a, b: (experts, hidden). A row with NaN or infinity, and one of zeros, has no figures."""
    require(a.shape == b.shape, f"{a.shape} against {b.shape}")
    found = RowFigures(np.full(len(a), np.nan), np.full(len(a), np.nan))
    for expert in range(len(a)):
        row = Differences()
        row.add(a[expert], b[expert])
        norm_a, norm_b = map(math.sqrt, row.squared_norms)
        if row.num_nonfinite or not norm_a:
            continue
        found.norm_changes[expert] = (norm_b - norm_a) / norm_a
        if norm_b:
            found.cosines[expert] = max(-1.0, min(1.0, row.inner_product / (norm_a * norm_b)))
    return found


def score_experts(states: F32, gate: F32, scoring: Literal["sigmoid", "softmax"]) -> F32:
    """Each expert's score for each token, (tokens, experts); states: (tokens, hidden), gate: (experts, hidden), all finite."""
    require(states.shape[1] == gate.shape[1], f"states of {states.shape[1]} for a gate of {gate.shape[1]}")
    sums = np.zeros((len(states), len(gate)))
    _add_products(np.ascontiguousarray(states), np.ascontiguousarray(gate.T), sums)
    scores = np.clip(sums, -_LARGEST, _LARGEST).astype(np.float32)
    _score(scores, scoring == "softmax")
    return scores


def choose_experts(
    scores: F32,
    bias: F32 | None,
    *,
    top_k: int,
    num_groups: int,
    chosen_groups: int,
    group_score: Literal["best", "best_two"],
) -> Chosen:
    """The experts that are chosen; (tokens, experts), as the scores. bias: (experts,), finite, for the choice only.

    Experts stand in num_groups groups of neighbours, of which chosen_groups are used.
    """
    experts = scores.shape[1]
    size = experts // max(1, num_groups)
    require(0 < chosen_groups <= num_groups and size * num_groups == experts, f"{num_groups} groups of {experts}")
    require(0 < top_k <= size * chosen_groups, f"{top_k} of {size * chosen_groups} experts")
    require(size > 1 or group_score == "best", "two experts of groups of one")
    chosen = np.zeros(scores.shape, np.bool_)
    ranked = np.ascontiguousarray(scores if bias is None else scores + bias)
    _choose(ranked, num_groups, chosen_groups, group_score == "best_two", top_k, chosen)
    return chosen


def margins(scores: F32, bias: F32 | None, chosen: Chosen, num_groups: int) -> F64:
    """For each token, by how much the last expert that was chosen is ahead of the first that was not: (tokens,).

    Of experts in groups, only groups of which one was chosen are looked at. Where all are chosen it is infinite.
    """
    ranked = (scores if bias is None else scores + bias).astype(np.float64)
    groups = chosen.reshape(len(chosen), num_groups, -1).any(2).repeat(scores.shape[1] // num_groups, axis=1)
    last: F64 = np.where(chosen, ranked, np.inf).min(1)
    first: F64 = np.where(groups & ~chosen, ranked, -np.inf).max(1)
    return last - first


def count_agreement(a: Chosen, b: Chosen) -> Agreement:
    """What two routers' choices have in common."""
    return Agreement(
        shared=int(np.count_nonzero(a & b)),
        same=int((a == b).all(1).sum()),
        loads=np.stack([a.sum(0), b.sum(0)]).astype(np.int64),
    )


def draw_states(shape: tuple[int, int], seed: Sequence[int]) -> F32:
    """Normal states that prefer no direction, each scaled to an RMS of 1 as a norm without weights does. (tokens, hidden)"""
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    squares = np.square(drawn, dtype=np.float64).cumsum(1)[:, -1:]  # one after the other on every CPU, as no sum is
    return (drawn / np.sqrt(squares / shape[1])).astype(np.float32)


# ----------------------------------------------------------------------------------------- kernels


@kernel
def _add_products(states: Any, columns: Any, sums: Any) -> None:
    """Add states @ columns to sums, one column of the gate after the other. (tokens, hidden), (hidden, experts) float32."""
    tokens, hidden = states.shape
    for first in range(0, hidden, _STEP):
        last = min(hidden, first + _STEP)
        paired = first + (last - first) // 4 * 4
        for t in range(tokens):
            total = sums[t]
            for h in range(first, paired, 4):  # four at a time: the sums are fetched and kept a quarter as often
                p, q = np.float64(states[t, h]), np.float64(states[t, h + 1])
                r, s = np.float64(states[t, h + 2]), np.float64(states[t, h + 3])
                c, d, e, f = columns[h], columns[h + 1], columns[h + 2], columns[h + 3]
                for j in range(total.size):
                    total[j] = (((total[j] + p * c[j]) + q * d[j]) + r * e[j]) + s * f[j]
            for h in range(paired, last):
                p, c = np.float64(states[t, h]), columns[h]
                for j in range(total.size):
                    total[j] += p * c[j]


@inlined
def _exp(x: Any) -> Any:
    """e^x for x <= 0, by arithmetic that every CPU rounds alike: libraries differ in the last bit."""
    if x < _LEAST:
        return 0.0
    power = math.floor(x * _LOG2_E + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    total = 1.0
    for n in range(12, -1, -1):
        total = 1.0 + rest * total * _INVERSES[n]
    return math.ldexp(total, int(power))


@kernel
def _score(logits: Any, is_softmax: Any) -> None:
    """Turn logits into scores, in place. (tokens, experts) float32."""
    for t in range(logits.shape[0]):
        line = logits[t]
        if is_softmax:
            most = np.float64(line.max())
            total = 0.0
            for j in range(line.size):
                total += _exp(np.float64(line[j]) - most)
            for j in range(line.size):
                line[j] = np.float32(_exp(np.float64(line[j]) - most) / total)
        else:
            for j in range(line.size):
                small = _exp(-abs(np.float64(line[j])))
                line[j] = np.float32((1.0 if line[j] >= 0 else small) / (1.0 + small))


@inlined
def _mark_largest(values: Any, count: Any, marks: Any, is_open: Any, size: Any) -> None:
    """Mark the `count` largest values of open groups of `size`; of equal ones the first."""
    for _ in range(count):
        best = -1
        for j in range(values.size):
            if is_open[j // size] and not marks[j] and (best < 0 or values[j] > values[best]):
                best = j
        marks[best] = True


@kernel
def _choose(scores: Any, num_groups: Any, chosen_groups: Any, is_best_two: Any, top_k: Any, chosen: Any) -> None:
    """Mark the chosen experts. (tokens, experts)"""
    size = scores.shape[1] // num_groups
    of_groups = np.empty(num_groups, np.float32)
    everything = np.ones(1, np.bool_)
    for t in range(scores.shape[0]):
        for g in range(num_groups):
            best = second = np.float32(-np.inf)
            for score in scores[t, g * size : (g + 1) * size]:
                best, second = max(best, score), max(second, min(best, score))
            of_groups[g] = best + second if is_best_two else best
        is_open = np.zeros(num_groups, np.bool_)
        _mark_largest(of_groups, chosen_groups, is_open, everything, num_groups)
        _mark_largest(scores[t], top_k, chosen[t], is_open, size)
