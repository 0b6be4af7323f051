"""safetensors: an 8-byte little-endian header length, a JSON header, the tensors' bytes without gaps.

Format: https://github.com/huggingface/safetensors#format. The checks are those of its Rust reader and some more: every
number in a header is bounded before it is used, and each check says in a comment which misuse it stops. A checkpoint is
a folder of such files with an index that says which tensor lies in which, or one file.

Opening reads headers, the index and config.json. Writing makes headers; bytes are moved by the executor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from chimerakit.dtypes import MAX_NBYTES, STORAGE_TYPES, nbytes_of
from chimerakit.errors import CheckpointError
from chimerakit.formats.strict_json import parse_json, read_object
from chimerakit.records import Checkpoint, File, Shard, Tensor
from chimerakit.stores.digest import digest_of
from chimerakit.stores.local import PART, Reader, list_files, list_links, read_file

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
MAX_HEADER = 100_000_000
"""Bytes; the limit of the reference reader."""
MAX_TENSORS = 150_000
"""In one file. The largest models have fewer in all their files, and each costs far more memory than its text."""
_MAX_INDEX = 64 << 20
_MAX_CONFIG = 16 << 20
WEIGHT_SUFFIXES = (SUFFIX, ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".npy", PART)
_NOT_OURS = ("chimerakit.json", "README.md")
_TEXTS = ("tokenizer_config.json", "chat_template.jinja")
_MAX_TEXT = 16 << 20


class _Entry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One tensor's part of a header; the fields in the reference writer's order."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Header(NamedTuple):
    """What a header's text says, unchecked."""

    entries: dict[str, _Entry]
    metadata: dict[str, str] | None


class _Kind(NamedTuple):
    """What tensors of one dtype and shape share."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int | None
    """None if there can be no such tensor."""


T = TypeVar("T")
_METADATA = "__metadata__"
_PLAIN_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]+\.safetensors")


# --------------------------------------------------------------------------------------------- headers


def parse_header(
    header: bytes, name: str, data_nbytes: int, where: object
) -> tuple[list[Tensor], dict[str, str] | None]:
    """Tensors, in the order of their bytes, and metadata of a header.

    `header`: everything before the first weight byte, length field included. `data_nbytes`: how many bytes follow it.
    """
    text = header[8:]
    # Anything before the brace would let one file be read as two formats.
    if not text.startswith(b"{"):
        raise CheckpointError("the header does not begin with '{'", where=where, found=text[:16])
    # Millions of tensors without bytes, of empty lists or of zeros would be records far larger than the file.
    if max(text.count(b"{") - 2, text.count(b"[") // 2, text.count(b",") // 16) > MAX_TENSORS:
        raise CheckpointError("the header holds too much", where=where, expected=f"at most {MAX_TENSORS} tensors")
    found = _decode_written(text) or _decode_any(text, where)

    tensors = []
    end = 0
    for key, entry in sorted(found.entries.items(), key=lambda item: item[1].data_offsets):
        dtype, shape, nbytes = _kind(entry.dtype, entry.shape)
        begin, stop = entry.data_offsets
        # Gaps hide data, overlaps let one tensor be another: bytes must follow each other.
        if begin != end or stop - begin != nbytes or stop > MAX_NBYTES:
            raise _objection(key, entry, end, where)
        end = stop
        tensors.append(Tensor(key, dtype, shape, name, len(header) + begin, stop - begin))
    # Bytes after the last tensor hide data; missing ones are a download that broke off.
    if end != data_nbytes:
        raise CheckpointError(
            "the file is truncated" if data_nbytes < end else "bytes follow the last tensor",
            where=where,
            expected=f"{len(header) + end} bytes in all",
            found=len(header) + data_nbytes,
            do="download the file again",
        )
    return tensors, found.metadata


_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_ENTRY = msgspec.json.Decoder(_Entry)
_RAW_METADATA = msgspec.json.Decoder(dict[str, str])


def _decode_written(text: bytes) -> _Header | None:
    """What a header says that is byte for byte as the reference writer writes it; None for any other.

    Nearly all are, and decoding them so takes a tenth of the time. The decoder would let things pass that `_decode_any`
    refuses, such as a key that comes twice; but nothing of the kind is in a text that is what encoding gives back.
    """
    try:
        raw = _RAW.decode(text)
        metadata = _RAW_METADATA.decode(raw.pop(_METADATA)) if _METADATA in raw else None
        header = _Header({name: _RAW_ENTRY.decode(entry) for name, entry in raw.items()}, metadata)
        return header if _encode(header) == text.rstrip(b" ") else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _encode(header: _Header) -> bytes:
    """A header's text as the reference writer writes it: no spaces, metadata first."""
    content = header.entries if header.metadata is None else {_METADATA: header.metadata, **header.entries}
    return msgspec.json.encode(content)


