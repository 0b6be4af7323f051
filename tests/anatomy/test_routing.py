"""How a family's table and a config say together how routers choose."""

from pathlib import Path
from typing import Any

import pytest

from chimerakit.anatomy import Anatomy, families, load_family
from chimerakit.anatomy.routing import Routing, RoutingTable
from chimerakit.formats import open_checkpoint
from tests import synthetic

HEAD = """
name = "x"
model_types = ["x"]
layers = "num_hidden_layers"
experts = "experts"
companion = "_scale_inv"
tensors = []

[config]
num_hidden_layers = { default = 2 }
experts = { default = 8 }
k = { default = 2 }
groups = { default = 4 }
used = { default = 2 }
method = { default = "greedy" }

[routing]
top_k = "k"
groups = "groups"
chosen_groups = "used"
"""
SOFTMAX = HEAD + '[[routing.ways]]\nscoring = "softmax"\n'
DEEPSEEK_V2 = (
    HEAD
    + """
[[routing.ways]]
when = { method = "greedy" }
scoring = "softmax"

[[routing.ways]]
when = { method = "group_limited_greedy" }
scoring = "softmax"
groups = "best"
"""
)


def table_of(text: str) -> RoutingTable:
    """The routing of a family's table."""
    table = load_family(text).routing
    assert table is not None
    return table


VALUES: dict[str, Any] = {"k": 2, "groups": 4, "used": 2, "method": "greedy"}


def test_a_way_without_a_condition_is_every_config_s() -> None:
    """Groups that a config names all the same are no part of it."""
    assert table_of(SOFTMAX).decide(VALUES, 8) == Routing("softmax", has_bias=False, num_experts=8, top_k=2)


def test_the_config_decides_between_ways() -> None:
    """With what it says of groups where the way has them."""
    grouped = table_of(DEEPSEEK_V2).decide(VALUES | {"method": "group_limited_greedy"}, 8)
    assert grouped == Routing("softmax", False, 8, 2, num_groups=4, chosen_groups=2, group_score="best")
    assert table_of(DEEPSEEK_V2).decide(VALUES, 8) == Routing("softmax", False, 8, 2)


def test_a_way_that_is_not_known_is_never_guessed() -> None:
    """The reason says what the config says."""
    found = table_of(DEEPSEEK_V2).decide(VALUES | {"method": "random"}, 8)
    assert found == "config.json says method 'random': no way of choosing experts that is known"


@pytest.mark.parametrize(
    "change",
    [{"k": 0}, {"k": True}, {"k": 2.0}, {"k": None}, {"k": 5}, {"groups": 3}, {"groups": 0}, {"used": 5}, {"used": -1}],
)
def test_numbers_that_do_not_fit_are_said(change: dict[str, Any]) -> None:
    """Other than whole numbers, more experts than the chosen groups have, groups that are not equally large."""
    values = VALUES | {"method": "group_limited_greedy"} | change
    said = ", ".join(f"{key} {values[key]!r}" for key in ("k", "groups", "used"))
    found = table_of(DEEPSEEK_V2).decide(values, 8)
    assert found == f"config.json says {said}: this does not fit 8 experts"


def test_groups_of_one_have_no_best_two() -> None:
    """torch, too, refuses to take two of one."""
    table = table_of(HEAD + '[[routing.ways]]\nscoring = "sigmoid"\ngroups = "best_two"\n')
    assert isinstance(table.decide(VALUES | {"groups": 8}, 8), str)
    assert isinstance(table.decide(VALUES | {"groups": 4}, 8), Routing)


def open_with(tmp_path: Path, **config: Any) -> Anatomy:
    """A synthetic checkpoint with some other config values."""
    root = synthetic.write_checkpoint(tmp_path / "x", synthetic.tensors_of(1), synthetic.CONFIG | config)
    return Anatomy(open_checkpoint(root))


def test_deepseek_v3_chooses_as_published(tmp_path: Path) -> None:
    """Sigmoid, the bias in the choice, groups by their best two; numbers of the config, or the family's."""
    found = open_with(tmp_path, n_routed_experts=256, num_experts_per_tok=None, n_group=None, topk_group=None).routing()
    assert found == Routing("sigmoid", True, 256, 8, num_groups=8, chosen_groups=4, group_score="best_two")


def test_deepseek_v3_with_another_method_is_not_known(tmp_path: Path) -> None:
    """Its own code refuses such a config, too."""
    found = open_with(tmp_path, topk_method="greedy").routing()
    assert found == (
        "config.json says scoring_func 'sigmoid', topk_method 'greedy': no way of choosing experts that is known"
    )


def test_a_family_without_a_table_says_nothing_of_routers(tmp_path: Path) -> None:
    """By its name."""
    assert open_with(tmp_path, model_type="odd").routing() == "how routers of the family 'generic' choose is not known"


@pytest.mark.parametrize("model_type", sorted(families()))
def test_every_key_of_a_routing_is_a_config_value_of_its_family(model_type: str) -> None:
    """So that it has a default, and parents have to agree on it."""
    family = families()[model_type]
    table = family.routing
    if table is not None:
        keys = {table.top_k, table.groups, table.chosen_groups, *(key for way in table.ways for key in way.when)}
        assert keys - {None} <= set(family.config)
