"""One Job -> Receipt: read, copy or mix, write, digest. Decides nothing; may run twice, anywhere, in any order.

    run_job -> make_units -> numerics.mix -> sink

Units are made into a *sink*: the child's files while merging, a comparison with them while verifying. So a child is
proven by the same code that made it, and that code is proven by independent arithmetic in the tests.

Reading, computing and writing overlap because several jobs run at a time; a job does one thing after the other.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from chimerakit.dtypes import BLOCK, FP8_BLOCKS, QUANTS, nbytes_of, run_nbytes
from chimerakit.errors import NonFiniteError
from chimerakit.events import Report
from chimerakit.plan.panels import Cut, Panel, cut
from chimerakit.plan.ranges import copy_runs
from chimerakit.records import IMATRIX, Arrangement, Header, Importance, Input, Job, Made, Outcome, Plan, Receipt, Row
from chimerakit.sinks import Digests, Files, Sink
from chimerakit.stores.digest import digest_of
from chimerakit.stores.direct import DirectReader
from chimerakit.stores.local import CHUNK, Reader, Readers
from chimerakit.stores.part import PAGE
from chimerakit.stores.system import same_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from chimerakit.numerics.mix import Term


class Result(NamedTuple):
    """How a unit was made."""

    outcome: Outcome
    rms_error: float | None
    nonfinite: int


def run_job(job: Job, report: Report) -> Receipt:
    """Write everything that a job holds, wait until it is on the disk, and say what was written."""
    with Inputs(job.roots, job.signatures, report) as inputs, Files(job, report) as files:
        headers = {h.file: files.write_header(h, _header(h, inputs)) for h in job.headers}
        files.reserve(row for row in job.rows if row.kind != "copy")
        made = []
        for row, result in make_units(job.rows, inputs, files, allow_nonfinite=job.allow_nonfinite):
            made.append(made_of(row, result, files, sha256=job.sha256))
        inputs.check_unchanged()
        files.sync()
    return Receipt(job.id, job.nbytes, headers, tuple(made))


def made_of(row: Row, result: Result, sink: Digests, *, sha256: bool) -> Made:
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


def _header(header: Header, inputs: "Inputs") -> bytes:
    """The bytes of a header: a parent's, or its text after its length, or its parts."""
    if header.parent is not None and header.shard is not None:
        return inputs.reader(header.parent, header.shard).read(0, header.nbytes)
    if header.text is not None:
        text = header.text.encode()
        return len(text).to_bytes(8, "little") + text
    return b"".join(
        part.data
        if part.parent is None or part.shard is None
        else inputs.reader(part.parent, part.shard).read(part.start, part.nbytes)
        for part in header.parts
    )


def header_digest(plan: Plan, header: Header) -> str:
    """The digest of a planned header; of parents only headers are read."""
    if header.parent is not None:
        return next(s.header_digest for s in plan.parents[header.parent].shards if s.name == header.shard)
    with Inputs(plan.roots, plan.signatures) as inputs:
        return digest_of(_header(header, inputs))


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
        self._readers = Readers(DirectReader)
        self._shards: dict[tuple[str, str], Reader] = {}
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def reader(self, parent: str, shard: str) -> Reader:
        """The open shard of a parent."""
        if (parent, shard) not in self._shards:  # asked for so often that putting paths together would show
            path, signature = Path(self._roots[parent], shard), self._signatures[parent][shard]
            self._shards[parent, shard] = self._readers.get(path, signature)
        return self._shards[parent, shard]

    def only_reader(self, parent: str) -> Reader:
        """The open file of what has one only."""
        (file,) = self._signatures[parent]
        return self.reader(parent, file)

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
    if row.inputs[0].arrangement is not None:
        return _rearrange(row, row.inputs[0], row.inputs[0].arrangement, inputs, sink)
    if row.if_equal is not None and _are_equal(row, inputs):
        if row.if_equal == "copy":
            _copy((row,), inputs, sink)
            return Result("equal", None, 0)
        return _mix(row, (replace(row.inputs[0], share=1.0),), inputs, sink, "equal", allow_nonfinite)
    return _mix(row, row.inputs, inputs, sink, "converted" if row.kind == "convert" else "mixed", allow_nonfinite)


