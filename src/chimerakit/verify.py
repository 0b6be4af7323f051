"""Child + manifest (+ parents) -> Findings: is this child what its manifest says, and is that what its parents make?

Without parents every byte of the child is digested and compared with the manifest. With parents the plan is made again
from the manifest's recipe, every unit is made again into a comparison with the child's bytes, and the whole manifest is
made again from the plan and from what that showed. So a proof rests on the recipe and the parents only: everything else
that the manifest says must follow from them, and the child's headers and files are those that it names.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.card import write_card
from chimerakit.child import CARD
from chimerakit.errors import ChimerakitError, ManifestError, PlanError, printable
from chimerakit.events import Listener, ignore, one_at_a_time
from chimerakit.execute import Inputs, Report, make_unit, new_header
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import MANIFEST, is_as_encoded, make_manifest, parent_record, read_manifest
from chimerakit.plan import make_jobs, make_plan
from chimerakit.recipe import recipe_from_data
from chimerakit.records import (
    Checkpoint,
    FileRow,
    Finding,
    Findings,
    Header,
    Input,
    Job,
    Made,
    MadeRow,
    Manifest,
    OtherFile,
    Plan,
    Receipt,
    Role,
    Tensor,
    WeightFile,
)
from chimerakit.runners.local import default_threads
from chimerakit.runners.watched import run_watched
from chimerakit.scan import ScanUnit, scan
from chimerakit.stores.digest import Hasher, TensorDigests, digest_file, digest_of, digest_range
from chimerakit.stores.local import Buffer, Reader, Readers, same_bytes

_CHILD = "child"
_SHOWN = 160
"""Characters of a value in a message."""


def verify_child(
    path: Path | str,
    parents: Mapping[str, Checkpoint] | None = None,
    *,
    threads: int | None = None,
    listener: Listener = ignore,
) -> Findings:
    """Check a child against its manifest and, where parents are given, both against them.

    Raises ManifestError if there is no readable manifest; anything else that is wrong is a finding.
    """
    path = Path(path)
    manifest = read_manifest(path)
    findings = list(_check_files(path, manifest))
    try:
        child = open_checkpoint(path)
    except ChimerakitError as e:
        findings.append(Finding(False, path.name, str(e)))
        return _sum_up(path, findings, 0)
    findings += _check_headers(child, manifest)
    findings += _check_names(child, manifest)
    if any(not finding.ok for finding in findings):
        # Headers that are not the manifest's say nothing about where a unit's bytes are.
        return _sum_up(path, findings, 0)
    threads = threads or default_threads()
    if parents is None:
        findings += _check_digests(child, manifest, threads, one_at_a_time(listener))
    else:
        findings += _check_parents(child, manifest, parents, threads, one_at_a_time(listener))
    return _sum_up(path, findings, sum(t.nbytes for t in child.tensors.values()))


def _sum_up(path: Path, findings: Iterable[Finding], nbytes: int) -> Findings:
    findings = list(findings)
    passed = Counter(finding.says for finding in findings if finding.ok)
    return Findings(path.name, tuple(f for f in findings if not f.ok), dict(passed), nbytes)


def _has_sha256(manifest: Manifest) -> bool:
    """Whether the child was made with sha256; then everything has one."""
    files: list[WeightFile | OtherFile] = [*manifest.weights.values(), *manifest.files.values()]
    return any(f.sha256 is not None for f in files) or any(made.sha256 is not None for made in manifest.units)


# --------------------------------------------------------------------------------- files and names


def _check_files(path: Path, manifest: Manifest) -> Iterable[Finding]:
    """Every file that the manifest names is there with its size and its digest; nothing else is there."""
    for name in sorted(manifest.weights.keys() & manifest.files.keys()):
        yield Finding(False, name, "is in the manifest twice, as weights and as another file")
    has_sha256 = _has_sha256(manifest)
    named: dict[str, WeightFile | OtherFile] = {**manifest.files, **manifest.weights}
    for name, said in named.items():
        # A manifest is a file that anybody may have written: it must not make us read elsewhere.
        is_outside = Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts
        if is_outside or "\\" in name or "\0" in name:
            raise ManifestError("names a file outside its folder", where=path / MANIFEST, found=name)
        objection = _object_to(path, name, said, sha256=has_sha256)
        kind = "headers as written" if isinstance(said, WeightFile) else "other files as written"
        yield Finding(objection is None, name, kind if objection is None else objection)
    for name, says in _others(path, {*named, MANIFEST}):
        yield Finding(False, printable(name), says)


def _object_to(path: Path, name: str, said: WeightFile | OtherFile, *, sha256: bool) -> str | None:
    """What is wrong with a file that the manifest names."""
    file = path / name
    # A link could show one file to us and another to whoever loads the child later.
    if Path(os.path.realpath(file)) != Path(os.path.realpath(path), name):
        return "is a symbolic link, or lies behind one"
    try:
        if not file.is_file():
            return "is missing"
        if (nbytes := file.stat().st_size) != said.nbytes:
            return f"has {nbytes} bytes, the manifest says {said.nbytes}"
        if isinstance(said, WeightFile):
            # A number from the manifest: it must not make us read before, or far beyond, the file.
            if not 0 <= said.header_nbytes <= nbytes:
                return f"has {nbytes} bytes, the manifest says {said.header_nbytes} for its header"
            is_same = digest_file(file, said.header_nbytes).xxh3 == said.header
            return None if is_same else "the header is not the one that was written (digest)"
        found = digest_file(file, sha256=sha256)
    except OSError as e:
        return f"can't be read: {e.strerror}"
    except ChimerakitError as e:
        return str(e)
    if found.xxh3 != said.digest:
        return "the file is not the one that was written (digest)"
    return None if found.sha256 == said.sha256 else _claims("sha256", said.sha256, found.sha256, "it has")


def _others(path: Path, named: set[str]) -> Iterable[tuple[str, str]]:
    """What is in the folder and not in the manifest. Hidden files and folders belong to other tools: not looked at."""
    refused: list[OSError] = []
    for folder, below, names in os.walk(path, onerror=refused.append):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for entry in (Path(folder, name) for name in (*below, *sorted(names)) if not name.startswith(".")):
            name = entry.relative_to(path).as_posix()
            if entry.is_symlink():
                if name not in named or name == MANIFEST:
                    yield name, "is a symbolic link"
            elif name not in named and not entry.is_dir():
                yield name, "is not in the manifest"
    for e in refused:
        yield os.path.relpath(e.filename, path), f"can't be listed: {e.strerror}"


def _check_headers(child: Checkpoint, manifest: Manifest) -> Iterable[Finding]:
    """The child's weight files are the manifest's, and their headers end where it says."""
    shards = {shard.name: shard for shard in child.shards}
    for name in manifest.weights:
        if name not in shards:
            yield Finding(False, name, "is a weight file of the manifest, but none of the child")
    for name, shard in shards.items():
        said = manifest.weights.get(name)
        if said is None:
            yield Finding(False, name, "is a weight file of the child, but none of the manifest")
        elif said.header_nbytes != shard.header_nbytes:
            yield Finding(
                False, name, _claims("header_nbytes", said.header_nbytes, shard.header_nbytes, "the file has")
            )


def _check_names(child: Checkpoint, manifest: Manifest) -> Iterable[Finding]:
    """Child and manifest name the same tensors, each once, and each under its unit."""
    said = Counter(name for unit in manifest.units for name in unit.tensors)
    for name in child.tensors:
        if name not in said:
            yield Finding(False, name, "is in the child but not in the manifest")
    for name, count in said.items():
        if name not in child.tensors:
            yield Finding(False, name, "is in the manifest but not in the child")
        elif count > 1:
            yield Finding(False, name, "is in the manifest twice")
    for name, count in Counter(unit.unit for unit in manifest.units).items():
        if count > 1:
            yield Finding(False, name, "is in the manifest twice, as a unit")
    for unit in manifest.units:
        if unit.unit not in unit.tensors:
            yield Finding(False, unit.unit, "is a unit of the manifest that does not hold the tensor of its name")


def _claims(what: str, claimed: object, right: object, who: str) -> str:
    return f"the manifest says {what} {_short(claimed)}, {who} {_short(right)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


# ------------------------------------------------------------------------------------------- bytes


def _check_digests(child: Checkpoint, manifest: Manifest, threads: int, listener: Listener) -> Iterable[Finding]:
    """Every tensor has the digests that the manifest says, and so has every weight file."""
    units = []
    for made in manifest.units:
        tensors = tuple(child.tensors[name] for name in made.tensors)
        units.append(ScanUnit(made.unit, Role("other"), {_CHILD: Input(_CHILD, 1.0, "", tensors)}))
    said = {name: (digest, made.sha256) for made in manifest.units for name, digest in made.tensors.items()}
    has_sha256 = _has_sha256(manifest)
    ask = _digest_unit(sha256=has_sha256)
    for _, found in scan("verifying", ask, {_CHILD: child}, units, threads=threads, listener=listener):
        for name, digests in found.items():
            xxh3, sha256 = said[name]
            if digests.xxh3 != xxh3:
                yield Finding(False, name, "its bytes are not those that were written (digest)")
            elif digests.sha256 != (claimed := (sha256 or {}).get(name)):
                yield Finding(False, name, _claims("sha256", claimed, digests.sha256, "its bytes have"))
            else:
                yield Finding(True, name, "tensors as written (digest)")
    for made in manifest.units:
        for name in (made.sha256 or {}).keys() - made.tensors.keys():
            yield Finding(False, made.unit, f"the manifest says a sha256 of {name!r}, which is not in this unit")
    if has_sha256:
        for name, right in _sha256_of_weights(child, threads, listener).items():
            if manifest.weights[name].sha256 != right:
                yield Finding(False, name, _claims("sha256", manifest.weights[name].sha256, right, "the file has"))
            else:
                yield Finding(True, name, "weight files as written (sha256)")


def _digest_unit(*, sha256: bool) -> Callable[[ScanUnit, Inputs, Report], dict[str, Hasher]]:
    def ask(unit: ScanUnit, inputs: Inputs, report: Report) -> dict[str, Hasher]:
        return {
            t.name: digest_range(inputs.reader(_CHILD, t.file), t.start, t.nbytes, sha256=sha256, report=report)
            for t in unit.sides[_CHILD].tensors
        }

    return ask


class _WholeFile(Struct, frozen=True):
    name: str
    nbytes: int


def _sha256_of_weights(child: Checkpoint, threads: int, listener: Listener) -> dict[str, str | None]:
    """sha256 of whole weight files: it needs their bytes in order, so each is read once more."""

    def digest(file: _WholeFile, report: Report) -> tuple[str, str | None]:
        with Readers() as readers:
            reader = readers.get(Path(child.root, file.name))
            return file.name, digest_range(reader, 0, file.nbytes, sha256=True, report=report).sha256

    files = [_WholeFile(shard.name, shard.nbytes) for shard in child.shards]
    return dict(run_watched("sha256 of weight files", digest, files, threads=threads, listener=listener))


# ----------------------------------------------------------------------------------------- parents


def _check_parents(
    child: Checkpoint, manifest: Manifest, parents: Mapping[str, Checkpoint], threads: int, listener: Listener
) -> Iterable[Finding]:
    """Every byte and every statement is what recipe and parents give."""
    recipe = recipe_from_data(manifest.recipe, MANIFEST)
    if set(parents) != set(recipe.parents):
        raise PlanError([f"the child's parents are {', '.join(recipe.parents)}; given: {', '.join(parents) or 'none'}"])
    unlike = [Finding(False, n, why) for n, c in parents.items() for why in _other_parent(manifest, n, c)]
    if unlike:
        yield from unlike
        return
    plan = make_plan(recipe, parents)
    if plan.digest != manifest.plan:
        yield Finding(False, MANIFEST, "its recipe and parents give another plan than the one that it names")
        return
    has_sha256 = _has_sha256(manifest)
    headers = {shard.name: _digest_header(plan, shard.header) for shard in plan.shards}
    files = {row.name: _expect_file(plan, row, sha256=has_sha256) for row in plan.files}
    files[CARD] = _expect_text(write_card(plan), sha256=has_sha256)
    misplaced = list(_unlike_weights(manifest, plan, headers))
    if misplaced:
        # The plan says nothing about where the bytes of such a child are.
        yield from misplaced
        yield from _unlike_records(manifest.files, files)
        return
    jobs = make_jobs(plan, Path(child.root), allow_nonfinite=True, sha256=has_sha256)
    said = {made.unit: made for made in manifest.units}
    made = []
    changed = set()
    for proven in (
        p for answers in run_watched("proving", _prove_job, jobs, threads=threads, listener=listener) for p in answers
    ):
        made.append(_made(proven, said.get(proven.made.unit)))
        changed |= {child.tensors[name].file for name in proven.first_unlike}
        yield from _say_proven(proven)
    sha256: dict[str, str | None] = dict.fromkeys(headers)
    if has_sha256:
        found = _sha256_of_weights(child, threads, listener)
        sha256 = {n: manifest.weights[n].sha256 if n in changed else found[n] for n in headers}
    receipt = Receipt(0, 0, headers, tuple(made))
    expected = make_manifest(plan, [receipt], files, sha256, allow_nonfinite=True)
    yield from _compare_manifests(Path(child.root), manifest, replace(expected, chimerakit=manifest.chimerakit))


def _other_parent(manifest: Manifest, name: str, parent: Checkpoint) -> Iterable[str]:
    said, found = manifest.parents.get(name), parent_record(parent.shards, parent.config)
    if said is None:
        yield "is a parent of the recipe, but the manifest has no record of it"
        return
    if said.config != found.config:
        yield "is not the parent that the manifest names: config.json differs"
    unlike = [f for f in {**said.shards, **found.shards} if said.shards.get(f) != found.shards.get(f)]
    if unlike:
        yield f"is not the parent that the manifest names: {len(unlike)} weight files differ, such as {sorted(unlike)[0]}"


# ------------------------------------------------------------------------- what the manifest must say


def _digest_header(plan: Plan, header: Header) -> str:
    if header.parent is None:
        return digest_of(new_header(header))
    return next(s.header_digest for s in plan.parents[header.parent].shards if s.name == header.shard)


def _expect_file(plan: Plan, row: FileRow, *, sha256: bool) -> OtherFile:
    if row.parent is None or row.source is None:
        return _expect_text(row.text or "", sha256=sha256)
    parent = plan.parents[row.parent]
    with Readers() as readers:
        reader = readers.get(Path(parent.root, row.source), parent.signatures[row.source])
        found = digest_range(reader, 0, reader.nbytes, sha256=sha256)
        return OtherFile(reader.nbytes, found.xxh3, found.sha256)


def _expect_text(text: str, *, sha256: bool) -> OtherFile:
    data, hasher = text.encode(), Hasher(sha256=sha256)
    hasher.update(data)
    return OtherFile(len(data), hasher.xxh3, hasher.sha256)


def _unlike_weights(manifest: Manifest, plan: Plan, headers: Mapping[str, str]) -> Iterable[Finding]:
    """Weight files that are not as planned, sha256 aside: that needs their bytes."""
    claimed = {name: replace(file, sha256=None) for name, file in manifest.weights.items()}
    return _unlike_records(
        claimed, {s.name: WeightFile(s.nbytes, s.header.nbytes, headers[s.name]) for s in plan.shards}
    )


def _compare_manifests(path: Path, claimed: Manifest, right: Manifest) -> Iterable[Finding]:
    """Every statement of the manifest beside what recipe and parents give."""
    unlike = [
        *_unlike_fields(
            MANIFEST, claimed, right, ("format", "numerics", "recipe", "plan", "family", "allow_nonfinite")
        ),
        *_unlike_records(claimed.parents, right.parents),
        *_unlike_records(claimed.weights, right.weights),
        *_unlike_records(claimed.files, right.files),
        *_unlike_units(claimed.units, right.units),
    ]
    if not unlike and not is_as_encoded(path, right):
        what = "its records hold, but its text is not that of chimerakit: another order, other spaces, unknown or double keys"
        unlike.append(Finding(False, MANIFEST, what))
    yield from unlike or [Finding(True, MANIFEST, "the manifest follows from the recipe and the parents")]


def _unlike_records(claimed: Mapping[str, Struct], right: Mapping[str, Struct]) -> Iterable[Finding]:
    for name in claimed:
        if name not in right:
            yield Finding(False, name, "is in the manifest, but recipe and parents do not give it")
    for name, record in right.items():
        if name not in claimed:
            yield Finding(False, name, "is not in the manifest, but recipe and parents give it")
        else:
            yield from _unlike_fields(name, claimed[name], record, record.__struct_fields__)


def _unlike_fields(subject: str, claimed: Struct, right: Struct, fields: Iterable[str]) -> Iterable[Finding]:
    for field in fields:
        if (a := getattr(claimed, field)) != (b := getattr(right, field)):
            yield Finding(False, subject, _claims(field, a, b, "the parents give"))


def _unlike_units(claimed: tuple[MadeRow, ...], right: tuple[MadeRow, ...]) -> Iterable[Finding]:
    yield from _unlike_records({made.unit: made for made in claimed}, {made.unit: made for made in right})
    names, order = [made.unit for made in claimed], [made.unit for made in right]
    if names != order and sorted(names) == sorted(order):
        first = next(a for a, b in zip(names, order, strict=True) if a != b)
        yield Finding(False, first, "does not stand in the manifest where it stands in the child")


# -------------------------------------------------------------------------------- making units again


class _Proven(Struct, frozen=True):
    """What making a unit again showed."""

    made: Made
    """With the digests of the child's bytes."""
    first_unlike: dict[str, int]
    """Tensors that differ from what the parents give, with the first byte that does."""


