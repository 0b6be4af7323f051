"""What is wrong with a checkpoint, what is odd about it, and what its manifest says of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chimerakit.anatomy import GENERIC, Anatomy
from chimerakit.dtypes import FP8_BLOCKS
from chimerakit.inspect.parts import experts_used, join_parts
from chimerakit.inspect.records import Census, Censuses, MadeSummary, Part, Provenance
from chimerakit.manifest import MANIFEST
from chimerakit.recipe import recipe_from_data
from chimerakit.records import (
    COMPONENTS,
    Component,
    Finding,
    MadeRow,
    Manifest,
    Outcome,
    Unit,
)


def find_objections(
    anatomy: Anatomy,
    units: Mapping[str, Unit],
    parts: Iterable[Part],
    manifest: Manifest | None,
    censuses: Censuses | None,
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
    for found in censuses.units if censuses is not None else ():
        if found.census.nonfinite:
            says = f"{found.census.nan} NaN and {found.census.infinite} infinite values of {found.census.values}"
            yield Finding(False, found.unit, says)


def _missing_layers(anatomy: Anatomy, parts: Iterable[Part]) -> Iterator[Finding]:
    there = {layer for part in parts if not part.mtp for layer in part.layers}
    missing = anatomy.num_layers - len(there)
    if missing:
        first = next(layer for layer in range(anatomy.num_layers) if layer not in there)
        says = f"{missing} of its {anatomy.num_layers} layers have no tensor, such as layer {first}"
        yield Finding(False, anatomy.checkpoint.config_place, says)


def _missing_experts(anatomy: Anatomy, units: Iterable[Unit]) -> Iterator[Finding]:
    """Layers in which an expert has fewer units than another, or none, of as many experts as the config says."""
    of = anatomy.number(anatomy.family.experts)
    layers: dict[int | None, Counter[int]] = {}
    for unit in units:
        if unit.role.expert is not None:
            layers.setdefault(unit.role.layer, Counter())[unit.role.expert] += 1
    if of is None:
        return
    for layer, experts in layers.items():
        most = max(experts.values())
        whole = {expert for expert, count in experts.items() if count == most}
        if len(whole) < of:
            first = next(expert for expert in range(of) if expert not in whole)
            says = f"{of - len(whole)} of its {of} routed experts are incomplete, such as expert {first}"
            yield Finding(False, f"layer {layer}", says)


def note_oddities(anatomy: Anatomy, parts: Iterable[Part], censuses: Censuses | None) -> Iterator[str]:
    """What a careful user wants to know."""
    config, whole, place = anatomy.checkpoint.config, join_parts(parts), anatomy.checkpoint.config_place
    if anatomy.family.name == GENERIC:
        said = anatomy.checkpoint.model_type
        of = "a model of no type" if said is None else f"models of type {said!r}"
        yield f"there is no table of {of}: all its tensors are 'other', routed and active parameters are unknown"
    elif experts_used(anatomy, [part for part in parts if part.component == "routed_experts" and not part.mtp]) is None:
        keys = ", ".join(map(anatomy.key, (anatomy.family.experts_per_token, anatomy.family.experts)))
        yield f"{place} does not say how many experts a token is sent to ({keys})"
    quantization = say_quantization(config)
    has_blocks = any(storage in FP8_BLOCKS for storage in whole.storages)
    if has_blocks and quantization is None:
        yield "weights are in FP8 blocks, but config.json has no quantization_config: engines will not scale them"
    if quantization is not None and not has_blocks:
        yield "config.json has a quantization_config, but no weight is in FP8 blocks: parameters are elements as stored"
    if anatomy.family.name != GENERIC:
        claimed, found = anatomy.number(anatomy.family.mtp_layers) or 0, len({*_mtp_layers(parts)})
        if claimed != found:
            yield f"{place} says {claimed} MTP layers ({anatomy.key(anatomy.family.mtp_layers)}), and there are {found}"
    odd = [found for found in censuses.units if found.census.odd_scales] if censuses is not None else []
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


def say_quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the config says of how weights are quantised."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else None


def find_provenance(manifest: Manifest, units: Mapping[str, Unit]) -> Provenance:
    """What a manifest says of who made the checkpoint, and of what. Raises RecipeError for a recipe that is none."""
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
