"""What one checkpoint holds: components, layers, bytes, parameters, what is odd, and who made it.

Headers and config say all of that; no weight is read. With `values` every weight is read once, for what only numbers
show: NaN and infinity, FP8 codes at their largest, scales that can't be right. docs/inspect.md says how each figure is
counted. A figure that neither headers nor config say is None: unknown, never guessed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple, replace

from chimerakit.anatomy import GENERIC, Anatomy
from chimerakit.dtypes import FP8_BLOCKS, numel_of
from chimerakit.errors import CheckpointError
from chimerakit.events import Listener, Report, ignore
from chimerakit.execute import Inputs
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import MANIFEST, WORKSPACE, read_manifest
from chimerakit.output import is_finished
from chimerakit.plan.memory import MAX_MEMORY, scan_threads_within
from chimerakit.plan.panels import cut
from chimerakit.recipe import recipe_from_data
from chimerakit.records import (
    COMPONENTS,
    Checkpoint,
    Component,
    File,
    Finding,
    Input,
    MadeRow,
    Manifest,
    Outcome,
    ParentRecord,
    Role,
    Unit,
)
from chimerakit.runners.local import default_threads
from chimerakit.scan import ScanUnit, Values, objection_to, scan, scan_units

_SIDE = "checkpoint"


class Census(Struct, frozen=True, omit_defaults=True):
    """What numbers are: those of one unit, or of many."""

    values: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    """Of either sign."""
    largest: float = 0.0
    """The largest finite magnitude."""
    codes: int = 0
    """Censuses that are stored in FP8 blocks; the rest is about these."""
    nan_codes: int = 0
    saturated: int = 0
    """Codes of +-448, the largest number of FP8."""
    scales: int = 0
    nonfinite_scales: int = 0
    zero_scales: int = 0
    negative_scales: int = 0

    @property
    def nonfinite(self) -> int:
        """Censuses that are NaN or infinite."""
        return self.nan + self.infinite

    @property
    def saturation(self) -> float:
        """The share of FP8 codes that are saturated."""
        return self.saturated / self.codes if self.codes else 0.0

    @property
    def odd_scales(self) -> int:
        """Scales that are zero, negative, NaN or infinite."""
        return self.nonfinite_scales + self.zero_scales + self.negative_scales

    def __add__(self, other: "Census") -> "Census":
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        return Census(**(sums | {"largest": max(self.largest, other.largest)}))


class UnitCensus(Struct, frozen=True):
    """What the numbers of one unit are."""

    unit: str
    role: Role
    census: Census


class Censuses(Struct, frozen=True):
    """What all weights are."""

    units: tuple[UnitCensus, ...]
    unread: dict[str, str]
    """Units whose values can't be decoded, and why."""

    def worst(self) -> list["Worst"]:
        """The unit of each component that has the largest number, and the one with the most saturated codes."""
        groups: dict[Component, list[UnitCensus]] = {}
        for found in self.units:
            groups.setdefault(found.role.component, []).append(found)
        return [
            Worst(component, max(groups[component], key=_largest), max(groups[component], key=_saturation))
            for component in COMPONENTS
            if component in groups
        ]


class Worst(Struct, frozen=True):
    """Units of a component to look at first."""

    component: Component
    largest: UnitCensus
    most_saturated: UnitCensus


def _largest(found: UnitCensus) -> float:
    return found.census.largest


def _saturation(found: UnitCensus) -> float:
    return found.census.saturation


class Part(Struct, frozen=True):
    """One component of one layer; or of several, rolled up."""

    component: Component
    layers: tuple[int, ...]
    """Empty for what is in no layer."""
    mtp: bool
    """Whether all of it belongs to multi-token-prediction layers."""
    experts: int
    """Routed experts of a layer: the most, where layers differ."""
    units: int
    tensors: int
    nbytes: int
    parameters: int
    """Elements of weights; the scales of FP8 blocks are none."""
    storages: dict[str, int]
    """Bytes in each storage, scales included; most first."""
    census: Census | None = None


class Parameters(Struct, frozen=True):
    """How many weights there are, and how many of them work for one token."""

    total: int
    """Everything that is stored."""
    main: int
    """The total without MTP layers. What follows is about these."""
    mtp: int
    embedding: int
    routed: int | None
    """In routed experts; None if the model's family is unknown."""
    active: int | None
    """All that is not routed, and of each layer's routed experts the part that a token is sent to; None if the config does
    not say how many that are."""
    active_without_embedding: int | None
    """The same less the embedding, of which a token looks up one row; not less where the embedding is the head, too."""


class MadeSummary(Struct, frozen=True):
    """Units of a component that were made alike."""

    component: Component
    outcome: Outcome
    shares: dict[str, tuple[float, float]]
    """The least and the largest share of each parent."""
    units: int


