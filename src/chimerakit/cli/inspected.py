"""What one checkpoint holds -> tables on a terminal, or data for JSON."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from chimerakit._version import __version__
from chimerakit.cli.show import MOST_SHOWN, add_row, make_grid, print_grid, terminal_width
from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.errors import printable
from chimerakit.inspect.parts import fold_layers, join_parts, summarize
from chimerakit.inspect.records import Censuses, Inspection, MadeSummary, Part, Provenance
from chimerakit.recipe import recipe_from_data, say_rule
from chimerakit.records import Span
from chimerakit.report.saved import head_of
from chimerakit.words import say_count, say_many, say_nbytes, say_spans

if TYPE_CHECKING:
    from rich.table import Table

_STORAGES = {FP8_BLOCK: "FP8 128x128", FP8_BLOCK_UE8M0: "FP8 128x128 ue8m0"}
_LONGEST = 200
"""Characters of a list of names, or of what a config says: the rest is in the JSON."""
_LINE = 1000
"""Characters of a line: more only come from a file that wants to be repeated."""


def inspection_view(found: Inspection, *, detail: bool) -> dict[str, object]:
    """Everything as data, with the verdict and one part for each component; with `detail` the numbers of every unit, so that
    `chimerakit report` can show it."""
    head = head_of("inspection", __version__, detail=detail)
    view = {**head, "ok": found.ok, **msgspec.structs.asdict(found), "components": summarize(found.parts)}
    if found.values is not None:
        units = {"units": found.values.units} if detail else {}
        view["values"] = {"worst": found.values.worst(), "unread": found.values.unread, **units}
    return view


def print_inspection(found: Inspection, *, detail: bool) -> None:
    """What there is, how much of it, what is odd, and who made it."""
    for line in _head(found):
        print(printable(_shortened(line, _LINE)))
    print()
    print_grid(_layers(found.parts) if detail else _components(found.parts), terminal_width())
    print()
    for line in _parameters(found):
        print(line)
    if found.values is not None:
        print()
        _print_values(found.parts, found.values, detail=detail)
    provenance = () if found.provenance is None else ("", *_provenance(found.provenance))
    for line in ("", *_files(found), *_odd(found), *provenance):
        print(printable(_shortened(line, _LINE)))


def _head(found: Inspection) -> Iterator[str]:
    yield found.root
    files, tensors, units = (
        say_many(found.weight_files, "weight file"),
        say_many(found.tensors, "tensor"),
        say_many(found.units, "unit"),
    )
    model = _shortened(found.model_type or "no model_type")
    yield f"{model}: {files}, {say_nbytes(found.nbytes)}, {tensors} in {units}"
    layers = say_many(found.layers, "layer")
    layers += f" and {say_many(found.mtp_layers, 'MTP layer')}" if found.mtp_layers else ""
    if experts := join_parts(found.parts).experts:
        chosen = found.experts_per_token or "unknown how many"
        layers += f"; {say_many(experts, 'routed expert')} a layer, {chosen} a token"
    yield layers
    if found.quantization is not None:
        said = {k: v if isinstance(v, str) else json.dumps(v) for k, v in found.quantization.items()}
        method = said.pop("quant_method", "of no method")
        yield f"quantisation: {_shortened(', '.join((method, *(f'{k} {v}' for k, v in said.items()))))}"
    if found.is_unfinished:
        yield "UNFINISHED: a merge into this folder has begun and not ended; run it again to finish it"


def _first(lines: Sequence[str], what: str) -> Iterator[str]:
    """As many as anybody reads."""
    yield from lines[:MOST_SHOWN]
    if len(lines) > MOST_SHOWN:
        yield f"    and {len(lines) - MOST_SHOWN:,} more {what} (--json shows all)"


def _shortened(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."


# ------------------------------------------------------------------------------------------------ parts


def _components(parts: Sequence[Part]) -> "Table":
    """One row for each component, and one for all of them."""
    grid = make_grid("", "component", "layers", "units", "parameters", "in MTP", "bytes", "stored as")
    grid.columns[-1].justify = "left"
    for own in summarize(parts):
        mtp = join_parts(part for part in parts if part.mtp and part.component == own.component)
        layers = _say_numbers(layer for layer in own.layers if layer not in mtp.layers)
        add_row(grid, own.component, layers, *_sizes(own, mtp), _stored(own))
    whole, mtp = join_parts(parts), join_parts(part for part in parts if part.mtp)
    add_row(grid, "all", "", *_sizes(whole, mtp))
    return grid


def _sizes(own: Part, mtp: Part) -> tuple[str, ...]:
    """Units, parameters, those in MTP layers, bytes."""
    in_mtp = say_count(mtp.parameters) if mtp.units else ""
    return f"{own.units:,}", say_count(own.parameters), in_mtp, say_nbytes(own.nbytes)


def _layers(parts: Sequence[Part]) -> "Table":
    """One row for each component and run of layers that are alike."""
    grid = make_grid("", "component", "layers", "units", "parameters", "bytes", "stored as")
    grid.columns[1].justify = grid.columns[-1].justify = "left"
    before = None
    for part in fold_layers(parts):
        name, before = "" if part.component == before else part.component, part.component
        sizes = f"{part.units:,}", say_count(part.parameters), say_nbytes(part.nbytes)
        add_row(grid, name, _where(part), *sizes, _stored(part))
    return grid


def _where(part: Part) -> str:
    """A run of layers: `3-60: 58 layers x 256 experts`."""
    if not part.layers:
        return "outside layers"
    each = [say_many(len(part.layers), "layer")] if len(part.layers) > 1 else []
    each += [say_many(part.experts, "expert")] if part.experts else []
    return _numbers_of(part) + (f": {' x '.join(each)}" if each else "")


def _numbers_of(part: Part) -> str:
    return _say_numbers(part.layers) + (" MTP" if part.mtp else "")


def _say_numbers(numbers: Iterable[int]) -> str:
    """Numbers as spans, `0-2, 61`."""
    spans: list[Span] = []
    for number in numbers:
        if spans and number == spans[-1].last + 1:
            spans[-1] = Span(spans[-1].first, number)
        else:
            spans.append(Span(number, number))
    return _shortened(", ".join(map(str, spans)))


def _stored(part: Part) -> str:
    return ", ".join(map(_say_storage, part.storages))


def _say_storage(storage: str) -> str:
    return _STORAGES.get(storage, storage)


def _parameters(found: Inspection) -> Iterator[str]:
    p, whole = found.parameters, join_parts(found.parts)
    shares = (f"{_say_storage(s)} {nbytes / max(1, whole.nbytes):.1%}" for s, nbytes in whole.storages.items())
    yield f"stored as: {', '.join(shares)} of the bytes"
    mtp = f" ({say_count(p.main)} and {say_count(p.mtp)} in MTP layers)" if p.mtp else ""
    yield f"parameters: {say_count(p.total)}{mtp}; routed: {say_count(p.routed)}"
    yield f"active per token: {say_count(p.active)}, without the embedding {say_count(p.active_without_embedding)}"


# ----------------------------------------------------------------------------------------------- values


def _print_values(parts: Sequence[Part], values: Censuses, *, detail: bool) -> None:
    print_grid(_censuses(parts, detail=detail), terminal_width())
    print_grid(_worst(values), terminal_width())
    lines = [f"not read: {unit}: {why}" for unit, why in values.unread.items()]
    for line in _first(lines, "units that are not read"):
        print(printable(_shortened(line, _LINE)))


def _censuses(parts: Sequence[Part], *, detail: bool) -> "Table":
    """What numbers are, one row for each component, or one for each run of its layers."""
    where = ["layers"] if detail else []
    grid = make_grid("Values", "component", *where, "values", "zeros", "NaN", "infinite", "largest", "saturated")
    for part in fold_layers(parts) if detail else summarize(parts):
        if (census := part.census) is not None and census.values:
            sizes = say_count(census.values), say_count(census.zeros), f"{census.nan:,}", f"{census.infinite:,}"
            saturated = f"{census.saturation:.4%}" if census.codes else ""
            where = [_numbers_of(part)] if detail else []
            add_row(grid, part.component, *where, *sizes, f"{census.largest:.4g}", saturated)
    return grid


def _worst(values: Censuses) -> "Table":
    """Units to look at first."""
    grid = make_grid("\nLargest numbers, most saturated codes", "component", "at most", "unit")
    grid.columns[-1].justify = "left"
    for each in values.worst():
        add_row(grid, each.component, f"{each.largest.census.largest:.4g}", each.largest.unit)
        if each.most_saturated.census.saturated:
            add_row(grid, "", f"{each.most_saturated.census.saturation:.4%}", each.most_saturated.unit)
    return grid


# -------------------------------------------------------------------------------------------- what is odd


def _files(found: Inspection) -> Iterator[str]:
    if found.files:
        names = _shortened(", ".join(file.name for file in found.files))
        yield f"other files: {names} ({say_nbytes(sum(file.nbytes for file in found.files))})"
    if found.left_out:
        yield f"no part of it: {_shortened(', '.join(found.left_out))}"


def _odd(found: Inspection) -> Iterator[str]:
    yield from _first([f"unknown to {found.family}: {name}" for name in found.unknown], "unknown tensors")
    yield from (f"note: {note}" for note in found.notes)
    yield from _first([f"WRONG  {wrong.subject}: {wrong.says}" for wrong in found.findings], "findings")


# ------------------------------------------------------------------------------------------- provenance


def _provenance(made: Provenance) -> Iterator[str]:
    yield f"Made by chimerakit {made.chimerakit}, plan {made.plan[:12]}, by this recipe:"
    recipe = recipe_from_data(made.recipe)
    for name, parent in made.parents.items():
        nbytes = say_nbytes(sum(size for size, _ in parent.shards.values()))
        base = ", the base" if name == recipe.base else ""
        yield f"  {name}: {say_many(len(parent.shards), 'weight file')}, {nbytes}{base}"
    yield from _first([f"  {n}. {say_rule(rule)}" for n, rule in enumerate(recipe.rules, 1)], "rules")
    yield "and so:"
    yield from _first([f"  {summary.component}: {_made(summary)}" for summary in made.made], "lines")
    if made.largest_rms_error is not None:
        yield f"  largest rounding error of a unit: {made.largest_rms_error:.3%} of its RMS"
    if made.nonfinite:
        yield f"  {made.nonfinite:,} values were NaN or infinite"
    yield "Whether that still holds: chimerakit verify"


def _made(summary: MadeSummary) -> str:
    """Units that were made alike: `45 units mixed: 0.25 v3, 0.75 r1`."""
    return f"{say_many(summary.units, 'unit')} {summary.outcome}: {say_spans(summary.shares)}"
