"""Units of a kind together, for tables; and how many parameters that makes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import astuple

from chimerakit.anatomy import GENERIC, Anatomy
from chimerakit.dtypes import numel_of
from chimerakit.inspect.records import Census, Censuses, Parameters, Part
from chimerakit.records import (
    COMPONENTS,
    Component,
    Unit,
)


def make_parts(units: Iterable[Unit], censuses: Censuses | None) -> Iterator[Part]:
    """Every component of every layer."""
    census_of = {found.unit: found.census for found in censuses.units} if censuses is not None else {}
    groups: dict[tuple[Component, int], list[Unit]] = {}
    for unit in units:
        layer = -1 if unit.role.layer is None else unit.role.layer
        groups.setdefault((unit.role.component, layer), []).append(unit)
    for (component, layer), own in sorted(groups.items(), key=lambda g: (COMPONENTS.index(g[0][0]), g[0][1])):
        storages = Counter[str]()
        for unit in own:
            storages[unit.storage] += unit.nbytes
        known = [census_of[unit.name] for unit in own if unit.name in census_of]
        yield Part(
            component=component,
            layers=() if layer < 0 else (layer,),
            mtp=own[0].role.mtp,
            experts=len({unit.role.expert for unit in own} - {None}),
            units=len(own),
            tensors=sum(len(unit.tensors) for unit in own),
            nbytes=sum(storages.values()),
            parameters=sum(numel_of(unit.shape) for unit in own),
            storages=dict(storages.most_common()),
            census=sum(known, Census()) if censuses is not None else None,
        )


def join_parts(parts: Iterable[Part], component: Component = "other") -> Part:
    """Several parts as one; `component` is what it is called where they are of several."""
    parts = tuple(parts)
    components = {part.component for part in parts}
    storages = Counter[str]()
    for part in parts:
        storages.update(part.storages)
    censuses = [part.census for part in parts if part.census is not None]
    return Part(
        component=components.pop() if len(components) == 1 else component,
        layers=tuple(sorted({layer for part in parts for layer in part.layers})),
        mtp=all(part.mtp for part in parts),
        experts=max((part.experts for part in parts), default=0),
        units=sum(part.units for part in parts),
        tensors=sum(part.tensors for part in parts),
        nbytes=sum(part.nbytes for part in parts),
        parameters=sum(part.parameters for part in parts),
        storages=dict(storages.most_common()),
        census=sum(censuses, Census()) if censuses else None,
    )


def summarize(parts: Iterable[Part]) -> list[Part]:
    """One part for each component."""
    groups: dict[Component, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.component, []).append(part)
    return [join_parts(own) for own in groups.values()]


def fold_layers(parts: Iterable[Part]) -> list[Part]:
    """One part for each run of layers that hold the same of a component, whatever the numbers in them are."""
    groups: list[list[Part]] = []
    for part in parts:
        last = groups[-1][-1] if groups else None
        is_next = last is not None and part.layers and last.layers and part.layers[0] == last.layers[0] + 1
        if last is not None and is_next and _content(part) == _content(last):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [join_parts(group) for group in groups]


def _content(part: Part) -> tuple[object, ...]:
    """What makes parts of two layers alike."""
    component, _, *rest, _ = astuple(part)
    return component, *rest


# ------------------------------------------------------------------------------------------- parameters


def count_parameters(anatomy: Anatomy, parts: Iterable[Part]) -> Parameters:
    """How many weights there are, and how many of them a token meets."""
    whole = join_parts(parts).parameters
    main = [part for part in parts if not part.mtp]
    total = sum(part.parameters for part in main)
    embedding = sum(part.parameters for part in main if part.component == "embedding")
    routed = active = without = None
    if anatomy.family.name != GENERIC:
        experts = [part for part in main if part.component == "routed_experts"]
        routed = sum(part.parameters for part in experts)
        used = experts_used(anatomy, experts)
        has_head = any(part.component == "head" for part in main)
        active = None if used is None else total - routed + used
        without = None if active is None else active - (embedding if has_head else 0)
    return Parameters(
        total=whole,
        main=total,
        mtp=whole - total,
        embedding=embedding,
        routed=routed,
        active=active,
        active_without_embedding=without,
    )


def experts_used(anatomy: Anatomy, experts: Sequence[Part]) -> int | None:
    """Parameters of the routed experts that one token is sent to, in all layers; None if the config does not say."""
    per_token, of = anatomy.number(anatomy.family.experts_per_token), anatomy.number(anatomy.family.experts)
    if not experts:
        return 0
    if per_token is None or of is None or per_token > of:
        return None
    return sum(part.parameters * per_token // of for part in experts)