def _rearrange(row: Row, part: Input, arrangement: Arrangement, inputs: Inputs, sink: Sink) -> Result:
    """Move a unit's numbers out of another layout; none is changed."""
    import numpy as np

    from chimerakit.numerics.rearrange import part_of, whole_of

    data = [np.frombuffer(inputs.reader(part.parent, t.file).read(t.start, t.nbytes), np.uint8) for t in part.tensors]
    width = nbytes_of(row.storage, (1,)) if arrangement.is_transposed and row.storage not in QUANTS else None
    if arrangement.part == "whole":
        found = whole_of(data[0], data[1], arrangement.heads, arrangement.rows, width)
    else:
        number = 0 if arrangement.part == "first" else 1
        whole = data[0].reshape(part.tensors[0].shape[0], -1)
        found = part_of(whole, arrangement.heads, arrangement.rows, number, width if number == 0 else None)
    sink.write(row.outputs[0], 0, found.data)
    return Result("converted", None, 0)


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
    whole = cut(weight.shape, (row.storage, *(p.storage for p in parts)))
    sources = [Source(part, inputs, whole) for part in parts]
    place = partial(run_nbytes, weight.dtype)
    buffer, scratch = inputs.memory("out", place(whole.most)), inputs.memory("scratch", mix.SCRATCH)
    importance = None if row.importance is None else _importance(row, row.importance, inputs)
    sums = np.zeros(2)
    scales: list[npt.NDArray[np.uint8]] = []
    nonfinite = 0
    for panel in whole.panels():
        terms = [source.term(panel) for source in sources]
        out = buffer[: place(panel.rows * panel.cols)].reshape(panel.rows, -1)
        shape, scale_dtype = (panel.rows, panel.cols), scale[0].dtype if scale else None
        lines = None if importance is None else importance[_lines(panel, whole, len(importance))]
        blocks, found = mix.mix_into(terms, shape, row.storage, scale_dtype, out, sums, scratch, lines)
        if found and not allow_nonfinite:
            raise _nonfinite(row, parts, terms, panel)
        nonfinite += found
        for piece in whole.pieces(panel):
            here = buffer[place(piece.within) : place(piece.within + piece.weights)]
            sink.write(weight, place(piece.start), here.data)
        if blocks is not None:
            scales.append(blocks)
    if scale:
        sink.write(scale[0], 0, np.concatenate(scales).data if scales else b"")
    is_rounded = row.storage != "F32"
    return Result(outcome, mix.relative_rms(sums) if is_rounded else None, nonfinite)


def _importance(row: Row, there: Importance, inputs: Inputs) -> "npt.NDArray[np.float32]":
    """(matrices, cols): mean squares of what each column is multiplied with. As in llama-quantize, counts are rounded to whole
    numbers, and where nothing was seen all columns have 1."""
    import numpy as np

    reader, cols = inputs.only_reader(IMATRIX), row.outputs[0].shape[-1]
    sums = np.frombuffer(reader.read(there.sums, 4 * there.rows * cols), np.float32).reshape(there.rows, cols)
    counts = np.frombuffer(reader.read(there.counts, 4 * there.rows), np.float32)[:, None]
    counts = np.floor(counts + np.float32(0.5))
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), 1).astype(np.float32)


def _lines(panel: Panel, whole: Cut, matrices: int) -> "npt.NDArray[np.int64]":
    """For each row of a panel, the line of its matrix."""
    import numpy as np

    return np.arange(panel.row, panel.row + panel.rows) // max(1, whole.rows // matrices)


class Source:
    """One parent's side of a mix, read panel by panel. Block scales are a 16384th of the weights and read at once."""

    def __init__(self, part: Input, inputs: Inputs, whole: Cut):
        import numpy as np

        self._part = part
        self._whole = whole
        self._weight = part.tensors[0]
        self._reader = inputs.reader(part.parent, self._weight.file)
        self._place = partial(run_nbytes, self._weight.dtype)
        self._share = np.float32(part.share)
        self._buffer = inputs.memory(f"panel of {part.parent}", self._place(whole.most))
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

        place = self._place
        data = self._buffer[: place(panel.rows * panel.cols)]
        for piece in self._whole.pieces(panel):
            here = data[place(piece.within) : place(piece.within + piece.weights)]
            self._reader.read_into(here.data, self._weight.start + place(piece.start))
        scales = None
        if self._scales is not None:
            first, last, width = panel.col // BLOCK, -(-(panel.col + panel.cols) // BLOCK), self._scale_width
            above, below = panel.row // BLOCK, -(-(panel.row + panel.rows) // BLOCK)
            scales = self._scales[above:below, first * width : last * width]
        return Term(self._part.storage, self._share, data.reshape(panel.rows, -1), scales, self._scale_dtype)


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
