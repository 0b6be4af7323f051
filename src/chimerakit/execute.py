"""One Job -> Receipt: read, copy or mix, write, digest. Decides nothing; may run twice, anywhere, in any order.

    run_job -> make_units -> numerics.mix -> sink

Units are made into a *sink*: the child's files while merging, a comparison with them while verifying. So a child is
proven by the same code that made it, and that code is proven by independent arithmetic in the tests.

Reading, computing and writing overlap because several jobs run at a time; a job does one thing after the other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec.structs import replace

from chimerakit.dtypes import BLOCK, FP8_BLOCKS
from chimerakit.errors import NonFiniteError
from chimerakit.plan.panels import Cut, Panel, cut
from chimerakit.plan.ranges import Run, copy_runs, merged_ranges
from chimerakit.records import Header, Input, Job, Made, Outcome, Receipt, Row, Tensor
from chimerakit.stores.digest import Hasher, TensorDigests, digest_of
from chimerakit.stores.local import CHUNK, Buffer, Reader, Readers
from chimerakit.stores.part import PAGE, PartFile, Stage
from chimerakit.stores.system import same_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chimerakit.numerics.mix import Term

Report = Callable[[int], None]
"""Told the bytes that were just done; may raise to stop the job."""


class Sink(Protocol):
    """Where the bytes of units go."""

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Take bytes of a tensor of the child, from `start` on within the tensor."""

    def copy(self, run: Run, reader: Reader) -> None:
        """Take a range of a parent's file as it is."""


class Result(NamedTuple):
    """How a unit was made."""

    outcome: Outcome
    rms_error: float | None
    nonfinite: int


def run_job(job: Job, report: Report) -> Receipt:
    """Write everything that a job holds, wait until it is on the disk, and say what was written."""
    with Inputs(job.roots, job.signatures, report) as inputs, _Files(job, report) as files:
        headers = {h.file: files.write_header(h, inputs) for h in job.headers}
        files.reserve(row for row in job.rows if row.kind != "copy")
        made = []
        for row, result in make_units(job.rows, inputs, files, allow_nonfinite=job.allow_nonfinite):
            made.append(made_of(row, result, files, sha256=job.sha256))
        inputs.check_unchanged()
        files.sync()
    return Receipt(job.id, job.nbytes, headers, tuple(made))


def made_of(row: Row, result: Result, sink: "Digests", *, sha256: bool) -> Made:
    """What became of a unit that a sink has taken."""
    digests = {t.name: sink.digest(t) for t in row.outputs}
    return Made(
        unit=row.unit,
        outcome=result.outcome,
        digests={name: found.xxh3 for name, found in digests.items()},
        sha256={name: found.sha256 or "" for name, found in digests.items()} if sha256 else None,
        rms_error=result.rms_error,
        nonfinite=result.nonfinite,
    )


class Inputs:
    """Checkpoints' files, opened when first read, each checked to be the one that was planned with."""

    def __init__(
        self,
        roots: Mapping[str, str],
        signatures: Mapping[str, Mapping[str, tuple[int, int]]],
        report: Report = lambda _: None,
    ):
        self.report = report
        """To be called while nothing is done yet that counts: it may raise to stop."""
        self._roots = roots
        self._signatures = signatures
        self._readers = Readers()
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def reader(self, parent: str, shard: str) -> Reader:
        """The open shard of a parent."""
        return self._readers.get(Path(self._roots[parent], shard), self._signatures[parent][shard])

    def memory(self, use: str, nbytes: int) -> "npt.NDArray[np.uint8]":
        """Memory for one use, the same for unit after unit: a fresh piece costs a page fault for every page."""
        import numpy as np

        if use not in self._memory or len(self._memory[use]) < nbytes:
            self._memory[use] = np.empty(nbytes, np.uint8)
        return self._memory[use]

    def check_unchanged(self) -> None:
        """Refuse if a file was written to while it was read."""
        self._readers.check_unchanged()

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *exception: object) -> None:
        self._readers.__exit__(*exception)


# ----------------------------------------------------------------------------------------------- sinks


