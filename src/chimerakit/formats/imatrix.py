"""Importance matrices: what llama-imatrix sums up of the activations that each tensor is multiplied with.

GGUF (llama.cpp's pull request 9400): general.type = imatrix; for each tensor NAME.in_sum2, float32 sums of squares for every
column, a row for each expert (or for the tensor), and NAME.counts, how many activations each row is the sum of. Legacy .dat
files hold means over chunks and no counts of single experts; they are read only.
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from chimerakit.errors import CheckpointError
from chimerakit.formats.gguf_header import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    Parsed,
    TooShortError,
    encode_field,
    encode_infos,
    encode_opening,
    padded,
    parse_header,
)
from chimerakit.records import ImatrixFile, Importance
from chimerakit.stores.digest import digest_of
from chimerakit.stores.local import read_file

MAX_NBYTES = 1 << 31
"""Of a file; DeepSeek's takes a tenth of that."""
_SUMS, _COUNTS = ".in_sum2", ".counts"
_LEGACY_CHUNK = 512
"""Activations in a chunk, as llama.cpp takes it for legacy files, which don't say it."""


class Entry(Struct, frozen=True):
    """What is known of one tensor's inputs."""

    rows: int
    """Experts of a stack, heads of some tensors, else 1."""
    cols: int
    sums: bytes
    """rows x cols, float32: sums of squares."""
    counts: bytes
    """rows, float32: activations that were summed up."""


