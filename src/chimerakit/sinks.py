"""Where the bytes of units go, and their digests on the way: a child's files, or nowhere.

A sink takes what is computed tensor by tensor, and what is copied as runs; of a run it may do with each part what suits it.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from chimerakit.events import Report
from chimerakit.plan.ranges import Run, merged_ranges
from chimerakit.records import Header, Job, Row, Tensor
from chimerakit.stores.digest import Hasher, TensorDigests, digest_of
from chimerakit.stores.local import CHUNK, Buffer, Reader
from chimerakit.stores.part import PAGE, PartFile, Stage


class Sink(Protocol):
    """Where the bytes of units go."""

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Take bytes of a tensor of the child, from `start` on within the tensor."""

    def copy(self, run: Run, reader: Reader) -> None:
        """Take a range of a parent's file as it is."""


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


class Files(Digests):
    """The child's files that a job writes."""

    def __init__(self, job: Job, report: Report):
        super().__init__(job.output, report, sha256=job.sha256)
        self._job = job
        self._parts: dict[str, PartFile] = {}
        self._stage = Stage()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for part in self._parts.values():
            part.close()

    def _part(self, name: str) -> PartFile:
        if name not in self._parts:
            # Made before jobs run: one that comes late finds the file finished, and must not begin another.
            self._parts[name] = PartFile(Path(self._job.output, name), self._job.sizes[name], is_new=False)
        return self._parts[name]

    def write_header(self, header: Header, data: bytes) -> str:
        """Write the bytes before the first weight; returns their digest."""
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
