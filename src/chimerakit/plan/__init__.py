"""Recipe + Checkpoints -> Plan: every decision of a merge, made from headers alone.

    claims.py   which rule takes which unit, at which shares
    deltas.py   rules that mix a unit only where parents lie far enough apart
    drafts.py   one row of the child before it has a place
    select.py   every unit of the base as a draft, and everything that does not fit
    advice.py   what to write so that it fits
    layout.py   which bytes go where: files, offsets, headers, jobs
    files.py    config, tokenizer, template, index and the other files

Everything here is pure: records in, records out, no file is opened. What is wrong is collected and said at once.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from chimerakit.anatomy import GENERIC, Anatomy
from chimerakit.dtypes import MIXABLE, QUANTS
from chimerakit.errors import PlanError
from chimerakit.numerics import VERSION as NUMERICS
from chimerakit.plan.deltas import Distances
from chimerakit.plan.drafts import Draft
from chimerakit.plan.encoding import encoded_weights, note_few_bits
from chimerakit.plan.files import plan_files
from chimerakit.plan.gguf import place_gguf
from chimerakit.plan.keys import differing_keys
from chimerakit.plan.layout import Layout, cut_segments, place
from chimerakit.plan.select import select
from chimerakit.recipe import recipe_to_data, say_rule, without_places
from chimerakit.records import (
    IMATRIX,
    Amount,
    Checkpoint,
    DeltaSummary,
    ImatrixFile,
    Job,
    Plan,
    Recipe,
    Row,
    RuleSummary,
)
from chimerakit.stores.digest import Hasher

_ONE_FORMAT = (
    "weights of both in one child would be decoded and rounded anew; convert one of them, or take parents of one format"
)
SEGMENT_NBYTES = 256 << 20
"""Bytes that one job writes, if its units allow: enough to make jobs few, little enough to lose."""


def make_plan(
    recipe: Recipe,
    parents: Mapping[str, Checkpoint],
    distances: Distances | None = None,
    *,
    imatrix: ImatrixFile | None = None,
    segment_nbytes: int = SEGMENT_NBYTES,
) -> Plan:
    """Decide everything about a child.

    distances: where rules have a delta, how far parents lie from the base, as `deltas.read_distances` has it. imatrix: what
    quants of GGUF children are encoded by. Raises PlanError with every problem: rules that match nothing, parents that lack what
    is taken from them, shapes, storages and config values that disagree, distances that are not known.
    """
    if set(parents) != set(recipe.parents):
        raise PlanError(
            [f"the recipe's parents are {', '.join(recipe.parents)}; given: {', '.join(parents) or 'none'}"]
        )
    recipe = without_places(recipe)
    anatomies = {name: Anatomy(parents[name]) for name in recipe.parents}
    base = parents[recipe.base]
    if not base.tensors:
        raise PlanError([f"the base {recipe.base!r} has no tensors"])
    if problems := [*_disagreements(recipe.base, anatomies), *_misplaced(recipe, base)]:
        raise PlanError(problems)
    drafts, problems = select(recipe, anatomies, distances or {}, imatrix)
    if not problems:
        is_gguf = base.format == "gguf"
        layout = place_gguf(recipe, parents, drafts, imatrix) if is_gguf else place(recipe, parents, drafts)
        files, problems = plan_files(recipe, parents, layout, {d.storage for d in drafts})
    if problems:
        raise PlanError(problems)
    segments = cut_segments(layout.rows, segment_nbytes)
    return Plan(
        recipe=recipe,
        parents={name: parents[name] for name in recipe.parents},
        family=anatomies[recipe.base].family.name,
        rows=layout.rows,
        shards=layout.shards,
        files=files,
        segments=segments,
        summaries=_summaries(recipe, layout.rows),
        reads=_reads(recipe, layout),
        notes=tuple(_notes(recipe, anatomies, drafts)),
        digest=_digest(recipe, parents, layout, files, imatrix),
        imatrix=imatrix,
    )


def make_jobs(
    plan: Plan,
    output: Path,
    *,
    linked: Collection[str] = (),
    allow_nonfinite: bool = False,
    sha256: bool = False,
) -> list[Job]:
    """The plan's jobs for a child at `output`. Each file's header belongs to the first job that touches the file.

    linked: weight files that are hard links to a parent's already.
    """
    headers = {shard.name: shard.header for shard in plan.shards}
    sizes = {shard.name: shard.nbytes for shard in plan.shards}
    roots, signatures = plan.roots, plan.signatures
    filled = {tensor.file for row in plan.rows for tensor in row.outputs}
    jobs = []
    for number, (first, last) in enumerate(plan.segments):
        rows = plan.rows[first:last]
        touched = dict.fromkeys(t.file for row in rows for t in row.outputs)
        if number == 0:  # a file without tensors has no job of its own
            touched |= dict.fromkeys(name for name in headers if name not in filled)
        mine = tuple(headers.pop(name) for name in touched if name in headers)
        used: dict[str, set[str]] = defaultdict(set)
        if plan.imatrix is not None and any(row.importance is not None for row in rows):
            used[IMATRIX].add(plan.imatrix.name)
        for part in (part for row in rows for part in row.inputs):
            used[part.parent].update(t.file for t in part.tensors)
        for header in mine:
            for parent, shard in [(header.parent, header.shard), *((p.parent, p.shard) for p in header.parts)]:
                if parent is not None and shard is not None:
                    used[parent].add(shard)
        jobs.append(
            Job(
                id=number,
                roots={name: roots[name] for name in used},
                signatures={
                    name: {file: signatures[name][file] for file in sorted(files)} for name, files in used.items()
                },
                output=str(output),
                sizes={name: sizes[name] for name in touched},
                headers=mine,
                rows=rows,
                linked=tuple(name for name in touched if name in linked),
                allow_nonfinite=allow_nonfinite,
                sha256=sha256,
            )
        )
    return jobs


# --------------------------------------------------------------------------------------------- details


def _disagreements(base: str, anatomies: Mapping[str, Anatomy]) -> list[str]:
    """Parents of another family, or whose config gives the same tensors another meaning."""
    found = []
    own = anatomies[base]
    meaning = own.meaning()
    for name, anatomy in anatomies.items():
        formats = [a.checkpoint.format for a in (own, anatomy)]
        if formats[0] != formats[1]:
            found.append(f"{name!r} is {formats[1]} and the base {formats[0]}: {_ONE_FORMAT}")
            continue
        types = [a.checkpoint.model_type or "not said" for a in (own, anatomy)]
        if anatomy.family.name != own.family.name or (own.family.name == GENERIC and types[0] != types[1]):
            found.append(f"{name!r} is of another architecture than the base: model_type {types[1]}, not {types[0]}")
            continue
        theirs = anatomy.meaning()
        unlike = [
            f"{key}: {theirs[key]!r}, not {value!r}"
            for key, value in meaning.items()
            if theirs[key] != value and repr(theirs[key]) != repr(value)  # 1 is 1.0, and NaN is NaN
        ]
        if unlike:
            found.append(
                f"{name!r} has config values that give tensors another meaning than the base's: " + "; ".join(unlike)
            )
    return found


def _misplaced(recipe: Recipe, base: Checkpoint) -> Iterator[str]:
    """What a recipe asks of its output that the base's format does not have."""
    output = recipe.output
    if base.format == "gguf" and output.shards != "base":
        yield f"output: shards: {output.shards} is for safetensors; split GGUF with split_max_size"
    if base.format != "gguf" and output.split_max_size is not None:
        yield "output: split_max_size is for GGUF; safetensors are laid out with shards"
    if base.format == "gguf" and output.dtype == "fp8-block":
        yield f"output: dtype: {output.dtype} is for safetensors"
    if base.format != "gguf" and output.dtype.upper() in QUANTS:
        yield f"output: dtype: {output.dtype} is for GGUF"


