"""An inspection as a section: what a checkpoint holds, where, how it is stored, and what its numbers are."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from chimerakit.inspect.parts import fold_layers, join_parts, summarize
from chimerakit.inspect.records import Inspection, Part, Provenance
from chimerakit.recipe import recipe_from_data, recipe_to_yaml, say_rule
from chimerakit.records import COMPONENTS
from chimerakit.report.axes import Grid, component_grid, roles_of
from chimerakit.report.blocks import (
    Bars,
    Block,
    Chart,
    Listing,
    RecipeText,
    Section,
    Series,
    Table,
    View,
)
from chimerakit.report.census import show_values
from chimerakit.report.words import say_lines, say_storage, say_text
from chimerakit.words import say_count, say_many, say_nbytes, say_spans


def show_inspection(found: Inspection, name: str) -> Section:
    """Everything that is known of a checkpoint."""
    blocks = [*_wrong(found), _parameters(found), *_layers(found.parts), _components(found.parts), _runs(found.parts)]
    blocks += [*show_values(found), *_odd(found), *_provenance(found.provenance)]
    title = say_text(f"What {PurePath(found.root).name or 'the checkpoint'} holds")
    return Section("inspect", title, name, tuple(_facts(found)), tuple(blocks))


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "checkpoint", say_text(PurePath(found.root).name)
    yield "model", say_text(f"{found.model_type or 'no model_type'}, read as {found.family}")
    yield "weights", f"{say_many(found.weight_files, 'file')}, {say_nbytes(found.nbytes)}"
    yield "tensors", f"{found.tensors:,} in {say_many(found.units, 'unit')}"
    mtp = f" and {say_many(found.mtp_layers, 'MTP layer')}" if found.mtp_layers else ""
    yield "layers", f"{found.layers:,}{mtp}"
    if experts := join_parts(found.parts).experts:
        yield "routed experts", f"{experts:,} a layer, {found.experts_per_token or 'unknown how many'} a token"
    if found.quantization is not None:
        yield "quantisation", say_text(json.dumps(found.quantization, ensure_ascii=False).strip("{}").replace('"', ""))
    if found.is_unfinished:
        yield "unfinished", "a merge into this folder has begun and not ended"


# ------------------------------------------------------------------------------------------------ parts


def _parameters(found: Inspection) -> Table:
    p = found.parameters
    numbers = {
        "total": p.total,
        "without MTP layers": p.main,
        "in MTP layers": p.mtp,
        "in routed experts": p.routed,
        "active per token": p.active,
        "active, without the embedding": p.active_without_embedding,
    }
    rows = [(what, say_count(number, " "), "" if number is None else f"{number:,}") for what, number in numbers.items()]
    return Table("Parameters", ("parameters", "about", "exactly"), tuple(rows))


def _layers(parts: Sequence[Part]) -> Iterator[Block]:
    """A bar for each layer: by component, by storage."""
    grid = component_grid(roles_of(parts))
    storages = Counter[str]()
    for part in parts:
        storages.update(part.storages)
    names = [storage for storage, _ in storages.most_common(len(COMPONENTS))]
    views = (
        View(
            "bytes by component", "B", _stacks(grid, parts, COMPONENTS, {c: _nbytes_of(parts, c) for c in COMPONENTS})
        ),
        View("bytes by storage", "B", _stacks(grid, parts, names, {n: _stored_as(parts, n) for n in names})),
        View(
            "parameters by component", "", _stacks(grid, parts, COMPONENTS, {c: _sizes(parts, c) for c in COMPONENTS})
        ),
    )
    if parts:
        says = "Everything that a layer holds, stacked; what belongs to no layer stands at the left."
        yield Chart("What each layer holds", says, Bars(grid.columns, views))


def _nbytes_of(parts: Sequence[Part], component: str) -> list[int]:
    return [part.nbytes if part.component == component else 0 for part in parts]


def _sizes(parts: Sequence[Part], component: str) -> list[int]:
    return [part.parameters if part.component == component else 0 for part in parts]


def _stored_as(parts: Sequence[Part], storage: str) -> list[int]:
    return [part.storages.get(storage, 0) for part in parts]


def _stacks(
    grid: Grid, parts: Sequence[Part], names: Sequence[str], amounts: Mapping[str, Sequence[int]]
) -> tuple[Series, ...]:
    """What each name has in each layer, given what it has in each part."""
    found = []
    for number, name in enumerate(names):
        values = [0] * grid.shape[1]
        for part, amount in zip(parts, amounts[name], strict=True):
            values[grid.column(part.layers[0] if part.layers else None)] += amount
        if any(values):
            found.append(Series(say_text(say_storage(name)), number, tuple(map(float, values))))
    return tuple(found)


def _components(parts: Sequence[Part]) -> Table:
    rows = [(part.component, *_contents(part)) for part in summarize(parts)]
    whole = join_parts(parts)
    rows.append(("all", *_contents(whole)))
    return Table("Components", ("component", *_COLUMNS), tuple(rows), words=(0, 6))


_COLUMNS = ("units", "tensors", "experts", "parameters", "bytes", "stored as")


def _contents(part: Part) -> tuple[str, ...]:
    experts = f"{part.experts:,}" if part.experts else ""
    stored = say_text(", ".join(map(say_storage, part.storages)))
    sizes = say_count(part.parameters, " "), say_nbytes(part.nbytes)
    return f"{part.units:,}", f"{part.tensors:,}", experts, *sizes, stored


def _runs(parts: Sequence[Part]) -> Table:
    """A row for each run of layers that hold the same."""
    rows = [(part.component, _where(part), *_contents(part)) for part in fold_layers(parts)]
    title, columns = "Components and layers", ("component", "layers", *_COLUMNS)
    says = "One row for each run of layers that hold the same."
    return Table(title, columns, tuple(rows), says, words=(0, 1, 7), is_folded=True)


def _where(part: Part) -> str:
    if not part.layers:
        return "outside layers"
    first, last = part.layers[0], part.layers[-1]
    return (str(first) if first == last else f"{first} to {last}") + (" (MTP)" if part.mtp else "")


# ----------------------------------------------------------------------------------------- what is odd


def _wrong(found: Inspection) -> Iterator[Block]:
    if found.findings:
        lines = [f"{finding.subject}: {finding.says}" for finding in found.findings]
        yield Listing("Wrong", say_lines(lines), is_wrong=True)


def _odd(found: Inspection) -> Iterator[Block]:
    files = [f"{file.name}, {say_nbytes(file.nbytes)}" for file in found.files]
    for title, lines in (
        ("Notes", found.notes),
        (f"Tensors unknown to {found.family}", found.unknown),
        ("Other files", files),
        ("Beside it, and no part of it", found.left_out),
    ):
        if lines:
            yield Listing(say_text(title), say_lines(lines))


def _provenance(made: Provenance | None) -> Iterator[Block]:
    """What the manifest says of how it was made."""
    if made is None:
        return
    recipe = recipe_from_data(made.recipe)
    says = say_text(f"Made by chimerakit {made.chimerakit}, plan {made.plan}; {recipe.base} is the base.")
    rules = say_lines([*map(say_rule, recipe.rules)])
    yield RecipeText("The recipe that its manifest tells", says, rules, recipe_to_yaml(recipe))
    rows = [
        (summary.component, f"{summary.units:,}", summary.outcome, say_text(say_spans(summary.shares)))
        for summary in made.made
    ]
    says = "As the manifest tells it; chimerakit verify finds out whether it still holds."
    yield Table("How it was made", ("component", "units", "outcome", "of"), tuple(rows), says, words=(0, 2, 3))
