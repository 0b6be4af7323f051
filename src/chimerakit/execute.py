"""One Job -> Receipt: read, copy or mix, write, digest. Decides nothing; may run twice, anywhere, in any order.

    run_job -> make_units -> numerics.mix -> sink
    run_together -> make_together -> ...        the same units of several children: what they are made of is read once

Units are made into a *sink*: the child's files while merging, a comparison with them while verifying. So a child is
proven by the same code that made it, and that code is proven by independent arithmetic in the tests.

Reading, computing and writing overlap because several jobs run at a time; a job does one thing after the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from chimerakit.records import (
    IMATRIX,
    Arrangement,
    Header,
    Importance,
    Input,
    Job,
    Made,
    Outcome,
    Plan,
    Receipt,
    Row,
)
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


def run_together(jobs: Sequence[Job], report: Report) -> tuple[Receipt, ...]:
    """`run_job` for children that have the same tensors in the same places: their rows go together, one by one."""
    roots = {name: root for job in jobs for name, root in job.roots.items()}
    signatures: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in roots}
    for job in jobs:
        for name, files in job.signatures.items():
            signatures[name] |= files
    with Inputs(roots, signatures, report) as inputs, ExitStack() as stack:
        sinks = [stack.enter_context(Files(job, report)) for job in jobs]
        headers = [
            {h.file: sink.write_header(h, _header(h, inputs)) for h in job.headers}
            for job, sink in zip(jobs, sinks, strict=True)
        ]
        made: list[list[Made]] = [[] for _ in jobs]
        for rows in zip(*(job.rows for job in jobs), strict=True):
            found = make_together(rows, inputs, sinks, allow_nonfinite=jobs[0].allow_nonfinite)
            for mine, row, result, sink in zip(made, rows, found, sinks, strict=True):
                mine.append(made_of(row, result, sink, sha256=jobs[0].sha256))
        inputs.check_unchanged()
        for sink in sinks:
            sink.sync()
    return tuple(
        Receipt(job.id, job.nbytes, heads, tuple(mine)) for job, heads, mine in zip(jobs, headers, made, strict=True)
    )


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


def make_together(rows: Sequence[Row], inputs: Inputs, sinks: Sequence[Sink], *, allow_nonfinite: bool) -> list[Result]:
    """Make one unit of several children, each into its sink. Parents whose panels have the same cut are read once, and quants
    decoded once; a parent's bytes that one child copies and another one mixes are the same bytes."""
    found: dict[int, Result] = {}
    groups: dict[Cut, list[tuple[int, _Sum]]] = {}
    for number, (row, sink) in enumerate(zip(rows, sinks, strict=True)):
        if row.kind == "copy" or row.inputs[0].arrangement is not None:
            continue
        made = _sum_of(row, inputs, sink)
        groups.setdefault(made.cut, []).append((number, made))
    for number, (row, sink) in enumerate(zip(rows, sinks, strict=True)):
        if row.kind != "copy":
            if row.inputs[0].arrangement is not None:
                found[number] = _rearrange(row, row.inputs[0], row.inputs[0].arrangement, inputs, sink)
            continue
        readers = (group for group in groups.values() if any(_reads(made, row.inputs[0]) for _, made in group))
        if (group := next(readers, None)) is not None:
            group.append((number, _Sum(row, row.inputs, sink, "copied", group[0][1].cut)))
        else:
            _copy((row,), inputs, sink)
            found[number] = Result("copied", None, 0)
    for group in groups.values():
        results = _add_up([made for _, made in group], inputs, allow_nonfinite)
        found |= {number: result for (number, _), result in zip(group, results, strict=True)}
    return [found[number] for number in range(len(rows))]


def _compute(row: Row, inputs: Inputs, sink: Sink, allow_nonfinite: bool) -> Result:
    """Make a unit that is mixed or converted, or turns out to need neither."""
    if row.inputs[0].arrangement is not None:
        return _rearrange(row, row.inputs[0], row.inputs[0].arrangement, inputs, sink)
    made = _sum_of(row, inputs, sink)
    if made.is_copy:
        _copy((row,), inputs, sink)
        return Result("equal", None, 0)
    (result,) = _add_up([made], inputs, allow_nonfinite)
    return result