class Provenance(Struct, frozen=True):
    """What a child's manifest says of its making. Whether it still holds is what verifying finds out."""

    chimerakit: str
    """The version that made it."""
    plan: str
    recipe: dict[str, Any]
    """In the recipe language."""
    parents: dict[str, ParentRecord]
    made: tuple[MadeSummary, ...]
    largest_rms_error: float | None
    """Of a unit, relative to the RMS of its values; None if nothing was rounded."""
    nonfinite: int
    """Censuses that were NaN or infinite and carried along."""


class Inspection(Struct, frozen=True):
    """Everything that is known of one checkpoint."""

    root: str
    """The folder, or the file."""
    model_type: str | None
    family: str
    weight_files: int
    nbytes: int
    """Of all weight files."""
    tensors: int
    units: int
    layers: int
    """Main layers that hold tensors."""
    mtp_layers: int
    experts_per_token: int | None
    quantization: dict[str, Any] | None
    """config.json's quantization_config."""
    parameters: Parameters
    parts: tuple[Part, ...]
    """Every component of every layer, by component and layer."""
    unknown: tuple[str, ...]
    """Tensors that the family's table does not have; for a family without a table that would be all, and there are none."""
    findings: tuple[Finding, ...]
    """What is wrong."""
    notes: tuple[str, ...]
    """What a careful user wants to know, and what is nothing wrong."""
    files: tuple[File, ...]
    left_out: tuple[str, ...]
    """What is no part of the checkpoint."""
    is_unfinished: bool
    """Whether a merge into this folder has begun and not ended."""
    provenance: Provenance | None = None
    values: Censuses | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def inspect_checkpoint(
    path: Path | str,
    *,
    values: bool = False,
    threads: int | None = None,
    max_memory: int = MAX_MEMORY,
    listener: Listener = ignore,
) -> Inspection:
    """Look at a folder or a weight file: at headers and config only, unless `values` are asked for.

    threads: jobs at a time, at most; as many as max_memory (bytes) allows. Raises CheckpointError for a damaged
    checkpoint, ManifestError or RecipeError for a damaged manifest, ManifestError for a child too unfinished to be opened,
    PlanError if one job needs more memory.
    """
    path = Path(path)
    checkpoint = _open(path)
    root = Path(checkpoint.root) if checkpoint.is_folder else Path(checkpoint.root, checkpoint.shards[0].name)
    manifest = read_manifest(root) if (root / MANIFEST).is_file() else None
    anatomy = Anatomy(checkpoint)
    units = anatomy.units()
    provenance = None if manifest is None else _provenance(manifest, units)
    taken = _take_census(anatomy, units, threads, max_memory, listener) if values else None
    parts = tuple(_parts(units.values(), taken))
    has_table = anatomy.family.name != GENERIC
    return Inspection(
        root=str(root),
        model_type=str(checkpoint.config["model_type"]) if "model_type" in checkpoint.config else None,
        family=anatomy.family.name,
        weight_files=len(checkpoint.shards),
        nbytes=checkpoint.nbytes,
        tensors=len(checkpoint.tensors),
        units=len(units),
        layers=len({layer for part in parts if not part.mtp for layer in part.layers}),
        mtp_layers=len({layer for part in parts if part.mtp for layer in part.layers}),
        experts_per_token=_number(checkpoint.config, _PER_TOKEN),
        quantization=_quantization(checkpoint.config),
        parameters=_count_parameters(anatomy, parts),
        parts=parts,
        unknown=tuple(name for name, u in units.items() if not u.role.known) if has_table else (),
        findings=tuple(_findings(anatomy, units, parts, manifest, taken)),
        notes=tuple(_notes(anatomy, parts, taken)),
        files=checkpoint.files,
        left_out=checkpoint.left_out,
        is_unfinished=(root / WORKSPACE).is_dir() and not is_finished(root),
        provenance=provenance,
        values=taken,
    )


def _open(path: Path) -> Checkpoint:
    """The checkpoint; a child that has no index yet is said to be unfinished, not damaged."""
    try:
        return open_checkpoint(path)
    except CheckpointError:
        with suppress(OSError):  # a folder that may not be entered
            if (path / WORKSPACE).is_dir() and not (path / MANIFEST).is_file():
                read_manifest(path)
        raise


# ------------------------------------------------------------------------------------------------ parts


def _parts(units: Iterable[Unit], taken: Censuses | None) -> Iterator[Part]:
    """Every component of every layer."""
    censuses = {found.unit: found.census for found in taken.units} if taken is not None else {}
    groups: dict[tuple[Component, int], list[Unit]] = {}
    for unit in units:
        layer = -1 if unit.role.layer is None else unit.role.layer
        groups.setdefault((unit.role.component, layer), []).append(unit)
    for (component, layer), own in sorted(groups.items(), key=lambda g: (COMPONENTS.index(g[0][0]), g[0][1])):
        storages = Counter[str]()
        for unit in own:
            storages[unit.storage] += unit.nbytes
        known = [censuses[unit.name] for unit in own if unit.name in censuses]
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
            census=sum(known, Census()) if taken is not None else None,
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

