"""Which rule takes which unit, from which parents, at which shares. The first matching rule wins; the base takes the rest.

A rule with a delta mixes a unit only where a parent lies farther from the base than that. How far they lie is a question
to weights, which planning does not read: it is given distances, and refuses where it would have to guess.
"""

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, NamedTuple

from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0, FP8_BLOCKS, MIXABLE, blocks_of, nbytes_of
from chimerakit.recipe import SUM_TOLERANCE, shares_at
from chimerakit.records import Gradient, Input, Kind, Recipe, Role, Rule, Span, Tensor, Unit

Distances = Mapping[str, Mapping[str, float]]
"""For each parent how far its units lie from the base's, by unit: the RMS of the difference of their float32 values,
which is ||A - B||_F / sqrt(numel). NaN where values are not finite."""
_STORAGES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
_SHOWN = 3
_NAMED = 12


class Draft(Struct, frozen=True, gc=False):
    """A row that has no place yet."""

    name: str
    role: Role
    rule: int | None
    kind: Kind
    inputs: tuple[Input, ...]
    storage: str
    tensors: tuple[Tensor, ...]
    """What the child stores, the weight first: the base's own records where nothing is converted, else without a place."""
    if_equal: Literal["copy", "convert"] | None


class _Matcher:
    """One rule's selectors, compiled for one model."""

    def __init__(self, rule: Rule, anatomy: Anatomy):
        self._rule = rule
        self._is_layer = _within(rule.layers, anatomy.num_layers)
        self._is_expert = _within(rule.experts, anatomy.num_experts)
        self.num_matches = 0

    def __call__(self, name: str, role: Role) -> bool:
        rule = self._rule
        is_match = (
            (rule.components is None or role.component in rule.components)
            and (rule.layers is None or (self._is_layer(role.layer) and not role.mtp))
            and (rule.experts is None or self._is_expert(role.expert))
            and (rule.mtp is None or role.mtp == rule.mtp)
            and (rule.tensors is None or any(fnmatchcase(name, glob) for glob in rule.tensors))
        )
        self.num_matches += is_match
        return is_match


def _within(spans: Sequence[Span] | None, count: int) -> Callable[[int | None], bool]:
    """Whether a number is meant. Spans are never counted out: a recipe may hold long ones, and a config large counts."""
    ranges = [span.within(count) for span in spans or ()]
    return cache(lambda number: any(number in each for each in ranges))


class _Claims(NamedTuple):
    """Which rule takes which unit of the base."""

    of_rule: dict[int | None, list[Unit]]
    in_order: list[tuple[int | None, Unit]]


_Lacks = dict[tuple[int | None, str], dict[str, Unit]]
"""By rule and parent: units, by name, for which the parent lacks something."""


def select(recipe: Recipe, anatomies: Mapping[str, Anatomy], distances: Distances) -> tuple[list[Draft], list[str]]:
    """Every unit of the base with its rule and inputs, in the base's order; and everything that does not fit."""
    base = anatomies[recipe.base]
    matchers = [_Matcher(rule, base) for rule in recipe.rules]
    claims = _claim(base.units(), matchers)
    problems = [
        *_tableless(recipe, base),
        *_beyond(recipe, base),
        *_empty(recipe, matchers, claims.of_rule, base),
        *_layerless(recipe, claims.of_rule),
    ]
    return ([], problems) if problems else _drafts(recipe, anatomies, claims, distances)


def units_in_question(recipe: Recipe, base: Anatomy) -> dict[str, set[str]]:
    """For each parent the units whose distance from the base decides whether a rule with a delta mixes them."""
    claims = _claim(base.units(), [_Matcher(rule, base) for rule in recipe.rules])
    parts_of = _parts_of(recipe, base.num_layers)
    found: dict[str, set[str]] = defaultdict(set)
    for rule, unit in claims.in_order:
        if _delta_of(recipe, rule) is not None:
            for name in parts_of(rule, unit.role.layer):
                found[name].add(unit.name)
    found.pop(recipe.base, None)
    return found