class Digests:
    """A sink that keeps nothing but digests; the others do more with the same bytes."""

    def __init__(self, output: str, report: Report, *, sha256: bool):
        self._output = output
        self._report = report
        self._digests = TensorDigests(sha256=sha256)
        self._buffer = memoryview(bytearray(CHUNK))

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Take bytes of a tensor of the child, from `start` on within the tensor."""
        self._digests.update(tensor, start, data)
        self._report(memoryview(data).nbytes)

    def copy(self, run: Run, reader: Reader) -> None:
        """Take a range of a parent's file as it is."""
        self._look(run, reader, 0, run.nbytes)

    def digest(self, tensor: Tensor) -> Hasher:
        """The digests of a tensor whose bytes have been taken; it lies in its file by now."""
        return self._digests.take(tensor, Path(self._output, tensor.file))

    def _look(self, run: Run, reader: Reader, first: int, last: int) -> None:
        """Read a part of a run for its digests only."""
        for piece in reader.pieces(run.start + first, last - first, self._buffer):
            self._take(run, first + piece.start, piece.nbytes, piece.data)

    def _take(self, run: Run, start: int, nbytes: int, data: memoryview | None) -> None:
        """Digest a part of a run; None for a hole."""
        for tensor, within, first, last in run.slices(start, nbytes):
            if data is None:
                self._digests.update_zeros(tensor, within, last - first)
            else:
                self._digests.update(tensor, within, data[first:last])
        self._report(nbytes)


class _Files(Digests):
    """The child's files that a job writes."""

    def __init__(self, job: Job, report: Report):
        super().__init__(job.output, report, sha256=job.sha256)
        self._job = job
        self._parts: dict[str, PartFile] = {}
        self._stage = Stage()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for part in self._parts.values():
            part.close()

    def _part(self, name: str) -> PartFile:
        if name not in self._parts:
            self._parts[name] = PartFile(Path(self._job.output, name), self._job.sizes[name])
        return self._parts[name]

    def write_header(self, header: Header, inputs: Inputs) -> str:
        """Write the bytes before the first weight; returns their digest."""
        if header.parent is not None and header.shard is not None:
            data = inputs.reader(header.parent, header.shard).read(0, header.nbytes)
        else:
            data = new_header(header)
        if header.file not in self._job.linked:
            self._stage.write(self._part(header.file), 0, memoryview(data))
        self._report(len(data))
        return digest_of(data)

    def reserve(self, rows: Iterable[Row]) -> None:
        """Take the space of what is going to be computed."""
        for file, start, nbytes in merged_ranges(rows):
            self._part(file).reserve(start, nbytes)

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Take bytes of a tensor of the child, from `start` on within the tensor."""
        self._stage.write(self._part(tensor.file), tensor.start + start, memoryview(data).cast("B"))
        super().write(tensor, start, data)

    def copy(self, run: Run, reader: Reader) -> None:
        """Share what the file system can share with the parent's file, move the rest."""
        if run.target in self._job.linked:  # a parent's own file: read, never opened for writing
            self._look(run, reader, 0, run.nbytes)
            return
        first, last = self._clone(run, reader)
        self._move(run, reader, 0, first)
        self._look(run, reader, first, last)
        self._move(run, reader, last, run.nbytes)

    def _clone(self, run: Run, reader: Reader) -> tuple[int, int]:
        """The part of a run that now shares its blocks with the parent's file."""
        first = -run.start % PAGE
        last = run.nbytes - (run.start + run.nbytes) % PAGE
        is_aligned = (run.start - run.target_start) % PAGE == 0 and last - first >= PAGE
        part = self._part(run.target)
        if is_aligned and part.clone(reader, run.start + first, last - first, run.target_start + first):
            return first, last
        return run.nbytes, run.nbytes

    def _move(self, run: Run, reader: Reader, first: int, last: int) -> None:
        """Read a part of a run into the stage; holes stay holes."""
        part = self._part(run.target)
        if last > first and not reader.is_sparse:
            part.reserve(run.target_start + first, last - first)
        for begin, end, is_data in reader.extents(run.start + first, last - first):
            at, stop = begin - run.start, end - run.start
            if not is_data:
                part.skip(run.target_start + at, stop - at)
                self._take(run, at, stop - at, None)
                continue
            while at < stop:
                room = self._stage.room(part, run.target_start + at, stop - at)
                reader.read_into(room, run.start + at)
                self._take(run, at, len(room), room)
                at += len(room)

    def digest(self, tensor: Tensor) -> Hasher:
        """The digests of a tensor that was written."""
        if not self._digests.is_complete(tensor):  # then it is read again, from the file
            self._stage.flush()
        file = self._parts[tensor.file].part if tensor.file in self._parts else Path(self._output, tensor.file)
        return self._digests.take(tensor, file)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        self._stage.flush()
        for part in self._parts.values():
            part.sync()