def _decode_any(text: bytes, where: object) -> _Header:
    """What any header says, by the strict way: as slow as looking at every pair of a key and a value is."""
    found = parse_json(text, f"{where} (header)", _parse_int)
    metadata = _convert(_METADATA, found.pop(_METADATA), dict[str, str], where) if _METADATA in found else None
    return _Header({key: _convert(key, value, _Entry, where) for key, value in found.items()}, metadata)


def _parse_int(digits: str) -> float:
    """A number as the reference reader takes it: for it, -0 is no whole number."""
    return -0.0 if digits == "-0" else int(digits)


def _convert(key: str, value: object, kind: type[T], where: object) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        raise CheckpointError(f"{key!r} is no valid entry of a header: {e}", where=where) from e


@lru_cache(maxsize=1 << 12)
def _kind(dtype: str, shape: tuple[int, ...]) -> _Kind:
    """Kept, because a model of 100,000 tensors has a few dozen kinds: they are checked once and stored once."""
    is_possible = dtype in STORAGE_TYPES and all(0 <= side <= MAX_NBYTES for side in shape)
    return _Kind(dtype, shape, nbytes_of(dtype, shape) if is_possible else None)


def _objection(key: str, entry: _Entry, expected_begin: int, where: object) -> CheckpointError:
    """What is wrong with a tensor that is not possible or not where it should be."""
    if entry.dtype not in STORAGE_TYPES:
        return CheckpointError(f"{key!r} has an unknown dtype", where=where, found=entry.dtype)
    begin, end = entry.data_offsets
    shape = list(entry.shape)
    # Negative or huge numbers would turn into other ones in any later arithmetic.
    if min(begin, *shape, 0) < 0 or end < begin or end > MAX_NBYTES or max(shape, default=0) > MAX_NBYTES:
        return CheckpointError(
            f"{key!r} has an impossible shape or range", where=where, found=f"{shape}, {[begin, end]}"
        )
    nbytes = nbytes_of(entry.dtype, entry.shape)
    if nbytes != end - begin:
        size = "too large or no whole bytes" if nbytes is None else f"{nbytes}"
        return CheckpointError(
            f"{key!r}: shape and dtype do not agree with its bytes",
            where=where,
            expected=f"{entry.dtype} {shape}: {size}",
            found=f"{end - begin} bytes",
        )
    return CheckpointError(
        f"the bytes of {key!r} do not follow those of the tensor before it",
        where=where,
        expected=f"data_offsets from {expected_begin}",
        found=f"from {begin}",
    )