def _claim(units: Mapping[str, Unit], matchers: Sequence[_Matcher]) -> _Claims:
    """The first rule that matches takes a unit; every rule counts what it matches."""
    claims = _Claims({None: []} | {i: [] for i in range(len(matchers))}, [])
    for name, unit in units.items():
        matching = [i for i, matches in enumerate(matchers) if matches(name, unit.role)]
        rule = matching[0] if matching else None
        claims.of_rule[rule].append(unit)
        claims.in_order.append((rule, unit))
    return claims


def _parts_of(recipe: Recipe, num_layers: int) -> Callable[[int | None, int | None], dict[str, float]]:
    """(rule, layer) -> the shares of a unit, the base's first; there are as many as rules and layers."""

    @cache
    def parts_of(rule: int | None, layer: int | None) -> dict[str, float]:
        return {recipe.base: 1.0} if rule is None else shares_at(recipe.rules[rule], recipe, layer, num_layers)

    return parts_of


def _drafts(
    recipe: Recipe, anatomies: Mapping[str, Anatomy], claims: _Claims, distances: Distances
) -> tuple[list[Draft], list[str]]:
    """A draft for every claim, or what is wrong with its sources."""
    parts_of = _parts_of(recipe, anatomies[recipe.base].num_layers)
    missing: _Lacks = defaultdict(dict)
    undecided: _Lacks = defaultdict(dict)
    drafts: list[Draft] = []
    complaints: list[str] = []
    for rule, unit in claims.in_order:
        parts = parts_of(rule, unit.role.layer)
        # With a delta a unit may be the base's in the end, whether the base has a share or not.
        asked = parts if _delta_of(recipe, rule) is None else {recipe.base: 1.0} | parts
        sources = _sources(unit, asked, recipe.base, anatomies)
        if len(sources) < len(asked):
            for name in asked.keys() - sources.keys():
                missing[rule, name][unit.name] = unit
        elif objections := _objections(unit, sources, anatomies):
            complaints += objections
        elif isinstance(settled := _settle(recipe, rule, unit, parts, distances), list):
            for name in settled:
                undecided[rule, name][unit.name] = unit
        elif isinstance(draft := _draft(recipe, unit, rule, settled, sources), str):
            complaints.append(draft)
        else:
            drafts.append(draft)
    problems = [*_missing(recipe.base, missing, claims), *_undecided(recipe, anatomies, undecided, claims, distances)]
    return drafts, problems + _few(complaints)


# ---------------------------------------------------------------------------------------------- deltas


def _delta_of(recipe: Recipe, rule: int | None) -> float | None:
    return None if rule is None else recipe.rules[rule].delta


def _settle(
    recipe: Recipe, rule: int | None, unit: Unit, parts: Mapping[str, float], distances: Distances
) -> Mapping[str, float] | list[str]:
    """A unit's shares once its rule's delta is heeded; or the parents of which nobody knows how far they are."""
    delta = _delta_of(recipe, rule)
    if delta is None or not parts:
        return parts
    apart = {name: distances.get(name, {}).get(unit.name, math.nan) for name in parts if name != recipe.base}
    unknown = [name for name, distance in apart.items() if not math.isfinite(distance)]
    if unknown:
        return unknown
    return parts if max(apart.values(), default=0.0) > delta else {recipe.base: 1.0}


