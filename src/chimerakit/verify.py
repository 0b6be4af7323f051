"""Child + manifest (+ parents) -> Findings: is this child what its manifest says, and is that what its parents make?

Without parents every byte of the child is digested and compared with the manifest. With parents the plan is made again
from the manifest's recipe and every unit is made again too, into a comparison with the child's bytes: copies byte for
byte, the rest by the same arithmetic.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from chimerakit.errors import ChimerakitError, ManifestError, PlanError
from chimerakit.events import Listener, ignore, one_at_a_time
from chimerakit.execute import Inputs, Report, make_unit
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import MANIFEST, parent_record, read_manifest
from chimerakit.plan import make_jobs, make_plan
from chimerakit.recipe import recipe_from_data
from chimerakit.records import Checkpoint, Finding, Findings, Input, Job, Made, Manifest, Role, Tensor
from chimerakit.runners.local import default_threads
from chimerakit.runners.watched import run_watched
from chimerakit.scan import ScanUnit, digest_side, scan
from chimerakit.stores.digest import Hasher, digest_range
from chimerakit.stores.local import Buffer, Reader, list_files, same_bytes

_CHILD = "child"


def verify_child(
    path: Path | str,
    parents: Mapping[str, Checkpoint] | None = None,
    *,
    threads: int | None = None,
    listener: Listener = ignore,
) -> Findings:
    """Check a child against its manifest and, where parents are given, against them.

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
    findings += _check_names(child, manifest)
    if any(not finding.ok for finding in findings):
        # Headers that are not the manifest's say nothing about where a unit's bytes are.
        return _sum_up(path, findings, 0)
    if parents is None:
        findings += _check_digests(child, manifest, threads, listener)
    else:
        findings += _check_parents(child, manifest, parents, threads, listener)
    return _sum_up(path, findings, sum(t.nbytes for t in child.tensors.values()))


def _sum_up(path: Path, findings: Iterable[Finding], nbytes: int) -> Findings:
    findings = list(findings)
    passed = Counter(finding.says for finding in findings if finding.ok)
    return Findings(path.name, tuple(f for f in findings if not f.ok), dict(passed), nbytes)


# --------------------------------------------------------------------------------- files and names


def _check_files(path: Path, manifest: Manifest) -> Iterable[Finding]:
    """Every file that the manifest names is there with its size and its digest; nothing else is there."""
    named = {name: (file.nbytes, file.digest, file.nbytes) for name, file in manifest.files.items()}
    named |= {name: (file.nbytes, file.header, file.header_nbytes) for name, file in manifest.weights.items()}
    for name, (nbytes, digest, upto) in named.items():
        # A manifest is a file that anybody may have written: it must not make us read elsewhere.
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
            raise ManifestError("names a file outside its folder", where=path / MANIFEST, found=name)
        file = path / name
        if not file.is_file():
            yield Finding(False, name, "is missing")
        elif file.stat().st_size != nbytes:
            yield Finding(False, name, f"has {file.stat().st_size} bytes, the manifest says {nbytes}")
        elif _digest_file(file, upto) != digest:
            what = "the header" if name in manifest.weights else "the file"
            yield Finding(False, name, f"{what} is not the one that was written (digest)")
        else:
            yield Finding(True, name, "headers as written" if name in manifest.weights else "other files as written")
    for name, _ in list_files(path):
        if name not in named and name != MANIFEST:
            yield Finding(False, name, "is not in the manifest")


def _digest_file(path: Path, nbytes: int) -> str:
    reader = Reader(path)
    try:
        return digest_range(reader, 0, min(nbytes, reader.nbytes)).xxh3
    finally:
        reader.close()


def _check_names(child: Checkpoint, manifest: Manifest) -> Iterable[Finding]:
    """Child and manifest name the same tensors, each once."""
    said = Counter(name for unit in manifest.units for name in unit.tensors)
    for name in child.tensors:
        if name not in said:
            yield Finding(False, name, "is in the child but not in the manifest")
    for name, count in said.items():
        if name not in child.tensors:
            yield Finding(False, name, "is in the manifest but not in the child")
        elif count > 1:
            yield Finding(False, name, "is in the manifest twice")


# ------------------------------------------------------------------------------------------- bytes


def _check_digests(child: Checkpoint, manifest: Manifest, threads: int | None, listener: Listener) -> Iterable[Finding]:
    units = []
    for made in manifest.units:
        tensors = tuple(child.tensors[name] for name in made.tensors)
        units.append(ScanUnit(made.unit, Role("other"), {_CHILD: Input(_CHILD, 1.0, "", tensors)}))
    digests = {name: digest for made in manifest.units for name, digest in made.tensors.items()}
    answers = scan("verifying", digest_side(_CHILD), {_CHILD: child}, units, threads=threads, listener=listener)
    for _, found in answers:
        for name, digest in found.items():
            is_same = digest == digests[name]
            says = "tensors as written (digest)" if is_same else "its bytes are not those that were written (digest)"
            yield Finding(is_same, name, says)