def _summaries(recipe: Recipe, rows: tuple[Row, ...]) -> tuple[RuleSummary, ...]:
    rows_of: dict[int | None, list[Row]] = {rule: [] for rule in [*range(len(recipe.rules)), None]}
    for row in rows:
        rows_of[row.rule].append(row)
    found = []
    for rule, taken in rows_of.items():
        mtp = [row for row in taken if row.role.mtp]
        kinds = {kind: sum(row.kind == kind for row in taken) for kind in ("copy", "convert", "mix")}
        found.append(
            RuleSummary(
                rule=rule,
                says="everything else from the base" if rule is None else say_rule(recipe.rules[rule]),
                units=len(taken),
                tensors=sum(len(row.outputs) for row in taken),
                nbytes=sum(row.nbytes for row in taken),
                mtp_tensors=sum(len(row.outputs) for row in mtp),
                mtp_nbytes=sum(row.nbytes for row in mtp),
                kinds={kind: count for kind, count in kinds.items() if count},
                delta=None if rule is None else _summarize_delta(recipe, rule, taken),
            )
        )
    return tuple(found)


def _summarize_delta(recipe: Recipe, rule: int, taken: list[Row]) -> DeltaSummary | None:
    delta = recipe.rules[rule].delta
    if delta is None:
        return None
    parts: dict[bool, list[Row]] = {True: [], False: []}
    for row in taken:
        parts[[(part.parent, part.share) for part in row.inputs] == [(recipe.base, 1)]].append(row)
    return DeltaSummary(delta, mixed=_amount(parts[False]), left=_amount(parts[True]))