def _undecided(
    recipe: Recipe, anatomies: Mapping[str, Anatomy], undecided: _Lacks, claims: _Claims, distances: Distances
) -> Iterable[str]:
    """What must be known before a delta can decide: a whole map, or the distance of single units."""
    base = recipe.base
    for parent in recipe.parents:
        lacks = {rule: units for (rule, name), units in undecided.items() if name == parent and rule is not None}
        if lacks and parent not in distances:
            folders = " ".join(shlex.quote(anatomies[name].checkpoint.root) for name in (base, parent))
            file = f"{base}-{parent}.npz"
            yield (
                f"the delta of rule {', '.join(str(rule + 1) for rule in sorted(lacks))} asks how far {parent!r} is from "
                f"the base {base!r}, which is not known: make a map with `chimerakit compare {folders} -o {file}` and "
                f"pass `--differences {file}`"
            )
            continue
        for rule, units in sorted(lacks.items()):
            first = next(iter(units))
            why = "its values are not finite" if first in distances[parent] else "the map does not have it"
            yield (
                f"the delta of rule {rule + 1} asks how far {parent!r} is from the base {base!r}, which is not known for "
                f"{len(units)} of its units, such as {first}: {why}; {_way_out(*_split(claims, rule, units), base)}"
            )


# ------------------------------------------------------------------------------------------- one draft


def _sources(unit: Unit, parts: Iterable[str], base: str, anatomies: Mapping[str, Anatomy]) -> dict[str, Unit]:
    """A unit of the base as each parent of a rule has it; those that lack it left out."""
    sources = {}
    for name in parts:
        # Parents are of one family and have as many layers and experts, so a name means the same in all of them.
        source = unit if name == base else anatomies[name].unit(unit.name, unit.role)
        if source is not None:
            sources[name] = source
    return sources


def _draft(
    recipe: Recipe, unit: Unit, rule: int | None, parts: Mapping[str, float], sources: Mapping[str, Unit]
) -> Draft | str:
    """One unit's row without a place, or why there can be none."""
    storage = _output_storage(recipe, unit)
    tensors = _output_tensors(unit, storage)
    inputs = tuple(Input(name, parts[name], sources[name].storage, sources[name].tensors) for name in parts)
    if not inputs:
        return f"{unit.name}: all shares are 0"
    is_stored_alike = _is_stored_alike(sources[inputs[0].parent], storage, tensors)
    if len(inputs) == 1 and inputs[0].share == 1:
        kind: Kind = "copy" if is_stored_alike else "convert"
    else:
        kind = "mix"
    if kind != "copy":
        for name, source in [*sources.items(), (recipe.base, unit)]:
            if not _is_decodable(source):
                return (
                    f"{unit.name} in {name!r} is stored as {source.storage}; that can be copied, not mixed or converted"
                )
    if_equal = _if_equal(inputs, is_stored_alike) if kind == "mix" else None
    return Draft(unit.name, unit.role, rule, kind, inputs, storage, tensors, if_equal)


def _is_decodable(unit: Unit) -> bool:
    """Whether numerics can read a unit; in a family without a table, scales may belong to something else than blocks."""
    if unit.storage not in FP8_BLOCKS:
        return unit.storage in MIXABLE
    return len(unit.shape) == 2 and unit.tensors[1].shape == blocks_of(unit.shape)


def _if_equal(inputs: Sequence[Input], is_stored_alike: bool) -> Literal["copy", "convert"] | None:
    """Nothing is requantised for nothing: equal parents whose shares sum to 1 are one parent."""
    can_be_equal = len({(i.storage, *((t.dtype, t.nbytes) for t in i.tensors)) for i in inputs}) == 1
    if not can_be_equal or abs(sum(i.share for i in inputs) - 1) > SUM_TOLERANCE:
        return None
    return "copy" if is_stored_alike else "convert"


def _output_storage(recipe: Recipe, unit: Unit) -> str:
    """How the child stores a unit: as the base does, unless the recipe says otherwise and the family's table lets it."""
    dtype, role = recipe.output.dtype, unit.role
    if dtype == "keep" or not role.convertible or unit.storage not in MIXABLE:
        return unit.storage
    if dtype != "fp8-block":
        return _STORAGES[dtype]
    return FP8_BLOCK if role.fp8 and unit.storage not in FP8_BLOCKS and len(unit.shape) == 2 else unit.storage