class _Sum(NamedTuple):
    """A unit that is to be added up, or copied beside others that are."""

    row: Row
    parts: tuple[Input, ...]
    sink: Sink
    outcome: Outcome
    cut: Cut

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are its only parent's."""
        return self.outcome == "copied" or (self.outcome == "equal" and self.row.if_equal == "copy")


def _sum_of(row: Row, inputs: Inputs, sink: Sink) -> _Sum:
    """What of its parents a unit is made of, now that their bytes can be compared."""
    parts = row.inputs
    outcome: Outcome = "converted" if row.kind == "convert" else "mixed"
    if row.if_equal is not None and _are_equal(row, inputs):
        parts, outcome = (replace(row.inputs[0], share=1.0),), "equal"
    return _Sum(row, parts, sink, outcome, cut(row.outputs[0].shape, (row.storage, *(p.storage for p in parts))))


def _reads(made: _Sum, part: Input) -> bool:
    return any(each.parent == part.parent for each in made.parts)


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


def _add_up(sums: Sequence[_Sum], inputs: Inputs, allow_nonfinite: bool) -> list[Result]:
    """Decode, add up, encode, panel by panel; each parent's panel is read once for all of them."""
    whole = sums[0].cut
    writers = [_Writer(made, inputs) for made in sums]
    readers = {part.parent: Source(part, inputs, whole) for made in sums for part in made.parts}
    for panel in whole.panels():
        for reader in readers.values():
            reader.read(panel, decoded=len(sums) > 1)
        for writer in writers:
            writer.take(panel, readers, allow_nonfinite=allow_nonfinite)
    return [writer.finish(readers) for writer in writers]


class _Writer:
    """One child's side of a sum: panels in, stored bytes out, rounding errors and what is not finite added up."""

    def __init__(self, made: _Sum, inputs: Inputs):
        import numpy as np

        from chimerakit.numerics import mix

        self._made = made
        self._weight, *self._scale = made.row.outputs
        self._place = partial(run_nbytes, self._weight.dtype)
        self._buffer = inputs.memory("out", self._place(made.cut.most))
        self._scratch = inputs.memory("scratch", mix.SCRATCH)
        there = made.row.importance
        self._importance = None if there is None else _importance(made.row, there, inputs)
        self._sums = np.zeros(2)
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._nonfinite = 0

    def take(self, panel: Panel, sources: "Mapping[str, Source]", *, allow_nonfinite: bool) -> None:
        """Make one panel, and write it."""
        from chimerakit.numerics import mix

        made, place = self._made, self._place
        if made.is_copy:
            self._write(panel, sources[made.parts[0].parent].data)
            return
        terms = [sources[part.parent].term(panel, part.share) for part in made.parts]
        out = self._buffer[: place(panel.rows * panel.cols)].reshape(panel.rows, -1)
        shape, scale_dtype = (panel.rows, panel.cols), self._scale[0].dtype if self._scale else None
        lines = self._importance
        lines = None if lines is None else lines[_lines(panel, made.cut, len(lines))]
        blocks, found = mix.mix_into(terms, shape, made.row.storage, scale_dtype, out, self._sums, self._scratch, lines)
        if found and not allow_nonfinite:
            raise _nonfinite(made.row, made.parts, terms, panel)
        self._nonfinite += found
        self._write(panel, self._buffer)
        if blocks is not None:
            self._blocks.append(blocks)

    def _write(self, panel: Panel, data: "npt.NDArray[np.uint8]") -> None:
        place = self._place
        for piece in self._made.cut.pieces(panel):
            here = data[place(piece.within) : place(piece.within + piece.weights)]
            self._made.sink.write(self._weight, place(piece.start), here.data)

    def finish(self, sources: "Mapping[str, Source]") -> Result:
        """Write the scales of all blocks, and say how the unit was made."""
        import numpy as np

        from chimerakit.numerics import mix

        made = self._made
        if made.is_copy:
            for number, scale in enumerate(self._scale, 1):
                made.sink.write(scale, 0, sources[made.parts[0].parent].companion(number))
            return Result(made.outcome, None, 0)
        if self._scale:
            made.sink.write(self._scale[0], 0, np.concatenate(self._blocks).data if self._blocks else b"")
        is_rounded = made.row.storage != "F32"
        return Result(made.outcome, mix.relative_rms(self._sums) if is_rounded else None, self._nonfinite)


