"""The child and its whole manifest against what its parents make, by making every unit again."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import UNSET, Struct
from msgspec.structs import replace

from chimerakit.card import CARD, write_card
from chimerakit.deltas import measure_distances
from chimerakit.errors import PlanError
from chimerakit.events import Listener, Report
from chimerakit.execute import Inputs, header_digest, made_of, make_units
from chimerakit.manifest import MANIFEST, is_as_encoded, make_manifest, parent_record
from chimerakit.plan import make_jobs, make_plan
from chimerakit.plan.memory import needs_of
from chimerakit.plan.ranges import Run
from chimerakit.recipe import recipe_from_data
from chimerakit.records import (
    Checkpoint,
    FileRow,
    Finding,
    ImatrixFile,
    Job,
    Made,
    MadeRow,
    Manifest,
    OtherFile,
    Plan,
    Receipt,
    Tensor,
    WeightFile,
)
from chimerakit.runners import Runner
from chimerakit.runners.watched import run_watched
from chimerakit.sinks import Digests
from chimerakit.stores.digest import Hasher, digest_range
from chimerakit.stores.direct import DirectReader
from chimerakit.stores.local import CHUNK, Buffer, Piece, Reader, Readers
from chimerakit.stores.system import first_unlike
from chimerakit.verify.disk import claims, is_with_sha256, sha256_of_weights


def check_parents(
    child: Checkpoint,
    manifest: Manifest,
    parents: Mapping[str, Checkpoint],
    imatrix: ImatrixFile | None,
    runner: Runner,
    listener: Listener,
) -> Iterable[Finding]:
    """Every byte and every statement is what recipe and parents give."""
    recipe = recipe_from_data(manifest.recipe, MANIFEST)
    if set(parents) != set(recipe.parents):
        raise PlanError(
            [f"the child's parents are {', '.join(recipe.parents)}; given: {', '.join(parents) or 'none'}"],
            "this can't be proven",
        )
    unlike = [Finding(False, n, why) for n, c in parents.items() for why in _other_parent(manifest, n, c)]
    if unlike:
        yield from unlike
        return
    if (problem := _other_imatrix(manifest, imatrix)) is not None:
        yield Finding(False, MANIFEST, problem)
        return
    # A map would have to be believed, so what a delta decides on is measured again.
    distances = measure_distances(recipe, parents, runner=runner, listener=listener)
    plan = make_plan(recipe, parents, distances, imatrix=imatrix)
    if plan.digest != manifest.plan:
        yield Finding(False, MANIFEST, "its recipe and parents give another plan than the one that it names")
        return
    has_sha256 = is_with_sha256(manifest)
    headers = {shard.name: header_digest(plan, shard.header) for shard in plan.shards}
    files = {row.name: _expect_file(plan, row, sha256=has_sha256) for row in plan.files}
    files[CARD] = _expect_text(write_card(plan), sha256=has_sha256)
    misplaced = list(_unlike_weights(manifest, plan, headers))
    if misplaced:
        # The plan says nothing about where the bytes of such a child are.
        yield from misplaced
        yield from _unlike_records(manifest.files, files)
        return
    workers = runner.workers(needs_of(plan, records=2))
    jobs = make_jobs(plan, Path(child.root), allow_nonfinite=True, sha256=has_sha256)
    said = {made.unit: made for made in manifest.units}
    made = []
    changed = set()
    for proven in (
        p for answers in run_watched("proving", prove_job, jobs, workers=workers, listener=listener) for p in answers
    ):
        made.append(_made(proven, said.get(proven.made.unit)))
        changed |= {child.tensors[name].file for name in proven.first_unlike}
        yield from _say_proven(proven)
    sha256: dict[str, str | None] = dict.fromkeys(headers)
    if has_sha256:
        found = sha256_of_weights(child, workers, listener)
        sha256 = {n: manifest.weights[n].sha256 if n in changed else found[n] for n in headers}
    receipt = Receipt(0, 0, headers, tuple(made))
    expected = make_manifest(plan, [receipt], files, sha256, allow_nonfinite=True)
    yield from _compare_manifests(Path(child.root), manifest, replace(expected, chimerakit=manifest.chimerakit))


def _other_imatrix(manifest: Manifest, imatrix: ImatrixFile | None) -> str | None:
    """What is wrong with the importance matrix that is given, or with giving none."""
    found = UNSET if imatrix is None else imatrix.digest
    if found == manifest.imatrix:
        return None
    if imatrix is None:
        return "names an importance matrix that quants were encoded by; give it, or they can't be proven (--imatrix)"
    return "the importance matrix is not the one that quants were encoded by"


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


# ----------------------------------------------------------------------- what the manifest must say


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
            yield Finding(False, subject, claims(field, a, b, "the parents give"))


def _unlike_units(claimed: tuple[MadeRow, ...], right: tuple[MadeRow, ...]) -> Iterable[Finding]:
    yield from _unlike_records({made.unit: made for made in claimed}, {made.unit: made for made in right})
    names, order = [made.unit for made in claimed], [made.unit for made in right]
    if names != order and sorted(names) == sorted(order):
        first = next(a for a, b in zip(names, order, strict=True) if a != b)
        yield Finding(False, first, "does not stand in the manifest where it stands in the child")


# ------------------------------------------------------------------------------- making units again


class Proven(Struct, frozen=True):
    """What making a unit again showed."""

    made: Made
    """With the digests of the child's bytes."""
    first_unlike: dict[str, int]
    """Tensors that differ from what the parents give, with the first byte that does."""