def _output_tensors(unit: Unit, storage: str) -> tuple[Tensor, ...]:
    if storage == unit.storage:
        return unit.tensors
    if storage == FP8_BLOCK:
        scale = f"{unit.name}_scale_inv"
        return _unplaced(unit.name, "F8_E4M3", unit.shape), _unplaced(scale, "F32", blocks_of(unit.shape))
    return (_unplaced(unit.name, storage, unit.shape),)


def _unplaced(name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, dtype, shape, file="", start=0, nbytes=nbytes_of(dtype, shape) or 0)


def _is_stored_alike(source: Unit, storage: str, tensors: Sequence[Tensor]) -> bool:
    """Whether a parent's bytes are what the child would store. Any scale is a float32 scale, not every one a power of 2."""
    same_types = [t.dtype for t in source.tensors] == [t.dtype for t in tensors]
    return same_types and not (storage == FP8_BLOCK_UE8M0 and source.storage == FP8_BLOCK)


# --------------------------------------------------------------------------------------- what is wrong


def _tableless(recipe: Recipe, base: Anatomy) -> Iterable[str]:
    """Without a table nothing is known to be convertible, and the config would claim what the weights are not."""
    if recipe.output.dtype != "keep" and not base.family.tensors:
        yield (
            f"output: dtype: {recipe.output.dtype} converts what the model family's table names, and there is none for "
            f"model_type {base.checkpoint.config.get('model_type', 'not said')}; leave it out"
        )


def _beyond(recipe: Recipe, base: Anatomy) -> Iterable[str]:
    """Layers and experts that the model does not have."""
    for number, rule in enumerate(recipe.rules, 1):
        for word, span, count in _spans_beyond(rule, base):
            hint = "; MTP layers are selected with mtp: true" if word == "layer" else ""
            yield (
                f"rule {number}: {word}s: {span} is beyond the model: "
                + (f"{word}s are 0-{count - 1}" if count else f"it has no {word}s")
                + hint
            )


def _spans_beyond(rule: Rule, base: Anatomy) -> Iterable[tuple[str, Span, int]]:
    for word, spans, count in (("layer", rule.layers, base.num_layers), ("expert", rule.experts, base.num_experts)):
        for span in spans or ():
            numbers = span.within(count)
            if numbers.start < 0 or numbers.stop > count:
                yield word, span, count


def _empty(
    recipe: Recipe, matchers: Sequence[_Matcher], taken: Mapping[int | None, Sequence[Unit]], base: Anatomy
) -> Iterable[str]:
    for i, (rule, matcher) in enumerate(zip(recipe.rules, matchers, strict=True)):
        if taken[i] or any(_spans_beyond(rule, base)):
            continue
        if matcher.num_matches:
            yield f"rule {i + 1} takes nothing: earlier rules take all {matcher.num_matches} units that it matches"
            continue
        text = f"rule {i + 1} matches nothing in the base {recipe.base!r}"
        suffix = base.family.companion
        if rule.tensors and any(fnmatchcase(t, g) for g in rule.tensors for t in base.checkpoint.tensors):
            text += f": its pattern names only scales (*{suffix}); select the weight, its scale moves with it"
        elif rule.components is not None:
            roles = [u.role for u in base.units().values() if u.role.component in rule.components]
            layers = sorted({r.layer for r in roles if r.layer is not None and not r.mtp})
            where = f"layers {_ranges(layers)}" if layers else "no main layer"
            text += f": {', '.join(rule.components)} is in {where}" + ("" if roles else ", nor anywhere else")
        yield text


def _layerless(recipe: Recipe, taken: Mapping[int | None, Sequence[Unit]]) -> Iterable[str]:
    for i, rule in enumerate(recipe.rules):
        if any(isinstance(share, Gradient) for share in (rule.mix or {}).values()):
            names = [u.name for u in taken[i] if u.role.layer is None]
            if names:
                yield (
                    f"rule {i + 1} is a gradient over layers, but takes {len(names)} units that have no layer: "
                    f"{', '.join(names[:_SHOWN])}; add a selector that leaves them out, such as layers"
                )