def new_header(header: Header) -> bytes:
    """The bytes of a header that is no parent's: its text after its length."""
    text = (header.text or "").encode()
    return len(text).to_bytes(8, "little") + text


# ----------------------------------------------------------------------------------------------- units


def make_units(
    rows: Iterable[Row], inputs: Inputs, sink: Sink, *, allow_nonfinite: bool
) -> Iterator[tuple[Row, Result]]:
    """Make units of the child out of their parents'; neighbours that are copied are moved together."""
    for is_copy, group in groupby(rows, lambda row: row.kind == "copy"):
        if is_copy:
            copied = tuple(group)
            _copy(copied, inputs, sink)
            yield from ((row, Result("copied", None, 0)) for row in copied)
        else:
            yield from ((row, _compute(row, inputs, sink, allow_nonfinite)) for row in group)


def _copy(rows: Iterable[Row], inputs: Inputs, sink: Sink) -> None:
    """Move bytes; nothing is decoded."""
    for run in copy_runs(rows):
        sink.copy(run, inputs.reader(run.parent, run.source))


def _compute(row: Row, inputs: Inputs, sink: Sink, allow_nonfinite: bool) -> Result:
    """Make a unit that is mixed or converted, or turns out to need neither."""
    if row.if_equal is not None and _are_equal(row, inputs):
        if row.if_equal == "copy":
            _copy((row,), inputs, sink)
            return Result("equal", None, 0)
        return _mix(row, (replace(row.inputs[0], share=1.0),), inputs, sink, "equal", allow_nonfinite)
    return _mix(row, row.inputs, inputs, sink, "converted" if row.kind == "convert" else "mixed", allow_nonfinite)


def _are_equal(row: Row, inputs: Inputs) -> bool:
    """Whether all parents of a mix have the same bytes; stops at the first that differ, as a rule at once."""
    first, *others = row.inputs
    most = min(CHUNK, max(t.nbytes for t in first.tensors))
    mine = theirs = memoryview(bytearray())
    for number, tensor in enumerate(first.tensors):
        done, size = 0, PAGE
        while done < tensor.nbytes:
            size = min(2 * size, most, tensor.nbytes - done)
            inputs.report(0)
            if len(mine) < size:  # large ones are seldom needed
                mine, theirs = memoryview(bytearray(size)), memoryview(bytearray(size))
            inputs.reader(first.parent, tensor.file).read_into(mine[:size], tensor.start + done)
            for other in others:
                there = other.tensors[number]
                inputs.reader(other.parent, there.file).read_into(theirs[:size], there.start + done)
                if not same_bytes(mine[:size], theirs[:size]):
                    return False
            done += size
    return True


def _mix(
    row: Row, parts: tuple[Input, ...], inputs: Inputs, sink: Sink, outcome: Outcome, allow_nonfinite: bool
) -> Result:
    """Decode, add up, encode, panel by panel."""
    import numpy as np

    from chimerakit.numerics import mix

    weight, *scale = row.outputs
    is_blocked = any(s in FP8_BLOCKS for s in (row.storage, *(p.storage for p in parts)))
    whole = cut(weight.shape, is_blocked=is_blocked)
    sources = [Source(part, inputs, whole) for part in parts]
    width = weight.nbytes // max(1, whole.rows * whole.cols)
    buffer, scratch = inputs.memory("out", whole.most * width), inputs.memory("scratch", mix.SCRATCH)
    sums = np.zeros(2)
    scales: list[npt.NDArray[np.uint8]] = []
    nonfinite = 0
    for panel in whole.panels():
        terms = [source.term(panel) for source in sources]
        out = buffer[: panel.rows * panel.cols * width].reshape(panel.rows, panel.cols * width)
        shape, scale_dtype = (panel.rows, panel.cols), scale[0].dtype if scale else None
        blocks, found = mix.mix_into(terms, shape, row.storage, scale_dtype, out, sums, scratch)
        if found and not allow_nonfinite:
            raise _nonfinite(row, parts, terms, panel)
        nonfinite += found
        _write_panel(weight, whole, panel, out, sink)
        if blocks is not None:
            scales.append(blocks)
    if scale:
        sink.write(scale[0], 0, np.concatenate(scales).data if scales else b"")
    is_rounded = row.storage != "F32"
    return Result(outcome, mix.relative_rms(sums) if is_rounded else None, nonfinite)