def _say_proven(proven: Proven) -> Iterable[Finding]:
    for name in proven.made.digests:
        if (at := proven.first_unlike.get(name)) is not None:
            yield Finding(False, name, f"is not what its parents give (from byte {at})", {"byte": at})
        else:
            how = "equal in all parents" if proven.made.outcome == "equal" else proven.made.outcome
            yield Finding(True, name, f"tensors proven against the parents: {how}")


def _made(proven: Proven, claimed: MadeRow | None) -> Made:
    """What the manifest must say of a unit. Of bytes that are wrong no digest is right; that they are wrong is said once."""
    made = proven.made
    if claimed is None or not proven.first_unlike:
        return made

    def settle(found: dict[str, str], said: dict[str, str]) -> dict[str, str]:
        return {n: said.get(n, digest) if n in proven.first_unlike else digest for n, digest in found.items()}

    sha256 = None if made.sha256 is None else settle(made.sha256, claimed.sha256 or {})
    return replace(made, digests=settle(made.digests, claimed.tensors), sha256=sha256)


def prove_job(job: Job, report: Report) -> list[Proven]:
    """Make a job's units again, into a comparison with the child."""
    proven = []
    with Inputs(job.roots, job.signatures, report) as inputs, _Comparison(job, report) as comparison:
        for row, result in make_units(job.rows, inputs, comparison, allow_nonfinite=job.allow_nonfinite):
            made = made_of(row, result, comparison, sha256=job.sha256)
            unlike = {name: comparison.unlike[name] for name in made.digests if name in comparison.unlike}
            proven.append(Proven(made, unlike))
        inputs.check_unchanged()
    return proven


class _Comparison(Digests):
    """A sink that compares what arrives with the child's bytes, and digests the child's."""

    def __init__(self, job: Job, report: Report):
        super().__init__(job.output, report, sha256=job.sha256)
        self._readers = Readers(DirectReader)
        self._found = memoryview(bytearray(CHUNK))
        self.unlike: dict[str, int] = {}
        """Tensors that differ, with the first byte that does."""

    def __enter__(self) -> "_Comparison":
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.__exit__(*exception)

    def _reader(self, file: str) -> Reader:
        return self._readers.get(Path(self._output, file))

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Compare bytes of a tensor, from `start` on within it."""
        expected = memoryview(data).cast("B")
        for at in range(0, len(expected), CHUNK):
            found = self._found[: min(CHUNK, len(expected) - at)]
            self._reader(tensor.file).read_into(found, tensor.start + start + at)
            self._compare(tensor, start + at, found, expected[at : at + len(found)])
            super().write(tensor, start + at, found)

    def copy(self, run: Run, reader: Reader) -> None:
        """Compare a range of a parent's file with the child's; where both are holes, nothing is read."""
        child = self._reader(run.target)
        for piece in reader.pieces(run.start, run.nbytes, self._buffer):
            for found in child.pieces(run.target_start + piece.start, piece.nbytes, self._found):
                if found.data is not None or piece.data is not None:
                    expected = _bytes_of(piece, found.start, found.nbytes)
                    for tensor, within, first, last in run.slices(piece.start + found.start, found.nbytes):
                        self._compare(tensor, within, _bytes_of(found, first, last - first), expected[first:last])
                self._take(run, piece.start + found.start, found.nbytes, found.data)

    def _compare(self, tensor: Tensor, start: int, found: memoryview, expected: memoryview) -> None:
        if tensor.name not in self.unlike and (at := first_unlike(found, expected)) is not None:
            self.unlike[tensor.name] = start + at


def _bytes_of(piece: Piece, start: int, nbytes: int) -> memoryview:
    """Some bytes of a piece; of a hole, the zeros that it stands for."""
    return memoryview(bytes(nbytes)) if piece.data is None else piece.data[start : start + nbytes]
