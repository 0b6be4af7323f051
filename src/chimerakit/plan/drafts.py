"""One row of the child before it has a place: made of what, and stored how."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from chimerakit.dtypes import (
    FP8_BLOCK,
    FP8_BLOCK_UE8M0,
    FP8_BLOCKS,
    GGML_TYPES,
    MIXABLE,
    NEED_IMATRIX,
    QUANTS,
    blocks_of,
    nbytes_of,
    numel_of,
)
from chimerakit.formats.gguf import stack_of
from chimerakit.recipe import SUM_TOLERANCE
from chimerakit.records import Format, ImatrixFile, Importance, Input, Kind, Recipe, Role, Tensor, Unit

_STORAGES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
_FALLBACKS = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
}
"""Types of whose blocks a row may be no whole number -> what llama.cpp takes then (tensor_type_fallback in llama-quant.cpp)."""


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
    importance: Importance | None = None


def draft_unit(
    recipe: Recipe,
    unit: Unit,
    rule: int | None,
    parts: Mapping[str, float],
    sources: Mapping[str, Unit],
    of: Format,
    imatrix: ImatrixFile | None,
) -> Draft | str:
    """One unit's row without a place, or why there can be none."""
    inputs = tuple(
        Input(name, parts[name], sources[name].storage, sources[name].tensors, sources[name].arrangement)
        for name in parts
    )
    if not inputs:
        return f"{unit.name}: all shares are 0"
    if any(part.arrangement is not None for part in inputs):
        return _rearranged(recipe, unit, rule, inputs)
    # Quants differ from file to file: what is taken whole keeps its own type, as GGUF's types stand with each tensor.
    is_taken = len(inputs) == 1 and inputs[0].share == 1
    like = sources[inputs[0].parent] if is_taken and of == "gguf" else unit
    storage = _output_storage(recipe, like)
    tensors = _output_tensors(unit, storage)
    is_stored_alike = _is_stored_alike(sources[inputs[0].parent], storage, tensors)
    if is_taken:
        kind: Kind = "copy" if is_stored_alike else "convert"
    else:
        kind = "mix"
    if kind != "copy":
        for name, source in [*sources.items(), (recipe.base, unit)]:
            if not _is_decodable(source):
                return (
                    f"{unit.name} in {name!r} is stored as {source.storage}; that can be copied, not mixed or converted"
                )
    importance = _importance(imatrix, unit) if kind != "copy" and storage in QUANTS else None
    if isinstance(importance, str):
        return importance
    if kind != "copy" and storage in NEED_IMATRIX and importance is None:
        return f"{unit.name} would be encoded in {storage}, which can't be done without an imatrix"
    if_equal = _if_equal(inputs, is_stored_alike) if kind == "mix" else None
    return Draft(unit.name, unit.role, rule, kind, inputs, storage, tensors, if_equal, importance)


def _importance(imatrix: ImatrixFile | None, unit: Unit) -> Importance | str | None:
    """Where a unit's line of an importance matrix is; what is wrong with it, or None if there is none."""
    stack = stack_of(unit.name)
    found = None if imatrix is None else imatrix.entries.get(stack or unit.name)
    if found is None:
        return None
    entry, cols = found
    rows = numel_of(unit.shape[:-1])
    number = unit.role.expert if stack is not None else None
    if cols != unit.shape[-1] or (rows % entry.rows if number is None else number >= entry.rows):
        return f"{unit.name} is {list(unit.shape)}; its entry in the importance matrix is {[entry.rows, cols]}"
    if number is None:
        return entry
    return Importance(1, entry.sums + 4 * number * cols, entry.counts + 4 * number)


def _rearranged(recipe: Recipe, unit: Unit, rule: int | None, inputs: tuple[Input, ...]) -> Draft | str:
    """A unit that a parent stores in another layout: its numbers as they are, at other places."""
    part = next(part for part in inputs if part.arrangement is not None)
    there, arrangement = " and ".join(tensor.name for tensor in part.tensors), part.arrangement
    is_converted = _output_storage(recipe, Unit(unit.role, part.storage, unit.tensors)) != part.storage
    if len(inputs) > 1 or part.share != 1 or is_converted:
        return f"{unit.name} lies in {there} in {part.parent!r}: from another layout it can be taken whole, not mixed or converted"
    if len({tensor.dtype for tensor in part.tensors}) > 1:
        return f"{unit.name} is one tensor, but {there} in {part.parent!r} are stored as {part.storage}"
    is_moved = arrangement is not None and (arrangement.part == "second" or not arrangement.is_transposed)
    if part.storage in QUANTS and not is_moved:
        return (
            f"{unit.name} is a transpose of what {part.parent!r} has in {there}, stored as {part.storage}: blocks of a row can't be "
            "turned without rounding; take it from a parent of the base's layout, or in F32, F16 or BF16"
        )
    tensors = (_unplaced(unit.name, part.storage, unit.shape),)
    return Draft(unit.name, unit.role, rule, "convert", inputs, part.storage, tensors, None)


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
    if dtype == "fp8-block":
        return FP8_BLOCK if role.fp8 and unit.storage not in FP8_BLOCKS and len(unit.shape) == 2 else unit.storage
    if dtype.upper() not in QUANTS:
        return _STORAGES[dtype]
    return _quant_for(dtype.upper(), unit.shape) if len(unit.shape) > 1 else unit.storage


def _quant_for(dtype: str, shape: tuple[int, ...]) -> str:
    """The type, or where rows are no whole blocks of it the one that llama.cpp takes then."""
    while shape[-1] % GGML_TYPES[dtype].weights:
        dtype = _FALLBACKS.get(dtype, "F16")
    return dtype


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