class Source:
    """One parent's side of a mix, read panel by panel. Block scales are a 16384th of the weights and read at once."""

    def __init__(self, part: Input, inputs: Inputs, whole: Cut):
        import numpy as np

        self._part = part
        self._whole = whole
        self._weight = part.tensors[0]
        self._reader = inputs.reader(part.parent, self._weight.file)
        self._width = self._weight.nbytes // max(1, whole.rows * whole.cols)
        self._share = np.float32(part.share)
        self._buffer = inputs.memory(f"panel of {part.parent}", whole.most * self._width)
        self._scales = None
        self._scale_dtype = None
        if part.storage in FP8_BLOCKS:
            scale = part.tensors[1]
            data = inputs.reader(part.parent, scale.file).read(scale.start, scale.nbytes)
            self._scale_dtype = scale.dtype
            self._scale_width = 1 if scale.dtype == "F8_E8M0" else 4
            self._scales = np.frombuffer(data, np.uint8).reshape(scale.shape[0], scale.shape[1] * self._scale_width)

    def term(self, panel: Panel) -> "Term":
        """The parent's part of one panel."""

        from chimerakit.numerics.mix import Term

        wide = panel.cols * self._width
        data = self._buffer[: panel.rows * wide].reshape(panel.rows, wide)
        if panel.cols == self._whole.cols or panel.rows == 1:
            at = (panel.row * self._whole.cols + panel.col) * self._width
            self._reader.read_into(data.reshape(-1).data, self._weight.start + at)
        else:
            for i, line in enumerate(data):
                at = ((panel.row + i) * self._whole.cols + panel.col) * self._width
                self._reader.read_into(line.data, self._weight.start + at)
        scales = None
        if self._scales is not None:
            first, last, width = panel.col // BLOCK, -(-(panel.col + panel.cols) // BLOCK), self._scale_width
            above, below = panel.row // BLOCK, -(-(panel.row + panel.rows) // BLOCK)
            scales = self._scales[above:below, first * width : last * width]
        return Term(self._part.storage, self._share, data, scales, self._scale_dtype)


def _write_panel(weight: Tensor, whole: Cut, panel: Panel, out: "npt.NDArray[np.uint8]", sink: Sink) -> None:
    width = out.shape[1] // panel.cols
    if panel.cols == whole.cols or panel.rows == 1:
        sink.write(weight, (panel.row * whole.cols + panel.col) * width, out.reshape(-1).data)
    else:
        for i, line in enumerate(out):
            sink.write(weight, ((panel.row + i) * whole.cols + panel.col) * width, line.data)


def _nonfinite(row: Row, parts: tuple[Input, ...], terms: list["Term"], panel: Panel) -> NonFiniteError:
    """Who brought NaN or infinity into a sum."""
    import numpy as np

    from chimerakit.numerics.mix import mix

    alone = [mix([term._replace(share=np.float32(1))], (panel.rows, panel.cols)) for term in terms]
    guilty = [p.parent for p, values in zip(parts, alone, strict=True) if not np.isfinite(values).all()]
    return NonFiniteError(
        f"NaN or infinity in {' and '.join(map(repr, guilty))}"
        if guilty
        else f"the result is too large for {row.storage}, though every parent is finite",
        where=row.unit,
        do="leave the unit out of the rule, or go on with --allow-nonfinite",
    )
