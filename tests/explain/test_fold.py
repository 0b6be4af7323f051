"""Folding: random lists of rules over random models, and what they do, folded back."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chimerakit.explain.fold import Selector, Taken, fold
from chimerakit.records import Component, Role
from tests.effort import examples

COMPONENTS: tuple[Component, ...] = ("attention", "norm", "router", "shared_experts", "routed_experts", "dense_mlp")
LAYERS, EXPERTS, ACTIONS = 4, 3, 4
ROLES = [
    Role("embedding"),
    Role("head"),
    Role("norm"),
    Role("dense_mlp", layer=0),
    *(Role(c, layer=n, mtp=n == LAYERS) for n in range(LAYERS + 1) for c in ("attention", "norm")),
    *(Role(c, layer=n, mtp=n == LAYERS) for n in range(1, LAYERS + 1) for c in ("router", "shared_experts")),
    *(Role("routed_experts", n, e, mtp=n == LAYERS) for n in range(1, LAYERS + 1) for e in range(EXPERTS)),
]
KINDS = [role.component for role in ROLES]


def some(values: Any) -> Any:
    """None, or some of the values."""
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(sorted).map(tuple)


RULES = st.builds(
    Taken,
    st.integers(0, ACTIONS - 1),
    st.builds(
        Selector,
        some(COMPONENTS),
        some(range(LAYERS)),
        some(range(EXPERTS)),
        st.sampled_from([None, None, False, True]),
    ),
)


def matches(selector: Selector, role: Role) -> bool:
    """What a recipe's selectors mean, one by one."""
    return (
        (selector.kinds is None or role.component in selector.kinds)
        and (selector.layers is None or (role.layer in selector.layers and not role.mtp))
        and (selector.experts is None or role.expert in selector.experts)
        and (selector.mtp is None or role.mtp == selector.mtp)
    )


def action_of(rules: list[Taken], role: Role) -> int:
    """What the first rule that matches does; the base's action is 0."""
    return next((rule.action for rule in rules if matches(rule.selector, role)), 0)


@settings(max_examples=examples(quick=150, ci=500, prove=10_000), deadline=None)
@given(st.lists(RULES, max_size=4), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.1, 0.5]))
def test_what_rules_did_is_folded_into_no_more_rules(rules: list[Taken], random: Any, doubt: float) -> None:
    """What was done to each unit fits, other things do by chance; the folded rules do what fits, and are no more."""
    done = [action_of(rules, role) for role in ROLES]
    fits = [[did == action or random.random() < doubt for did in done] for action in range(ACTIONS)]
    folded = fold(ROLES, KINDS, fits, 0)
    assert folded is not None
    assert len(folded) <= len(rules)
    assert all(fits[action_of(folded, role)][number] for number, role in enumerate(ROLES))


def test_a_rule_is_said_in_few_words() -> None:
    """Routed experts wherever they are need no layers, experts or mark."""
    fits = [
        [role.component != "routed_experts" for role in ROLES],
        [role.component == "routed_experts" for role in ROLES],
    ]
    assert fold(ROLES, KINDS, fits, 0) == [Taken(1, Selector(kinds=("routed_experts",)))]


def test_gaps_that_do_not_matter_are_filled() -> None:
    """Layers 1 and 3 of attention, where layer 2 may be either, are layers 1 to 3."""
    here = [role.component == "attention" and not role.mtp and role.layer in (1, 3) for role in ROLES]
    either = [role.component == "attention" and role.layer == 2 for role in ROLES]
    folded = fold(ROLES, KINDS, [[not h for h in here], [h or e for h, e in zip(here, either, strict=True)]], 0)
    assert folded == [Taken(1, Selector(kinds=("attention",), layers=(1, 2, 3)))]


def test_what_the_base_does_needs_no_rule() -> None:
    """A child that is its base has no rules."""
    assert fold(ROLES, KINDS, [[True] * len(ROLES)], 0) == []


def test_units_that_nothing_fits_can_not_be_folded() -> None:
    """There is no list of rules if some unit fits no action, or units of one cell fit different ones."""
    assert fold(ROLES, KINDS, [[role.component != "head" for role in ROLES]], 0) is None
    twins = [Role("attention", layer=0), Role("attention", layer=0)]
    assert fold(twins, ["attention"] * 2, [[True, False], [False, True]], 0) is None
    assert fold(twins, ["q", "k"], [[True, False], [False, True]], 0) == [Taken(1, Selector(kinds=("k",)))]