_PER_TOKEN = "num_experts_per_tok"


def _number(config: Mapping[str, Any], key: str) -> int | None:
    """A positive whole number of the config."""
    found = config.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _count_parameters(anatomy: Anatomy, parts: Iterable[Part]) -> Parameters:
    whole = join_parts(parts).parameters
    main = [part for part in parts if not part.mtp]
    total = sum(part.parameters for part in main)
    embedding = sum(part.parameters for part in main if part.component == "embedding")
    routed = active = without = None
    if anatomy.family.name != GENERIC:
        experts = [part for part in main if part.component == "routed_experts"]
        routed = sum(part.parameters for part in experts)
        used = _used(anatomy, experts)
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


def _used(anatomy: Anatomy, experts: Sequence[Part]) -> int | None:
    """Parameters of the routed experts that one token is sent to, in all layers; None if the config does not say."""
    config = anatomy.checkpoint.config
    per_token, of = _number(config, _PER_TOKEN), _number(config, anatomy.family.experts)
    if not experts:
        return 0
    if per_token is None or of is None or per_token > of:
        return None
    return sum(part.parameters * per_token // of for part in experts)


# ------------------------------------------------------------------------------------ findings and notes


def _findings(
    anatomy: Anatomy,
    units: Mapping[str, Unit],
    parts: Iterable[Part],
    manifest: Manifest | None,
    taken: Censuses | None,
) -> Iterator[Finding]:
    """What is wrong."""
    for unit in units.values():
        if objection := anatomy.objection(unit):
            yield Finding(False, unit.name, objection)
    yield from _missing_layers(anatomy, parts)
    yield from _missing_experts(anatomy, units.values())
    if manifest is not None:
        said = {name: (file.nbytes, file.header) for name, file in manifest.weights.items()}
        if said != {s.name: (s.nbytes, s.header_digest) for s in anatomy.checkpoint.shards}:
            yield Finding(False, MANIFEST, "tells of other weight files than lie here")
    for found in taken.units if taken is not None else ():
        if found.census.nonfinite:
            says = f"{found.census.nan} NaN and {found.census.infinite} infinite values of {found.census.values}"
            yield Finding(False, found.unit, says)


def _missing_layers(anatomy: Anatomy, parts: Iterable[Part]) -> Iterator[Finding]:
    there = {layer for part in parts if not part.mtp for layer in part.layers}
    missing = anatomy.num_layers - len(there)
    if missing:
        first = next(layer for layer in range(anatomy.num_layers) if layer not in there)
        says = f"{missing} of its {anatomy.num_layers} layers have no tensor, such as layer {first}"
        yield Finding(False, "config.json", says)


def _missing_experts(anatomy: Anatomy, units: Iterable[Unit]) -> Iterator[Finding]:
    """Layers in which an expert has fewer units than another, or none, of as many experts as the config says."""
    of = _number(anatomy.checkpoint.config, anatomy.family.experts)
    layers: dict[int | None, Counter[int]] = {}
    for unit in units:
        if unit.role.expert is not None:
            layers.setdefault(unit.role.layer, Counter())[unit.role.expert] += 1
    for layer, experts in layers.items() if of is not None else ():
        most = max(experts.values())
        whole = {expert for expert, count in experts.items() if count == most}
        if of is not None and len(whole) < of:
            first = next(expert for expert in range(of) if expert not in whole)
            says = f"{of - len(whole)} of its {of} routed experts are incomplete, such as expert {first}"
            yield Finding(False, f"layer {layer}", says)


def _notes(anatomy: Anatomy, parts: Iterable[Part], taken: Censuses | None) -> Iterator[str]:
    """What a careful user wants to know."""
    config, whole = anatomy.checkpoint.config, join_parts(parts)
    if anatomy.family.name == GENERIC:
        of = f"models of type {config['model_type']!r}" if "model_type" in config else "a model of no type"
        yield f"there is no table of {of}: all its tensors are 'other', routed and active parameters are unknown"
    elif _used(anatomy, [part for part in parts if part.component == "routed_experts" and not part.mtp]) is None:
        yield f"config.json does not say how many experts a token is sent to ({_PER_TOKEN}, {anatomy.family.experts})"
    quantization = _quantization(config)
    has_blocks = any(storage in FP8_BLOCKS for storage in whole.storages)
    if has_blocks and quantization is None:
        yield "weights are in FP8 blocks, but config.json has no quantization_config: engines will not scale them"
    if quantization is not None and not has_blocks:
        yield "config.json has a quantization_config, but no weight is in FP8 blocks: parameters are elements as stored"
    if anatomy.family.name != GENERIC:
        said, found = _number(config, "num_nextn_predict_layers") or 0, len({*_mtp_layers(parts)})
        if said != found:
            yield f"config.json says {said} MTP layers (num_nextn_predict_layers), and there are {found}"
    odd = [found for found in taken.units if found.census.odd_scales] if taken is not None else []
    if odd:
        yield f"{len(odd)} units have odd scales, such as {odd[0].unit}: {_say_scales(odd[0].census)}"


def _mtp_layers(parts: Iterable[Part]) -> Iterator[int]:
    return (layer for part in parts if part.mtp for layer in part.layers)


def _say_scales(census: Census) -> str:
    """What is odd about scales."""
    counts = {
        "0": census.zero_scales,
        "negative": census.negative_scales,
        "NaN or infinite": census.nonfinite_scales,
    }
    return f"of {census.scales} scales " + ", ".join(f"{count} are {what}" for what, count in counts.items() if count)


def _quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else None


# ------------------------------------------------------------------------------------------- provenance


def _provenance(manifest: Manifest, units: Mapping[str, Unit]) -> Provenance:
    recipe_from_data(manifest.recipe, MANIFEST)  # refuses what is no recipe
    groups: dict[tuple[Component, Outcome, tuple[str, ...]], list[MadeRow]] = {}
    for row in manifest.units:
        component: Component = units[row.unit].role.component if row.unit in units else "other"
        groups.setdefault((component, row.outcome, tuple(row.parents)), []).append(row)
    made = [
        MadeSummary(
            component,
            outcome,
            {p: (min(r.parents[p] for r in rows), max(r.parents[p] for r in rows)) for p in parents},
            len(rows),
        )
        for (component, outcome, parents), rows in groups.items()
    ]
    return Provenance(
        chimerakit=manifest.chimerakit,
        plan=manifest.plan,
        recipe=manifest.recipe,
        parents=manifest.parents,
        made=tuple(sorted(made, key=lambda m: COMPONENTS.index(m.component))),
        largest_rms_error=max((r.rms_error for r in manifest.units if r.rms_error is not None), default=None),
        nonfinite=sum(row.nonfinite for row in manifest.units),
    )


# ----------------------------------------------------------------------------------------------- values


def _take_census(
    anatomy: Anatomy, units: Mapping[str, Unit], threads: int | None, max_memory: int, listener: Listener
) -> Censuses:
    """Read every unit that can be decoded, once."""
    unread = {name: why for name, unit in units.items() if (why := objection_to(anatomy, unit))}
    readable = [unit for unit in scan_units({_SIDE: units}) if unit.name not in unread]
    shapes = [unit.sides[_SIDE].tensors[0].shape for unit in readable]
    most = max((cut(shape, is_blocked=len(shape) == 2).most for shape in shapes), default=0)
    threads = scan_threads_within(len(readable), most, 1, max_memory, threads or default_threads())
    sides = {_SIDE: anatomy.checkpoint}
    found = {u.name: c for u, c in scan("counting", _census, sides, readable, threads=threads, listener=listener)}
    return Censuses(tuple(UnitCensus(unit.name, unit.role, found[unit.name]) for unit in readable), unread)


def _census(unit: ScanUnit, inputs: Inputs, report: Report) -> Census:
    """What the numbers of one unit are; reports all of its bytes."""
    from chimerakit.numerics.census import count

    part = unit.sides[_SIDE]
    weight, is_blocked = part.tensors[0], part.storage in FP8_BLOCKS
    scales = numel_of(part.tensors[1].shape) if is_blocked else 0
    found = Census(values=numel_of(weight.shape), codes=numel_of(weight.shape) if is_blocked else 0, scales=scales)
    if _is_hole(part, inputs):
        report(unit.nbytes)
        zero_scales = scales if part.tensors[-1].dtype == "F32" else 0  # an exponent of 0 is 2^-127
        return replace(found, zeros=found.values, zero_scales=zero_scales)
    values, done = Values(unit, [_SIDE], inputs, report), 0
    for panel in values.panels():
        term = values.term(_SIDE, panel)
        found += Census(**count(term, (panel.rows, panel.cols))._asdict())
        done += term.data.nbytes
        report(term.data.nbytes)
    report(unit.nbytes - done)
    return found


def _is_hole(part: Input, inputs: Inputs) -> bool:
    """Whether no byte of a unit takes space on the disk, so that all of them are zeros."""
    extents = (inputs.reader(_SIDE, tensor.file).extents(tensor.start, tensor.nbytes) for tensor in part.tensors)
    return not any(is_data for found in extents for _, _, is_data in found)