def _say_proven(proven: _Proven) -> Iterable[Finding]:
    for name in proven.made.digests:
        if (at := proven.first_unlike.get(name)) is not None:
            yield Finding(False, name, f"is not what its parents give (from byte {at})", {"byte": at})
        else:
            how = "equal in all parents" if proven.made.outcome == "equal" else proven.made.outcome
            yield Finding(True, name, f"tensors proven against the parents: {how}")


def _made(proven: _Proven, claimed: MadeRow | None) -> Made:
    """What the manifest must say of a unit. Of bytes that are wrong no digest is right; that they are wrong is said once."""
    made = proven.made
    if claimed is None or not proven.first_unlike:
        return made

    def settle(found: dict[str, str], said: dict[str, str]) -> dict[str, str]:
        return {n: said.get(n, digest) if n in proven.first_unlike else digest for n, digest in found.items()}

    sha256 = None if made.sha256 is None else settle(made.sha256, claimed.sha256 or {})
    return replace(made, digests=settle(made.digests, claimed.tensors), sha256=sha256)


def _prove_job(job: Job, report: Report) -> list[_Proven]:
    """Make a job's units again, into a comparison with the child."""
    proven = []
    with Inputs(job.roots, job.signatures) as inputs, _Comparison(job, report) as comparison:
        for row in job.rows:
            result = make_unit(row, inputs, comparison, allow_nonfinite=job.allow_nonfinite)
            digests = {t.name: comparison.digest(t) for t in row.outputs}
            made = Made(
                row.unit,
                result.outcome,
                {name: found.xxh3 for name, found in digests.items()},
                {name: found.sha256 or "" for name, found in digests.items()} if job.sha256 else None,
                result.rms_error,
                result.nonfinite,
            )
            unlike = {name: comparison.unlike[name] for name in digests if name in comparison.unlike}
            proven.append(_Proven(made, unlike))
    return proven


class _Comparison:
    """A sink that compares what arrives with the child's bytes, and digests the child's."""

    def __init__(self, job: Job, report: Report):
        self._job = job
        self._report = report
        self._readers = Readers()
        self._digests = TensorDigests(sha256=job.sha256)
        self.unlike: dict[str, int] = {}

    def __enter__(self) -> "_Comparison":
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.__exit__(*exception)

    def _reader(self, file: str) -> Reader:
        return self._readers.get(Path(self._job.output, file))

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Compare bytes of a tensor, from `start` on within it."""
        expected = memoryview(data).cast("B")
        found = memoryview(self._reader(tensor.file).read(tensor.start + start, len(expected)))
        if tensor.name not in self.unlike and not same_bytes(found, expected):
            self.unlike[tensor.name] = start + _first_unlike(found, expected)
        self._digests.update(tensor, start, found)
        self._report(len(found))

    def digest(self, tensor: Tensor) -> Hasher:
        """The digests of the child's bytes of a tensor."""
        return self._digests.take(tensor, Path(self._job.output, tensor.file))


def _first_unlike(a: memoryview, b: memoryview) -> int:
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