def header_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """The header, length field included, of a file with these tensors (name, dtype, shape) in this order.

    Written as the reference writer does: no spaces, metadata first, padded with spaces to a multiple of 8.
    """
    entries, end = {}, 0
    for name, dtype, shape in tensors:
        begin, end = end, end + (_kind(dtype, shape).nbytes or 0)
        entries[name] = _Entry(dtype, shape, (begin, end))
    text = _encode(_Header(entries, None if metadata is None else dict(sorted(metadata.items()))))
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def storage_order(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The reference writer's order: widest dtype first, so that every tensor is aligned; then by name."""
    ranks = {dtype: -rank for rank, dtype in enumerate(STORAGE_TYPES)}
    return sorted(tensors, key=lambda t: (ranks[t[1]], t[0]))


# ----------------------------------------------------------------------------------------- checkpoints


def is_folder(path: Path) -> bool:
    """Whether a folder holds safetensors."""
    return (path / INDEX).exists() or any(path.glob("*" + SUFFIX))


def open_safetensors(path: Path) -> Checkpoint:
    """The checkpoint at a folder or a single file, from its headers."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError("there is no such file or folder", where=path)
    if path.suffix != SUFFIX or path.name.startswith("."):
        raise CheckpointError("is no weight file that can be read", where=path, expected=f"NAME{SUFFIX}")
    index = path.parent / INDEX
    if index.is_file() and path.name in _weight_map(index).values():
        raise CheckpointError("is one shard of a checkpoint", where=path, do=f"give the folder: {path.parent}")
    shard, tensors = _open_shard(path.parent, path.name)
    config = path.parent / "config.json"
    return Checkpoint(
        root=str(path.parent.resolve()),
        shards=(shard,),
        tensors={t.name: t for t in tensors},
        config=read_object(config, _MAX_CONFIG) if config.is_file() else {},
        files=(_file(path.parent, config.name),) if config.is_file() else (),
        left_out=(),
        index=None,
        is_folder=False,
    )


def _open_folder(root: Path) -> Checkpoint:
    listed = [name for name, _ in list_files(root)]
    broken, linked = list_links(root)
    if broken:
        raise CheckpointError("is a link that leads nowhere", where=root / broken[0], do="download the file again")
    index = root / INDEX
    weight_map = _weight_map(index) if index.is_file() else None
    single = [name for name in listed if name.endswith(SUFFIX) and "/" not in name]
    if weight_map is None and len(single) != 1:
        raise CheckpointError(
            "holds no safetensors checkpoint" if not single else "holds several weight files but no index",
            where=root,
            expected=f"{INDEX} with its shards, or one *{SUFFIX} file",
            found=", ".join(single[:3]) + (" ..." if len(single) > 3 else "") if single else "none of them",
            do="download the whole checkpoint",
        )
    part = re.search(r"-[0-9]+-of-0*([0-9]+)\.safetensors$", single[0]) if weight_map is None else None
    if part is not None and part[1] != "1":
        raise CheckpointError(
            f"holds one of {part[1]} shards and no index",
            where=root,
            found=single[0],
            do="download the whole checkpoint",
        )
    names = sorted(set(weight_map.values())) if weight_map is not None else single
    opened = [_open_shard(root, name) for name in names]
    tensors = {t.name: t for _, found in opened for t in found}
    _check_places([found for _, found in opened], tensors, weight_map, root)
    weights = {*names, INDEX, *_NOT_OURS}
    others = [name for name in listed if name not in weights]
    return Checkpoint(
        root=str(root.resolve()),
        shards=tuple(shard for shard, _ in opened),
        tensors=tensors,
        config=read_object(root / "config.json", _MAX_CONFIG) if (root / "config.json").exists() else {},
        files=tuple(_file(root, name) for name in others if not name.endswith(WEIGHT_SUFFIXES)),
        left_out=(*(name for name in others if name.endswith(WEIGHT_SUFFIXES)), *(f"{name}/" for name in linked)),
        index=_file(root, INDEX) if weight_map is not None else None,
        texts={name: _text(root / name) for name in others if name in _TEXTS},
    )


def _file(root: Path, name: str) -> File:
    found = (root / name).stat()
    return File(name, found.st_size, found.st_mtime_ns)


def _text(path: Path) -> str:
    try:
        return read_file(path, _MAX_TEXT).decode("utf-8")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"is not UTF-8 text (byte {e.start})", where=path) from e


def _weight_map(path: Path) -> dict[str, str]:
    found = read_object(path, _MAX_INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError("has no weight_map", where=path, expected='{"weight_map": {tensor: file, ...}}')
    # A path in place of a name would read, and by the same layout write, outside the folder.
    plain = {file for file in {f for f in found.values() if isinstance(f, str)} if _PLAIN_NAME.fullmatch(file)}
    for tensor, file in found.items():
        if not isinstance(file, str) or file not in plain:
            raise CheckpointError(
                f"{tensor!r} is not in a plain file name", where=path, expected=f"NAME{SUFFIX}", found=repr(file)
            )
    return found


def _open_shard(root: Path, name: str) -> tuple[Shard, list[Tensor]]:
    path = root / name
    reader = Reader(path)
    try:
        # Shorter than its own length field: an empty or cut file.
        if reader.nbytes < 8:
            raise CheckpointError("is too short for a safetensors file", where=path, found=f"{reader.nbytes} bytes")
        length = int.from_bytes(reader.read(0, 8), "little")
        # A header larger than the file, or than any real one, would be an allocation that the file does not justify.
        if length > min(MAX_HEADER, reader.nbytes - 8):
            raise CheckpointError(
                "the header's length can't be right",
                where=path,
                expected=f"at most {min(MAX_HEADER, reader.nbytes - 8)} bytes",
                found=length,
                do="download the file again; it may be truncated or no safetensors file",
            )
        header = reader.read(0, 8 + length)
        tensors, metadata = parse_header(header, name, reader.nbytes - len(header), path)
        return Shard(name, reader.nbytes, len(header), digest_of(header), reader.mtime_ns, metadata), tensors
    finally:
        reader.close()


def _check_places(
    opened: Sequence[list[Tensor]], tensors: Mapping[str, Tensor], weight_map: dict[str, str] | None, root: Path
) -> None:
    """Refuse a tensor that is in two shards, or not where the index says."""
    files = {name: tensor.file for name, tensor in tensors.items()}
    if len(tensors) == sum(map(len, opened)) and (weight_map is None or weight_map == files):
        return
    before = dict[str, str]()
    for tensor in (tensor for found in opened for tensor in found):
        if (other := before.get(tensor.name)) is not None:
            raise CheckpointError(
                f"the tensor {tensor.name!r} is in two shards", where=root, found=f"{other}, {tensor.file}"
            )
        before[tensor.name] = tensor.file
        said = tensor.file if weight_map is None else weight_map.get(tensor.name)
        if said != tensor.file:
            raise CheckpointError(
                f"the tensor {tensor.name!r} is not where the index says",
                where=root / tensor.file,
                expected="not in any file (it is not in the index)" if said is None else said,
                found=tensor.file,
            )
    assert weight_map is not None, "without an index only a tensor that is there twice is wrong"
    missing = [name for name in weight_map if name not in tensors]
    raise CheckpointError(
        f"the index names {len(missing)} tensors that are not there",
        where=root / INDEX,
        expected=f"{missing[0]!r} in {weight_map[missing[0]]}",
        found="no such tensor in that file",
    )
