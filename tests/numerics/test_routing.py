"""Choices of experts, against transformers' own routers, against sorting, and against torch in float64."""

from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.numerics import routing
from chimerakit.numerics.fp8 import F32
from chimerakit.numerics.routing import (
    Chosen,
    choose_experts,
    compare_rows,
    count_agreement,
    draw_states,
    score_experts,
)

pytestmark = pytest.mark.usefixtures("one_thread")

GroupScore = Literal["best", "best_two"]


def normal(*shape: int, seed: int) -> F32:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# -------------------------------------------------------------------------------------------- choices


def best(values: list[float], count: int) -> set[int]:
    """The largest values; of equal ones those that come first."""
    return set(sorted(range(len(values)), key=lambda n: (-values[n], n))[:count])


def sorted_choice(scores: list[float], top_k: int, num_groups: int, chosen_groups: int, how: GroupScore) -> set[int]:
    """The experts of one token, by sorting."""
    size = len(scores) // num_groups
    groups = [sorted(scores[g * size : (g + 1) * size])[-2:] for g in range(num_groups)]
    used = best([sum(group) if how == "best_two" else group[-1] for group in groups], chosen_groups)
    return best([s if n // size in used else -np.inf for n, s in enumerate(scores)], top_k)


@st.composite
def groupings(draw: st.DrawFn) -> dict[str, Any]:
    """Numbers of experts and groups that fit each other."""
    num_groups, size = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    chosen = draw(st.integers(1, num_groups))
    how = draw(st.sampled_from(["best", "best_two"])) if size > 1 else "best"
    top_k = draw(st.integers(1, chosen * size))
    return {"top_k": top_k, "num_groups": num_groups, "chosen_groups": chosen, "group_score": how, "size": size}


@given(groupings(), st.data())
def test_the_best_are_chosen_and_of_equal_ones_the_first(grouping: dict[str, Any], data: st.DataObject) -> None:
    """Experts of the best groups, as sorting finds them; few different scores, so that most tokens have ties."""
    experts = grouping["num_groups"] * grouping.pop("size")
    lines = st.lists(st.integers(-2, 2).map(float), min_size=experts, max_size=experts)
    scores = data.draw(st.lists(lines, min_size=1, max_size=5))
    chosen = choose_experts(np.array(scores, np.float32), None, **grouping)
    how = grouping["group_score"]
    numbers = grouping["top_k"], grouping["num_groups"], grouping["chosen_groups"]
    assert [set(np.flatnonzero(line).tolist()) for line in chosen] == [sorted_choice(s, *numbers, how) for s in scores]


def is_sure(scores: npt.NDArray[np.float64], grouping: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Tokens in which no rounding of a score can change a choice: others are not what routers are compared on."""

    def margin(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
        down: npt.NDArray[np.float64] = -np.sort(np.append(-values, np.full((len(values), 1), np.inf), axis=1), axis=1)
        return np.asarray(down[:, count - 1] - down[:, count])

    groups = scores.reshape(len(scores), grouping["num_groups"], -1)
    of_groups = np.sort(groups, axis=-1)[..., -2:].sum(-1) if grouping["group_score"] == "best_two" else groups.max(-1)
    used = of_groups >= -np.sort(-of_groups, axis=-1)[:, [grouping["chosen_groups"] - 1]]
    inside = np.where(used[..., None], groups, -np.inf).reshape(scores.shape)
    margins = margin(of_groups, grouping["chosen_groups"]), margin(inside, grouping["top_k"])
    return np.minimum(*margins) > np.float64(1e-5)


def as_chosen(indices: torch.Tensor, experts: int) -> Chosen:
    chosen = np.zeros((len(indices), experts), np.bool_)
    np.put_along_axis(chosen, indices.numpy(), values=True, axis=1)
    return chosen


def check(router: Any, gate: F32, bias: F32, grouping: dict[str, Any], scoring: Literal["sigmoid", "softmax"]) -> None:
    """A router of transformers and ours choose the same for every token that is sure, which nearly all are."""
    states = normal(200, gate.shape[1], seed=7)
    router.weight.data = torch.from_numpy(gate)
    with torch.no_grad():
        logits, _, indices = router(torch.from_numpy(states))
    scores = logits.double().sigmoid() if scoring == "sigmoid" else logits.double().softmax(-1)
    sure = is_sure(scores.numpy() + bias, grouping)
    assert sure.mean() > 0.95
    chosen = choose_experts(score_experts(states, gate, scoring), bias, **grouping)
    assert (chosen == as_chosen(indices, len(gate)))[sure].all()


@pytest.mark.parametrize(
    ("experts", "top_k", "num_groups", "chosen_groups"), [(256, 8, 8, 4), (64, 6, 1, 1), (12, 5, 4, 2), (8, 8, 4, 4)]
)
@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0])
def test_sigmoid_routers_with_a_bias_choose_as_deepseek_v3(
    experts: int, top_k: int, num_groups: int, chosen_groups: int, spread: float
) -> None:
    """The groups with the best two sums, and the bias in the choice only, from none to one that decides alone."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = SimpleNamespace(
        num_experts_per_tok=top_k,
        num_local_experts=experts,
        hidden_size=48,
        routed_scaling_factor=2.5,
        n_group=num_groups,
        topk_group=chosen_groups,
        norm_topk_prob=True,
    )
    bias = normal(experts, seed=5) * np.float32(spread)
    router = DeepseekV3TopkRouter(config)
    router.e_score_correction_bias = torch.from_numpy(bias)
    grouping = {"top_k": top_k, "num_groups": num_groups, "chosen_groups": chosen_groups, "group_score": "best_two"}
    check(router, normal(experts, 48, seed=3) / np.float32(5), bias, grouping, "sigmoid")


@pytest.mark.parametrize(
    ("method", "experts", "top_k", "num_groups", "chosen_groups"),
    [("group_limited_greedy", 160, 6, 8, 3), ("group_limited_greedy", 12, 4, 6, 2), ("greedy", 64, 6, 1, 1)],
)
def test_softmax_routers_in_groups_choose_as_deepseek_v2(
    method: str, experts: int, top_k: int, num_groups: int, chosen_groups: int
) -> None:
    """The groups with the best single expert, or none."""
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = SimpleNamespace(
        num_experts_per_tok=top_k,
        num_experts=experts,
        hidden_size=48,
        routed_scaling_factor=16.0,
        topk_method=method,
        n_group=num_groups,
        topk_group=chosen_groups,
    )
    grouping = {"top_k": top_k, "num_groups": num_groups, "chosen_groups": chosen_groups, "group_score": "best"}
    gate = normal(experts, 48, seed=3) / np.float32(2)
    check(DeepseekV2TopkRouter(config), gate, np.zeros(experts, np.float32), grouping, "softmax")


@pytest.mark.parametrize(
    ("model", "name", "experts", "top_k"),
    [
        ("mixtral", "MixtralTopKRouter", 8, 2),
        ("qwen2_moe", "Qwen2MoeTopKRouter", 60, 4),
        ("qwen3_moe", "Qwen3MoeTopKRouter", 128, 8),
        ("olmoe", "OlmoeTopKRouter", 64, 8),
    ],
)
def test_softmax_routers_choose_as_mixtral_and_its_heirs(model: str, name: str, experts: int, top_k: int) -> None:
    """The best of all experts; whether their shares are then scaled to 1 changes no choice."""
    from importlib import import_module

    config = SimpleNamespace(
        num_experts_per_tok=top_k,
        num_local_experts=experts,
        num_experts=experts,
        hidden_size=48,
        norm_topk_prob=True,
    )
    router = getattr(import_module(f"transformers.models.{model}.modeling_{model}"), name)(config)
    grouping = {"top_k": top_k, "num_groups": 1, "chosen_groups": 1, "group_score": "best"}
    check(router, normal(experts, 48, seed=3) / np.float32(2), np.zeros(experts, np.float32), grouping, "softmax")


@pytest.mark.parametrize(
    ("grouping", "says"),
    [
        ({"top_k": 2, "num_groups": 3, "chosen_groups": 1}, "3 groups of 8"),
        ({"top_k": 2, "num_groups": 2, "chosen_groups": 3}, "2 groups of 8"),
        ({"top_k": 5, "num_groups": 2, "chosen_groups": 1}, "5 of 4 experts"),
        ({"top_k": 0, "num_groups": 1, "chosen_groups": 1}, "0 of 8 experts"),
        ({"top_k": 2, "num_groups": 8, "chosen_groups": 4}, "two experts of groups of one"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(grouping: dict[str, Any], says: str) -> None:
    """Compiled loops check no bounds."""
    with pytest.raises(ValueError, match=says):
        choose_experts(np.zeros((1, 8), np.float32), None, group_score="best_two", **grouping)


# --------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0, 1e30])
def test_scores_are_those_of_float64(scoring: Literal["sigmoid", "softmax"], size: float) -> None:
    """To two units in the last place of float32, from tiny logits to such as are infinite in float32."""
    states, gate = normal(9, 70, seed=1), normal(13, 70, seed=2) * np.float32(size)
    if size > 1e9:
        states = states * np.float32(1e9)
    logits = (torch.from_numpy(states).double() @ torch.from_numpy(gate).double().T).float().double()
    logits = logits.clamp(-3.4028234663852886e38, 3.4028234663852886e38)
    expected = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)
    np.testing.assert_allclose(score_experts(states, gate, scoring), expected.numpy(), rtol=2.4e-7, atol=1e-44)


def test_scores_of_a_token_do_not_depend_on_others() -> None:
    """Not in the last bit, so that states may be cut into pieces of any size."""
    states, gate = normal(20, 333, seed=1), normal(7, 333, seed=2)
    alone = np.concatenate([score_experts(states[t : t + 1], gate, "sigmoid") for t in range(20)])
    assert alone.tobytes() == score_experts(states, gate, "sigmoid").tobytes()


def test_logits_are_added_in_the_order_of_columns() -> None:
    """In float64, as a plain loop does: so they are the same on every CPU."""
    states, gate = normal(3, 131, seed=1), normal(5, 131, seed=2)
    totals, sums = np.zeros((3, 5)), np.zeros((3, 5))
    for h in range(131):
        totals += states[:, [h]].astype(np.float64) * gate[:, h].astype(np.float64)
    routing._add_products(states, np.ascontiguousarray(gate.T), sums)
    assert sums.tobytes() == totals.tobytes()


def test_states_of_another_width_are_refused() -> None:
    """They are of another model."""
    with pytest.raises(ValueError, match="states of 6 for a gate of 5"):
        score_experts(np.zeros((2, 6), np.float32), np.zeros((3, 5), np.float32), "sigmoid")


# ------------------------------------------------------------------------------------- rows, agreement


def test_rows_are_compared_as_torch_does() -> None:
    """Cosine and relative change of the norm, one for each expert."""
    a = normal(6, 200, seed=1)
    b = a + normal(6, 200, seed=2) * np.float32(0.3)
    x, y = torch.from_numpy(a).double(), torch.from_numpy(b).double()
    found = compare_rows(a, b)
    np.testing.assert_allclose(found.cosines, torch.nn.functional.cosine_similarity(x, y).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.norm_changes, (y.norm(dim=1) / x.norm(dim=1) - 1).numpy(), rtol=1e-10)


def test_rows_without_a_direction_have_no_figures() -> None:
    """Rows of zeros and rows that are not finite; a row that becomes zeros has lost all its norm."""
    a, b = np.ones((4, 5), np.float32), np.ones((4, 5), np.float32)
    a[0], b[1], a[2, 3] = 0, 0, np.nan
    found = compare_rows(a, b)
    np.testing.assert_array_equal(np.isnan(found.cosines), [True, True, True, False])
    np.testing.assert_array_equal(found.norm_changes, [np.nan, -1, np.nan, 0])
    assert found.cosines[3] == pytest.approx(1)


def test_agreement_is_counted_as_sets_are() -> None:
    """Experts that both choose, tokens with the same set, and how often each chooses each expert."""
    a, b = (np.argsort(normal(50, 6, seed=seed), axis=1) < 2 for seed in (1, 2))
    b[:20] = a[:20]
    found = count_agreement(a, b)
    sets = [(set(np.flatnonzero(x)), set(np.flatnonzero(y))) for x, y in zip(a, b, strict=True)]
    assert found.shared == sum(len(x & y) for x, y in sets)
    assert found.same == sum(x == y for x, y in sets) >= 20
    assert found.loads.tolist() == [[sum(e in pair[side] for pair in sets) for e in range(6)] for side in (0, 1)]


# ---------------------------------------------------------------------------------------- drawn states


def test_drawn_states_prefer_no_direction_and_have_an_rms_of_1() -> None:
    """As what a norm without weights gives; every pair of numbers is uncorrelated to within chance."""
    states = draw_states((4000, 20), (0, 3, 0)).astype(np.float64)
    np.testing.assert_allclose(np.sqrt(np.square(states).mean(1)), 1, rtol=1e-6)
    np.testing.assert_allclose(states.T @ states / 4000, np.eye(20), atol=0.09)
    np.testing.assert_allclose(states.mean(0), 0, atol=0.09)


def test_drawn_states_are_the_same_for_the_same_seed_only() -> None:
    """So figures of them can be made again."""
    assert draw_states((3, 5), (0, 1)).tobytes() == draw_states((3, 5), (0, 1)).tobytes()
    assert draw_states((3, 5), (0, 1)).tobytes() != draw_states((3, 5), (0, 2)).tobytes()