def _amount(rows: Collection[Row]) -> Amount:
    return Amount(len(rows), sum(len(row.outputs) for row in rows), sum(row.nbytes for row in rows))


def _reads(recipe: Recipe, layout: Layout) -> dict[str, int]:
    reads = dict.fromkeys(recipe.parents, 0)
    for row in layout.rows:
        for part in row.inputs:
            reads[part.parent] += sum(t.nbytes for t in part.tensors)
    return reads


def _notes(recipe: Recipe, anatomies: Mapping[str, Anatomy], drafts: list[Draft]) -> list[str]:
    base = anatomies[recipe.base].checkpoint
    notes = []
    if anatomies[recipe.base].family.name == GENERIC:
        said = base.model_type
        why = "there is no config.json" if not base.config else f"there is no table for model_type {said!r}"
        notes.append(f"{why}: every tensor is `other`; select by names")
    elif unknown := [d.name for d in drafts if not d.role.known]:
        notes.append(f"{len(unknown)} tensors have names that the family's table does not know: {_some(unknown)}")
    moved = {(p.parent, t.name) for d in drafts for p in d.inputs if p.arrangement is not None for t in p.tensors}
    for name, anatomy in anatomies.items():
        parent = anatomy.checkpoint
        more = (t for t in parent.tensors if t not in base.tensors and (name, t) not in moved)
        if extra := [t for t in more if not _is_companion(t, anatomy, base)]:
            notes.append(
                f"{name!r} has {len(extra)} tensors that the base lacks; the child will not have them: {_some(extra)}"
            )
        if parent.format == "gguf" and (unlike := differing_keys(base, parent)):
            notes.append(f"{name!r} differs from the base in {len(unlike)} keys: {'; '.join(unlike)}")
        if parent.left_out:
            notes.append(
                f"{name!r} has files that are no part of its checkpoint and are not copied: {_some(parent.left_out)}"
            )
        if unlike := [f for f in sorted({*parent.texts, *base.texts}) if parent.texts.get(f) != base.texts.get(f)]:
            notes.append(
                f"{name!r} differs from the base in {' and '.join(unlike)}; output: can choose whose the child gets"
            )
    notes += note_few_bits(encoded_weights((d.kind, d.storage, d.tensors[0].shape) for d in drafts))
    convertible = [d for d in drafts if d.role.convertible and recipe.output.dtype != "keep"]
    if kept := [d.name for d in convertible if d.storage not in MIXABLE]:
        notes.append(f"{len(kept)} units can't be converted and stay as they are stored: {_some(kept)}")
    used = {part.parent for draft in drafts for part in draft.inputs}
    notes += [f"nothing is taken from {name!r}" for name in recipe.parents if name not in used]
    return notes


def _is_companion(tensor: str, anatomy: Anatomy, base: Checkpoint) -> bool:
    """A scale that the base needs not, because it stores the weight otherwise."""
    return tensor.removesuffix(anatomy.family.companion) in base.tensors


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _digest(
    recipe: Recipe, parents: Mapping[str, Checkpoint], layout: Layout, files: object, imatrix: ImatrixFile | None
) -> str:
    hasher = Hasher()
    for text in _decisions(recipe, parents, layout, files):
        hasher.update(text)
    if imatrix is not None:
        hasher.update(imatrix.digest.encode())
    return hasher.xxh3


def _decisions(recipe: Recipe, parents: Mapping[str, Checkpoint], layout: Layout, files: object) -> Iterator[bytes]:
    """Everything that decides the child's bytes, as one JSON array in pieces: of 100,000 rows it is 20 MB."""
    encode = msgspec.json.Encoder(order="deterministic").encode
    shards = {name: [(s.name, s.nbytes, s.header_digest) for s in c.shards] for name, c in parents.items()}
    yield b"[" + b",".join(map(encode, (recipe_to_data(recipe), shards, layout.shards, files))) + b",["
    for number, row in enumerate(layout.rows):
        inputs = [
            (
                i.parent,
                i.share,
                i.storage,
                [(t.file, t.start, t.nbytes) for t in i.tensors],
                *filter(None, (i.arrangement,)),
            )
            for i in row.inputs
        ]
        text = encode((row.kind, row.storage, row.if_equal, inputs, row.outputs, *filter(None, (row.importance,))))
        yield text if number == 0 else b"," + text
    yield b"]," + encode(NUMERICS) + b"]"
