"""The states on which routers are asked: recorded ones from a file, or drawn ones, which are called so everywhere.

The file is safetensors: for each layer a tensor `layers.{n}` of [tokens, hidden], what the router of that layer receives, as
F32, BF16 or F16; its metadata has `source`, which says of what model and prompts it is ('synthetic...' if of none).
"""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from chimerakit.dtypes import FP8_BLOCK, numel_of
from chimerakit.errors import CheckpointError
from chimerakit.events import Report
from chimerakit.execute import Inputs, Source
from chimerakit.formats import open_checkpoint
from chimerakit.formats.safetensors import header_bytes, storage_order
from chimerakit.plan.panels import cut
from chimerakit.records import Checkpoint, Input, Tensor
from chimerakit.stores.part import finish_file, new_part

if TYPE_CHECKING:
    from chimerakit.numerics.fp8 import F32
    from chimerakit.numerics.mix import Term

SIDE = "states"
"""The name of the file among the sides of a job."""
SEED = 0
_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,8})")
_DTYPES = ("F32", "BF16", "F16")
_MAX_SOURCE = 500
_DRAWN = 128
"""Tokens that are drawn at a time."""


class States(Struct, frozen=True):
    """What states routers were asked on."""

    source: str
    """What they are, in words."""
    is_synthetic: bool
    """Whether they are of no model."""


class RecordedStates(Struct, frozen=True):
    """A file of states."""

    said: States
    file: Checkpoint
    layers: dict[int, Tensor]

    def part(self, layer: int) -> Input:
        """The states of a layer, as they are stored."""
        return Input(SIDE, 1.0, self.layers[layer].dtype, (self.layers[layer],))

    def of(self, layer: int, hidden: int, inputs: Inputs, report: Report) -> "Iterator[F32]":
        """Some tokens' states at a time, (tokens, hidden). Raises CheckpointError where a number is not finite."""
        from chimerakit.numerics.compare import is_finite

        tensor, done = self.layers[layer], 0
        for values in read_rows(self.part(layer), (tensor.shape[0], hidden), inputs, report):
            if not is_finite(values):
                raise CheckpointError(
                    f"{tensor.name!r} holds NaN or infinity, in tokens {done} to {done + len(values) - 1}",
                    where=Path(self.file.root, tensor.file),
                    do="record the states again",
                )
            done += len(values)
            yield values


class DrawnStates(Struct, frozen=True):
    """States drawn for each layer: normal, without a preferred direction, scaled to an RMS of 1."""

    tokens: int

    @property
    def said(self) -> States:
        """What they are called wherever a figure of them stands."""
        return States(f"synthetic isotropic states ({self.tokens} tokens, seed {SEED})", is_synthetic=True)

    def of(self, layer: int, hidden: int, _: Inputs, report: Report) -> "Iterator[F32]":
        """Some tokens' states at a time, (tokens, hidden); always the same."""
        from chimerakit.numerics.routing import draw_states

        for first in range(0, self.tokens, _DRAWN):
            report(0)
            yield draw_states((min(_DRAWN, self.tokens - first), hidden), (SEED, layer, first))


AnyStates = RecordedStates | DrawnStates


def open_states(path: Path) -> RecordedStates:
    """A file of states, from its header. Raises CheckpointError for a file that is none."""
    if path.is_dir():
        raise CheckpointError("is a folder", where=path, expected="one safetensors file of states")
    file = open_checkpoint(path)
    source = (file.shards[0].metadata or {}).get("source", "").strip()
    if not 0 < len(source) <= _MAX_SOURCE:
        raise CheckpointError(
            "does not say of what model and prompts its states are",
            where=path,
            expected=f'"source" in its metadata, of at most {_MAX_SOURCE} characters',
            found=f"{len(source)} characters",
            do="record them with it; 'synthetic' if they are made up",
        )
    layers = {_layer(tensor, path): tensor for tensor in file.tensors.values()}
    return RecordedStates(States(source, source.lower().startswith("synthetic")), file, layers)


def _layer(tensor: Tensor, path: Path) -> int:
    """The layer of which a tensor holds the states; refuses one that can't hold any."""
    found = _NAME.fullmatch(tensor.name)
    if found is None:
        raise CheckpointError(f"{tensor.name!r} is the name of no layer", where=path, expected="layers.0, layers.1 ...")
    if tensor.dtype not in _DTYPES or len(tensor.shape) != 2 or 0 in tensor.shape:
        raise CheckpointError(
            f"{tensor.name!r} holds no states",
            where=path,
            expected=f"[tokens, hidden], at least one of each, as {', '.join(_DTYPES)}",
            found=f"{list(tensor.shape)} as {tensor.dtype}",
        )
    return int(found[1])


class StatesFile:
    """A file of states while it is written; it has its name when it is whole."""

    def __init__(self, path: Path, source: str, tokens: int, widths: Mapping[int, int]):
        """widths: how many numbers the router of each layer takes."""
        ordered = storage_order((f"layers.{n}", "F32", (tokens, width)) for n, width in sorted(widths.items()))
        header = header_bytes(ordered, {"source": source[:_MAX_SOURCE]})
        self._path = path
        self._widths = widths
        self._starts: dict[int, int] = {}
        end = len(header)
        for name, _, shape in ordered:
            self._starts[int(name.removeprefix("layers."))] = end
            end += 4 * numel_of(shape)
        self._part = new_part(path, end)
        self._part.write(header, 0)

    def write(self, layer: int, first: int, states: "F32") -> None:
        """Take the states of some tokens, from the `first` on."""
        self._part.write(states.tobytes(), self._starts[layer] + 4 * first * self._widths[layer])

    def close(self, *, whole: bool) -> None:
        """Give the file its name, or leave it unfinished."""
        if whole:
            self._part.sync()
        self._part.close()
        if whole:
            finish_file(self._path)


def check_states(states: RecordedStates, widths: Mapping[int, int]) -> None:
    """Refuse states that fit no router; widths: how many numbers the router of each layer takes."""
    for layer, tensor in states.layers.items():
        if layer not in widths:
            raise CheckpointError(
                f"{tensor.name!r} is of a layer without a router that both checkpoints have",
                where=Path(states.file.root, tensor.file),
                expected=f"layers among {', '.join(map(str, sorted(widths))) or 'none'}",
            )
        if tensor.shape[1] != widths[layer]:
            raise CheckpointError(
                f"{tensor.name!r} has the wrong shape",
                where=Path(states.file.root, tensor.file),
                expected=f"[tokens, {widths[layer]}]",
                found=list(tensor.shape),
            )


def read_rows(part: Input, shape: tuple[int, int], inputs: Inputs, report: Report) -> "Iterator[F32]":
    """Values of a stored matrix, (some rows, all columns) at a time."""
    import numpy as np

    from chimerakit.numerics.mix import mix

    whole = cut(shape, (FP8_BLOCK,))
    source = Source(part, inputs, whole)
    for _, panels in groupby(whole.panels(), key=lambda panel: panel.row):
        pieces = []
        for panel in panels:
            source.read(panel)
            term = source.term(panel, 1.0)
            pieces.append(mix([term], (panel.rows, panel.cols)))
            report(panel_nbytes(term))
        yield np.concatenate(pieces, axis=1)


def panel_nbytes(term: "Term") -> int:
    """Bytes of a panel as it is stored."""
    return term.data.nbytes + (0 if term.scales is None else term.scales.nbytes)
