"""Every unit of the base as a draft of the child's, and everything that does not fit."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from chimerakit.anatomy import Anatomy
from chimerakit.formats.gguf import stack_of
from chimerakit.plan.advice import SHOWN, few, say_ranges, way_out
from chimerakit.plan.claims import Claims, Lacks, claim_units, parts_of
from chimerakit.plan.deltas import Distances, delta_of, settle, undecided_units
from chimerakit.plan.drafts import Draft, draft_unit
from chimerakit.records import Gradient, ImatrixFile, Recipe, Rule, Span, Unit


def select(
    recipe: Recipe, anatomies: Mapping[str, Anatomy], distances: Distances, imatrix: ImatrixFile | None
) -> tuple[list[Draft], list[str]]:
    """Every unit of the base with its rule and inputs, in the base's order; and everything that does not fit."""
    base = anatomies[recipe.base]
    claims = claim_units(recipe, base)
    problems = [
        *_tableless(recipe, base),
        *_beyond(recipe, base),
        *_empty(recipe, claims, base),
        *_layerless(recipe, claims.of_rule),
    ]
    return ([], problems) if problems else _drafts(recipe, anatomies, claims, distances, imatrix)


def _drafts(
    recipe: Recipe,
    anatomies: Mapping[str, Anatomy],
    claims: Claims,
    distances: Distances,
    imatrix: ImatrixFile | None,
) -> tuple[list[Draft], list[str]]:
    """A draft for every claim, or what is wrong with its sources."""
    parts_at, of = parts_of(recipe, anatomies[recipe.base].num_layers), anatomies[recipe.base].checkpoint.format
    missing: Lacks = defaultdict(dict)
    undecided: Lacks = defaultdict(dict)
    drafts: list[Draft] = []
    complaints: list[str] = []
    for rule, unit in claims.in_order:
        parts = parts_at(rule, unit.role.layer)
        # With a delta a unit may be the base's in the end, whether the base has a share or not.
        asked = parts if delta_of(recipe, rule) is None else {recipe.base: 1.0} | parts
        sources = _sources(unit, asked, recipe.base, anatomies)
        if len(sources) < len(asked):
            for name in asked.keys() - sources.keys():
                missing[rule, name][unit.name] = unit
        elif objections := _objections(unit, sources, anatomies):
            complaints += objections
        elif isinstance(settled := settle(recipe, rule, unit, parts, distances), list):
            for name in settled:
                undecided[rule, name][unit.name] = unit
        elif isinstance(draft := draft_unit(recipe, unit, rule, settled, sources, of, imatrix), str):
            complaints.append(draft)
        else:
            drafts.append(draft)
    if of == "gguf":
        complaints += _mixed_stacks(drafts)
    problems = [
        *_missing(recipe.base, missing, claims),
        *undecided_units(recipe, anatomies, undecided, claims, distances),
    ]
    return drafts, problems + few(complaints)


def _mixed_stacks(drafts: Iterable[Draft]) -> Iterator[str]:
    """Experts that lie in one tensor, and so are of one type, but would be of several."""
    types: dict[str, dict[str, str]] = defaultdict(dict)
    for draft in drafts:
        if (stack := stack_of(draft.name)) is not None:
            types[stack].setdefault(draft.storage, draft.name)
    for stack, found in types.items():
        if len(found) > 1:
            yield (
                f"{stack}: its experts lie in one tensor and would be of several types: "
                f"{', '.join(f'{name} {dtype}' for dtype, name in found.items())}; take all of them from one parent, or say output: dtype"
            )


def _sources(unit: Unit, parts: Iterable[str], base: str, anatomies: Mapping[str, Anatomy]) -> dict[str, Unit]:
    """A unit of the base as each parent of a rule has it; those that lack it left out."""
    sources = {}
    for name in parts:
        # Parents are of one family and have as many layers and experts, so a name means the same in all of them.
        source = (
            unit if name == base else anatomies[name].unit(unit.name, unit.role) or anatomies[name].rearranged(unit)
        )
        if source is not None:
            sources[name] = source
    return sources


def _objections(unit: Unit, sources: Mapping[str, Unit], anatomies: Mapping[str, Anatomy]) -> list[str]:
    found = [
        f"{unit.name} has another shape in {name!r}: {list(source.shape)}, in the base {list(unit.shape)}"
        for name, source in sources.items()
        if source.arrangement is None and source.shape != unit.shape
    ]
    for name, source in sources.items():
        if source.arrangement is not None:
            continue
        if (objection := anatomies[name].objection(source)) is not None:
            found.append(f"{name!r}: {objection}")
        elif len(unit.tensors) == len(source.tensors) == 2 and unit.tensors[1].shape != source.tensors[1].shape:
            mine, theirs = unit.tensors[1], source.tensors[1]
            found.append(
                f"{mine.name} has another shape in {name!r}: {list(theirs.shape)}, in the base {list(mine.shape)}"
            )
    return found


def _missing(base: str, missing: Lacks, claims: Claims) -> Iterable[str]:
    """One problem for all units that a rule takes from a parent that lacks them, with the selector that leaves them out."""
    found = sorted((rule, parent) for rule, parent in missing if rule is not None)  # the base has what no rule takes
    for rule, parent in found:
        units = missing[rule, parent]
        yield (
            f"rule {rule + 1} takes {len(units)} units from {parent!r} that it does not have, such as "
            f"{next(iter(units))}; {way_out(units, claims.of_rule[rule], base)}"
        )


# ---------------------------------------------------------------------------- what is wrong with rules


def _tableless(recipe: Recipe, base: Anatomy) -> Iterable[str]:
    """Without a table nothing is known to be convertible, and the config would claim what the weights are not."""
    if recipe.output.dtype != "keep" and not base.family.tensors:
        yield (
            f"output: dtype: {recipe.output.dtype} converts what the model family's table names, and there is none for "
            f"model_type {base.checkpoint.model_type or 'not said'}; leave it out"
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


def _empty(recipe: Recipe, claims: Claims, base: Anatomy) -> Iterable[str]:
    for i, (rule, count) in enumerate(zip(recipe.rules, claims.num_matches, strict=True)):
        if claims.of_rule[i] or any(_spans_beyond(rule, base)):
            continue
        if count:
            yield f"rule {i + 1} takes nothing: earlier rules take all {count} units that it matches"
            continue
        text = f"rule {i + 1} matches nothing in the base {recipe.base!r}"
        suffix = base.family.companion
        if rule.tensors and any(fnmatchcase(t, g) for g in rule.tensors for t in base.checkpoint.tensors):
            text += f": its pattern names only scales (*{suffix}); select the weight, its scale moves with it"
        elif rule.components is not None:
            roles = [u.role for u in base.units().values() if u.role.component in rule.components]
            layers = sorted({r.layer for r in roles if r.layer is not None and not r.mtp})
            where = f"layers {say_ranges(layers)}" if layers else "no main layer"
            text += f": {', '.join(rule.components)} is in {where}" + ("" if roles else ", nor anywhere else")
        yield text


def _layerless(recipe: Recipe, taken: Mapping[int | None, Sequence[Unit]]) -> Iterable[str]:
    for i, rule in enumerate(recipe.rules):
        if any(isinstance(share, Gradient) for share in (rule.mix or {}).values()):
            names = [u.name for u in taken[i] if u.role.layer is None]
            if names:
                yield (
                    f"rule {i + 1} is a gradient over layers, but takes {len(names)} units that have no layer: "
                    f"{', '.join(names[:SHOWN])}; add a selector that leaves them out, such as layers"
                )