def _objections(unit: Unit, sources: Mapping[str, Unit], anatomies: Mapping[str, Anatomy]) -> list[str]:
    found = [
        f"{unit.name} has another shape in {name!r}: {list(source.shape)}, in the base {list(unit.shape)}"
        for name, source in sources.items()
        if source.shape != unit.shape
    ]
    for name, source in sources.items():
        if (objection := anatomies[name].objection(source)) is not None:
            found.append(f"{name!r}: {objection}")
        elif len(unit.tensors) == len(source.tensors) == 2 and unit.tensors[1].shape != source.tensors[1].shape:
            mine, theirs = unit.tensors[1], source.tensors[1]
            found.append(
                f"{mine.name} has another shape in {name!r}: {list(theirs.shape)}, in the base {list(mine.shape)}"
            )
    return found


def _missing(base: str, missing: _Lacks, claims: _Claims) -> Iterable[str]:
    """One problem for all units that a rule takes from a parent that lacks them, with the selector that leaves them out."""
    found = sorted((rule, parent) for rule, parent in missing if rule is not None)  # the base has what no rule takes
    for rule, parent in found:
        units = missing[rule, parent]
        yield (
            f"rule {rule + 1} takes {len(units)} units from {parent!r} that it does not have, such as "
            f"{next(iter(units))}; {_way_out(*_split(claims, rule, units), base)}"
        )


def _split(claims: _Claims, rule: int, units: Mapping[str, Unit]) -> tuple[list[Unit], list[Unit]]:
    """A rule's units: these, and the others."""
    return list(units.values()), [unit for unit in claims.of_rule[rule] if unit.name not in units]


def _way_out(missing: Sequence[Unit], present: Sequence[Unit], base: str) -> str:
    """What to write so that the rule takes no more than the parent has; what is offered must plan."""
    if not present:
        return "leave the rule out"
    if all(u.role.mtp for u in missing) and not any(u.role.mtp for u in present):
        return "add `mtp: false` to the rule to leave them out"
    for selector, words in _words(present).items():
        if words and words.isdisjoint(_selected_by(missing)[selector]):
            return f"add `{_say(selector, words)}` to leave them out"
    for selector, words in _words(missing).items():
        if words and words.isdisjoint(_selected_by(present)[selector]):
            return (
                f"put a rule before it that takes them from the base: `take: {base}`, `{_say(selector, words)}`, "
                "the rest as in this rule"
            )
    names = [u.name for u in missing[:_NAMED]]
    more = f" and {len(missing) - len(names)} more" if len(missing) > len(names) else ""
    return f"put a rule before it that takes them from the base: `take: {base}`, `tensors: [{', '.join(names)}]`{more}"


def _selected_by(units: Sequence[Unit]) -> dict[str, set[str | int | None]]:
    return {
        "components": {u.role.component for u in units},
        "layers": {u.role.layer for u in units},
        "experts": {u.role.expert for u in units},
    }


def _words(units: Sequence[Unit]) -> dict[str, set[str | int | None]]:
    """What each selector would have to say to select all these units; nothing where it can't."""
    found = _selected_by(units)
    if any(u.role.mtp for u in units):
        found["layers"] = set()  # it selects main layers only
    return {selector: set() if None in words else words for selector, words in found.items()}


def _say(selector: str, words: set[str | int | None]) -> str:
    numbers = sorted(w for w in words if isinstance(w, int))
    return f"{selector}: [{_ranges(numbers) if numbers else ', '.join(sorted(map(str, words)))}]"


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges: 0, 3-5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] + 1 == number:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _few(complaints: Sequence[str]) -> list[str]:
    if len(complaints) <= 2 * _SHOWN:
        return list(complaints)
    return [*complaints[: 2 * _SHOWN], f"and {len(complaints) - 2 * _SHOWN} more of this kind"]