def _importance(row: Row, there: Importance, inputs: Inputs) -> "npt.NDArray[np.float32]":
    """(matrices, cols): mean squares of what each column is multiplied with."""
    import numpy as np

    from chimerakit.numerics.importance import means

    reader, cols = inputs.only_reader(IMATRIX), row.outputs[0].shape[-1]
    sums = np.frombuffer(reader.read(there.sums, 4 * there.rows * cols), np.float32).reshape(there.rows, cols)
    return means(sums, np.frombuffer(reader.read(there.counts, 4 * there.rows), np.float32))


def _lines(panel: Panel, whole: Cut, matrices: int) -> "npt.NDArray[np.int64]":
    """For each row of a panel, the line of its matrix."""
    import numpy as np

    return np.arange(panel.row, panel.row + panel.rows) // max(1, whole.rows // matrices)


class Source:
    """One parent's side of a sum, read panel by panel. Block scales are a 16384th of the weights and read at once."""

    def __init__(self, part: Input, inputs: Inputs, whole: Cut):
        import numpy as np

        self._part = part
        self._inputs = inputs
        self._whole = whole
        self._weight = part.tensors[0]
        self._reader = inputs.reader(part.parent, self._weight.file)
        self._place = partial(run_nbytes, self._weight.dtype)
        self._buffer = inputs.memory(f"panel of {part.parent}", self._place(whole.most))
        self.data = self._buffer[:0]
        """The bytes of the panel that was read last."""
        self._values: npt.NDArray[np.uint8] | None = None
        self._scales = None
        self._scale_dtype = None
        if part.storage in FP8_BLOCKS:
            scale = part.tensors[1]
            self._scale_dtype = scale.dtype
            self._scale_width = 1 if scale.dtype == "F8_E8M0" else 4
            data = np.frombuffer(self.companion(1), np.uint8)
            self._scales = data.reshape(scale.shape[0], scale.shape[1] * self._scale_width)

    def companion(self, number: int) -> bytes:
        """The bytes of what the weight can't be read without."""
        tensor = self._part.tensors[number]
        return self._inputs.reader(self._part.parent, tensor.file).read(tensor.start, tensor.nbytes)

    def read(self, panel: Panel, *, decoded: bool = False) -> None:
        """Read a panel. decoded: quants become numbers at once, for several who want them."""
        import numpy as np

        from chimerakit.numerics.mix import Term, decode

        place = self._place
        self.data = self._buffer[: place(panel.rows * panel.cols)]
        for piece in self._whole.pieces(panel):
            here = self.data[place(piece.within) : place(piece.within + piece.weights)]
            self._reader.read_into(here.data, self._weight.start + place(piece.start))
        if decoded and self._part.storage in QUANTS:
            stored = Term(self._part.storage, np.float32(1), self.data.reshape(panel.rows, -1))
            self._values = decode(stored).view(np.uint8)

    def term(self, panel: Panel, share: float) -> "Term":
        """The parent's part of the panel that was read last."""
        import numpy as np

        from chimerakit.numerics.mix import Term

        if self._values is not None:
            return Term("F32", np.float32(share), self._values)
        scales = None
        if self._scales is not None:
            first, last, width = panel.col // BLOCK, -(-(panel.col + panel.cols) // BLOCK), self._scale_width
            above, below = panel.row // BLOCK, -(-(panel.row + panel.rows) // BLOCK)
            scales = self._scales[above:below, first * width : last * width]
        return Term(self._part.storage, np.float32(share), self.data.reshape(panel.rows, -1), scales, self._scale_dtype)


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