class Imatrix(Struct, frozen=True):
    """An importance matrix file."""

    entries: dict[str, Entry]
    """By tensor."""
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    is_legacy: bool = False


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix of either format. Raises CheckpointError for a file that is none, or damaged."""
    data = read_file(path, MAX_NBYTES)
    return _imatrix_of(_parse(data, path), data, path) if data[:4] == MAGIC else _read_legacy(data, path)


def open_imatrix(path: Path) -> ImatrixFile:
    """Where everything stands in a file of the GGUF format. Raises CheckpointError, for a legacy file as well."""
    data = read_file(path, MAX_NBYTES)
    if data[:4] != MAGIC:
        _read_legacy(data, path)  # or it is none at all
        raise CheckpointError(
            "is a legacy importance matrix, which can't be read piece by piece",
            where=path,
            do="chimerakit imatrix makes a GGUF file of it",
        )
    parsed = _parse(data, path)
    found = _imatrix_of(parsed, data, path)
    tensors = {tensor.name: tensor for tensor in parsed.tensors}
    entries = {
        name: (Importance(entry.rows, tensors[name + _SUMS].start, tensors[name + _COUNTS].start), entry.cols)
        for name, entry in found.entries.items()
    }
    stat = path.stat()
    return ImatrixFile(
        root=str(path.parent.resolve()),
        name=path.name,
        nbytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        digest=digest_of(data),
        entries=entries,
        datasets=found.datasets,
        chunk_count=found.chunk_count,
    )


def _parse(data: bytes, path: Path) -> Parsed:
    try:
        return parse_header(data, path.name, len(data), path, lambda _: False, {})
    except TooShortError:
        raise CheckpointError("ends within its header", where=path, do="get the file again") from None


def _imatrix_of(found: Parsed, data: bytes, path: Path) -> Imatrix:
    kind = found.values.get("general.type")
    if kind != "imatrix":
        raise CheckpointError("is no importance matrix", where=path, expected="general.type imatrix", found=repr(kind))
    tensors = {tensor.name: tensor for tensor in found.tensors}
    entries = {}
    for name in [t.removesuffix(_SUMS) for t in tensors if t.endswith(_SUMS)]:
        sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS)
        rows = 1 if len(sums.shape) < 2 else sums.shape[0]
        is_whole = counts is not None and counts.nbytes == 4 * rows and counts.dtype == "F32"
        if counts is None or not is_whole or sums.dtype != "F32" or len(sums.shape) not in (1, 2):
            raise CheckpointError(
                f"{name!r} has no counts for its sums, or of another shape",
                where=path,
                expected=f"float32 {_SUMS} and {_COUNTS}",
                found=f"{sums.dtype} {list(sums.shape)}, {'none' if counts is None else list(counts.shape)}",
            )
        here, there = (data[t.start : t.start + t.nbytes] for t in (sums, counts))
        entries[name] = Entry(rows, sums.shape[-1], here, there)
    datasets = found.values.get("imatrix.datasets", [])
    return Imatrix(
        entries,
        tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        _count(found.values, "imatrix.chunk_count", path),
        _count(found.values, "imatrix.chunk_size", path),
    )


def _count(values: Mapping[str, Any], key: str, path: Path) -> int:
    found = values.get(key, 0)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 32:
        raise CheckpointError(f"{key} can't be right", where=path, expected="a u32", found=found)
    return found


def _read_legacy(data: bytes, path: Path) -> Imatrix:
    """Entries of (name, calls, values): sums of squares in a chunk's mean, times calls."""
    wrong = CheckpointError("is no importance matrix: neither GGUF nor a legacy file", where=path)
    at, entries = 4, dict[str, Entry]()
    try:
        (count,) = struct.unpack_from("<i", data)
        # An entry takes 12 bytes and more: a count that the file can't hold is none.
        if not 0 < count <= len(data) // 12:
            raise wrong
        for _ in range(count):
            (length,) = struct.unpack_from("<i", data, at)
            if not 0 < length <= 4096:
                raise wrong
            name = data[at + 4 : at + 4 + length].decode("utf-8")
            at += 4 + length
            calls, cols = struct.unpack_from("<ii", data, at)
            values = struct.unpack_from(f"<{cols}f", data, at + 8) if 0 < cols <= len(data) // 4 else ()
            if calls <= 0 or not values or name in entries:
                raise wrong
            at += 8 + 4 * cols
            sums = struct.pack(f"<{cols}f", *(value * _LEGACY_CHUNK for value in values))
            entries[name] = Entry(1, cols, sums, struct.pack("<f", calls * _LEGACY_CHUNK))
        chunks, length = struct.unpack_from("<ii", data, at) if len(data) >= at + 8 else (0, 0)
        dataset = data[at + 8 : at + 8 + max(0, length)].decode("utf-8")
    except (struct.error, UnicodeDecodeError, OverflowError):
        raise wrong from None
    return Imatrix(entries, (dataset,) if dataset else (), max(0, chunks), _LEGACY_CHUNK, is_legacy=True)


def encode_imatrix(imatrix: Imatrix) -> bytes:
    """A GGUF file that llama-quantize reads."""
    keys = [
        encode_field("general.type", "string", "imatrix"),
        encode_field("imatrix.datasets", "[string]", list(imatrix.datasets)),
        encode_field("imatrix.chunk_count", "u32", imatrix.chunk_count),
        encode_field("imatrix.chunk_size", "u32", imatrix.chunk_size),
    ]
    parts = [part for name, entry in sorted(imatrix.entries.items()) for part in _parts(name, entry)]
    infos, offsets = encode_infos(((name, "F32", shape) for name, shape, _ in parts), DEFAULT_ALIGNMENT)
    head = encode_opening(len(parts), len(keys)) + b"".join(keys) + infos
    start = padded(len(head), DEFAULT_ALIGNMENT)
    data = bytearray(head)
    for offset, (_, _, content) in zip(offsets, parts, strict=True):
        data = data.ljust(start + offset, b"\0") + content
    return bytes(data.ljust(padded(len(data), DEFAULT_ALIGNMENT), b"\0"))


def _parts(name: str, entry: Entry) -> Iterable[tuple[str, tuple[int, ...], bytes]]:
    yield name + _SUMS, (entry.rows, entry.cols), entry.sums
    yield name + _COUNTS, (entry.rows, 1), entry.counts
