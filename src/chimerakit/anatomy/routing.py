"""How a family's routers choose experts: what its table says, read with a model's config.json.

    logits -> scores -> (+ correction bias) -> the best groups -> the best experts in them

A config that the table has no way for is never guessed at: the reason stands in the routing's place.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct

Scoring = Literal["sigmoid", "softmax"]
GroupScore = Literal["best", "best_two"]


class Routing(Struct, frozen=True):
    """One model's way of choosing experts; every number fits the others."""

    scoring: Scoring
    """How logits become scores, in float32."""
    has_bias: bool
    """Whether the correction bias is added to the scores for the choice."""
    num_experts: int
    top_k: int
    """Experts for each token."""
    num_groups: int = 1
    """Groups of neighbours, equally large, in which experts stand."""
    chosen_groups: int = 1
    """Groups for each token, from which all its experts are."""
    group_score: GroupScore = "best"
    """What makes a group a good one: its best expert's score, or the sum of its best two."""


class Way(Struct, frozen=True, forbid_unknown_fields=True):
    """One way of choosing that a family knows."""

    scoring: Scoring
    when: dict[str, Any] = {}
    """The config values with which it is this one."""
    bias: bool = False
    groups: GroupScore | None = None
    """What groups are chosen by; None where experts stand in no groups, whatever the config says."""


class RoutingTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a family's table that says how its routers choose. All keys are among the family's config values."""

    ways: list[Way]
    top_k: str
    """The config key with the number of experts for each token."""
    groups: str | None = None
    """The config key with the number of groups."""
    chosen_groups: str | None = None
    """The config key with the number of groups for each token."""

    def decide(self, config: Mapping[str, Any], num_experts: int) -> Routing | str:
        """The way of this config, or why there is none. config: values with the family's defaults."""
        way = next((w for w in self.ways if all(config.get(key) == value for key, value in w.when.items())), None)
        if way is None:
            asked = dict.fromkeys(key for way in self.ways for key in way.when)
            return f"{_said(asked, config)}: no way of choosing experts that is known"
        keys = [self.top_k]
        if way.groups is not None and self.groups is not None and self.chosen_groups is not None:
            keys += [self.groups, self.chosen_groups]
        numbers: list[Any] = [config.get(key) for key in keys]
        top_k, groups, chosen = numbers if len(numbers) == 3 else (*numbers, 1, 1)
        if not _fit(num_experts, way.groups, top_k, groups, chosen):
            return f"{_said(keys, config)}: this does not fit {num_experts} experts"
        return Routing(way.scoring, way.bias, num_experts, top_k, groups, chosen, way.groups or "best")


def _said(keys: Iterable[str], config: Mapping[str, Any]) -> str:
    return f"config.json says {', '.join(f'{key} {config.get(key)!r}' for key in keys)}"


def _fit(num_experts: int, group_score: GroupScore | None, top_k: Any, groups: Any, chosen: Any) -> bool:
    """Whether so many experts can be chosen, of so many groups."""
    if any(type(number) is not int or number < 1 for number in (top_k, groups, chosen)):
        return False
    size, rest = divmod(num_experts, groups)
    return not rest and chosen <= groups and top_k <= size * chosen and size >= (2 if group_score == "best_two" else 1)