# ----------------------------------------------------------------------------------------- parents


class _Proven(Struct, frozen=True):
    """What making a unit again showed."""

    unit: str
    tensors: tuple[str, ...]
    made: Made
    """With the digests of the child's bytes."""
    first_unlike: dict[str, int]
    """Tensors that differ from what the parents give, with the first byte that does."""


def _check_parents(
    child: Checkpoint,
    manifest: Manifest,
    parents: Mapping[str, Checkpoint],
    threads: int | None,
    listener: Listener,
) -> Iterable[Finding]:
    recipe = recipe_from_data(manifest.recipe, "manifest")
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
    jobs = make_jobs(plan, Path(child.root), allow_nonfinite=manifest.allow_nonfinite)
    said = {made.unit: made for made in manifest.units}
    run = run_watched(
        "proving", _prove_job, jobs, threads=threads or default_threads(), listener=one_at_a_time(listener)
    )
    for proven in (proven for answers in run for proven in answers):
        made = said[proven.unit]
        for name in proven.tensors:
            if name in proven.first_unlike:
                at = proven.first_unlike[name]
                yield Finding(False, name, f"is not what its parents give (from byte {at})", {"byte": at})
            elif proven.made.digests[name] != made.tensors[name]:
                yield Finding(False, name, "is what its parents give, but not what the manifest says (digest)")
            else:
                how = {"copied": "copied", "equal": "equal in all parents", "mixed": "mixed", "converted": "converted"}
                yield Finding(True, name, f"tensors proven against the parents: {how[proven.made.outcome]}")
        stated: list[tuple[str, Any, Any]] = [
            ("outcome", made.outcome, proven.made.outcome),
            ("rms_error", made.rms_error, proven.made.rms_error),
        ]
        for what, claimed, found in stated:
            if claimed != found:
                yield Finding(False, proven.unit, f"the manifest says {what} {claimed}, the parents give {found}")


def _other_parent(manifest: Manifest, name: str, parent: Checkpoint) -> Iterable[str]:
    said, found = manifest.parents[name], parent_record(parent.shards, parent.config)
    if said.config != found.config:
        yield "is not the parent that the manifest names: config.json differs"
    unlike = [f for f in {**said.shards, **found.shards} if said.shards.get(f) != found.shards.get(f)]
    if unlike:
        yield f"is not the parent that the manifest names: {len(unlike)} weight files differ, such as {sorted(unlike)[0]}"


def _prove_job(job: Job, report: Report) -> list[_Proven]:
    """Make a job's units again, into a comparison with the child."""
    proven = []
    with Inputs(job.roots, job.signatures) as inputs, _Comparison(job, report) as comparison:
        for row in job.rows:
            result = make_unit(row, inputs, comparison, allow_nonfinite=job.allow_nonfinite)
            digests = {t.name: comparison.digest(t) for t in row.outputs}
            unlike = {t.name: at for t in row.outputs if (at := comparison.unlike.get(t.name)) is not None}
            made = Made(row.unit, result.outcome, digests, rms_error=result.rms_error, nonfinite=result.nonfinite)
            proven.append(_Proven(row.unit, tuple(digests), made, unlike))
    return proven


class _Comparison:
    """A sink that compares what arrives with the child's bytes, and digests the child's."""

    def __init__(self, job: Job, report: Report):
        self._job = job
        self._report = report
        self._readers: dict[str, Reader] = {}
        self._hashers: dict[str, tuple[int, Hasher]] = {}
        self.unlike: dict[str, int] = {}

    def __enter__(self) -> "_Comparison":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()

    def _reader(self, file: str) -> Reader:
        if file not in self._readers:
            self._readers[file] = Reader(Path(self._job.output, file))
        return self._readers[file]

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Compare bytes of a tensor, from `start` on within it."""
        expected = memoryview(data).cast("B")
        found = memoryview(self._reader(tensor.file).read(tensor.start + start, len(expected)))
        if tensor.name not in self.unlike and not same_bytes(found, expected):
            self.unlike[tensor.name] = start + _first_unlike(found, expected)
        done, hasher = self._hashers.setdefault(tensor.name, (0, Hasher()))
        if done == start:
            hasher.update(found)
            self._hashers[tensor.name] = (done + len(found), hasher)
        self._report(len(found))

    def digest(self, tensor: Tensor) -> str:
        """xxh3-128 of the child's bytes of a tensor; read again if they did not come in order."""
        done, hasher = self._hashers.pop(tensor.name, (0, Hasher()))
        if done != tensor.nbytes:
            return digest_range(self._reader(tensor.file), tensor.start, tensor.nbytes).xxh3
        return hasher.xxh3


def _first_unlike(a: memoryview, b: memoryview) -> int:
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
