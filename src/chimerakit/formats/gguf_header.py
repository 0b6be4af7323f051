"""The header of one GGUF file: keys with values, then where each tensor lies; read without making what nobody asks for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The checks are those of llama.cpp's reader (gguf.cpp) and
some more: every count is bounded by the bytes that are there before it is used, and each check says in a comment which
misuse it stops.

A vocabulary is a list of 130,000 texts, and so are its merges. They are walked over, checked to be Unicode and kept as
what identifies them, length and digest, not as Python objects.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from chimerakit.dtypes import GGML_TYPES, MAX_NBYTES, nbytes_of, numel_of
from chimerakit.errors import CheckpointError
from chimerakit.records import Field, Tensor
from chimerakit.stores.digest import digest_of

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
ARCHITECTURE = "general.architecture"
CHAT_TEMPLATE = "tokenizer.chat_template"
SPLIT = "split."
"""Keys that tell how a model is split into files, and nothing of the model."""
DEFAULT_ALIGNMENT = 32
MAX_TENSORS = 150_000
"""In one file, slices of stacked experts counted each: every one costs far more memory than its entry."""
_MAX_KEYS = 1 << 16
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20
_SHOWN = 64
"""Elements of a list that is kept as it is."""
_STRING, _ARRAY = 8, 9
_NUMBERS: dict[int, tuple[str, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_KINDS = {code: name for code, (name, _) in _NUMBERS.items()} | {_STRING: "string"}
_CODES = {name: code for code, name in _KINDS.items()}
_TYPES = {kind.id: name for name, kind in GGML_TYPES.items()}
_U64 = struct.Struct("<Q")


class Parsed(NamedTuple):
    """What a header says."""

    nbytes: int
    """Everything before the first weight byte."""
    values: dict[str, Any]
    """Instead of a long list, its kind, length and digest."""
    fields: tuple[Field, ...]
    """Where each key lies."""
    tensors: list[Tensor]
    """In the order of their bytes."""


def padded(nbytes: int, alignment: int) -> int:
    """As many bytes, filled up to the next multiple of the alignment."""
    return -(-nbytes // alignment) * alignment


class TooShortError(Exception):
    """The header is longer than what was given of it; never seen outside of formats."""


class _Text:
    """The bytes of a header, read from the beginning."""

    def __init__(self, data: bytes, where: object):
        self.data = data
        self.where = where
        self.at = 0

    def skip(self, nbytes: int) -> int:
        """Where the next bytes begin."""
        start = self.at
        if nbytes > len(self.data) - start:
            raise TooShortError
        self.at = start + nbytes
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.skip(struct.calcsize(code)))[0]

    def string(self, what: str) -> str:
        nbytes = self.number("Q")
        start = self.skip(nbytes)
        try:
            return self.data[start : start + nbytes].decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8 text (byte {start + e.start} of the file)") from e

    def strings(self, count: int, key: str) -> list[bytes]:
        """As many texts as there are, each checked, none decoded."""
        found = []
        data, at, end, length_at = self.data, self.at, len(self.data), _U64.unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise TooShortError
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > end:
                raise TooShortError
            found.append(data[start:at])
        self.at = at
        try:
            b"\0".join(found).decode("utf-8")  # a character that is cut in two is not made whole by its neighbour
        except UnicodeDecodeError as e:
            raise self.error(f"a text of {key!r} is not UTF-8") from e
        return found

    def error(self, what: str, **more: Any) -> CheckpointError:
        return CheckpointError(what, where=self.where, **more)


def parse_header(
    data: bytes, name: str, file_nbytes: int, where: object, is_stack: Callable[[str], bool], model: Mapping[str, Any]
) -> Parsed:
    """What a header says. Raises TooShortError if `data`, the beginning of a file of `file_nbytes`, holds only a part of it.

    is_stack: whether a tensor's name is that of stacked experts, which are records of their own. model: keys of the model's
    first file, if this is another one.
    """
    text = _Text(data, where)
    _check_magic(text)
    num_tensors, num_keys = text.number("Q"), text.number("Q")
    # Counts that the file can't hold would be loops without end; and records far larger than the file.
    if num_tensors > min(MAX_TENSORS, file_nbytes // 24) or num_keys > min(_MAX_KEYS, file_nbytes // 13):
        raise text.error(
            "the header's counts can't be right",
            found=f"{num_tensors} tensors, {num_keys} keys",
            do="get the file again",
        )
    values, fields = _parse_fields(text, num_keys)
    alignment = _alignment(values, fields, text)
    infos = [_parse_info(text) for _ in range(num_tensors)]
    nbytes = padded(text.at, alignment)
    said = {**values, **model}
    experts = said.get(f"{said.get(ARCHITECTURE)}.expert_count")
    tensors = _place(infos, name, nbytes, file_nbytes, alignment, text)
    nbytes = min(nbytes, file_nbytes)  # without tensors nothing need be filled up
    found = [s for t in tensors for s in (_slices(t, experts) if is_stack(t.name) else (t,))]
    if len(found) > MAX_TENSORS:
        raise text.error("the header holds too much", expected=f"at most {MAX_TENSORS} tensors", found=len(found))
    return Parsed(nbytes, values, tuple(fields), found)


def _check_magic(text: _Text) -> None:
    start = text.skip(4)
    if text.data[start : start + 4] != MAGIC:
        raise text.error("is no GGUF file", expected=f"it to begin with {MAGIC!r}", found=text.data[:4])
    version = text.number("I")
    if version in VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise text.error("is a big-endian GGUF file; only little-endian ones are read", do="convert it")
    raise text.error(
        "is a GGUF file of a version that can't be read",
        expected=" or ".join(map(str, VERSIONS)),
        found=version,
        do="convert it with llama.cpp's gguf_new_metadata.py" if version == 1 else "get a newer chimerakit",
    )


# ------------------------------------------------------------------------------------------------ keys


def _parse_fields(text: _Text, count: int) -> tuple[dict[str, Any], list[Field]]:
    values, fields = dict[str, Any](), list[Field]()
    for _ in range(count):
        start = text.at
        key = text.string("a key")
        if not key:
            raise text.error("has a key without a name")
        # Readers disagree on which of two counts.
        if key in values:
            raise text.error(f"has the key {key!r} twice")
        code = text.number("I")
        kind = "array" if code == _ARRAY else _KINDS.get(code)
        if kind is None:
            raise text.error(f"{key!r} has an unknown type", found=code)
        values[key], kind = _parse_array(text, key) if kind == "array" else (_parse_value(text, code, key), kind)
        fields.append(Field(key, kind, start, text.at - start))
    return values, fields


def _parse_value(text: _Text, code: int, key: str) -> Any:
    if code == _STRING:
        return text.string(f"{key!r}")
    kind, letter = _NUMBERS[code]
    value = text.number(letter)
    if kind != "bool":
        return value
    if value > 1:
        raise text.error(f"{key!r} is neither true nor false", found=value)
    return bool(value)


def _parse_array(text: _Text, key: str) -> tuple[Any, str]:
    """A list's values, or what tells a long one from others; and what it is a list of."""
    code, count = text.number("I"), text.number("Q")
    if code not in _KINDS:
        raise text.error(f"{key!r} is a list of what can't be read", expected="numbers or texts", found=code)
    start = text.at
    if code == _STRING:
        # Each text has its length before it.
        if count > (len(text.data) - start) // 8:
            raise TooShortError
        found = text.strings(count, key)
        values: list[Any] = [each.decode() for each in found] if count <= _SHOWN else []
    else:
        letter = _NUMBERS[code][1]
        text.skip(count * struct.calcsize(letter))
        values = list(struct.unpack_from(f"<{count}{letter}", text.data, start)) if count <= _SHOWN else []
        values = [bool(value) for value in values] if _KINDS[code] == "bool" else values
    kind = f"[{_KINDS[code]}]"
    if count <= _SHOWN:
        return values, kind
    return {"list": _KINDS[code], "length": count, "xxh3": digest_of(text.data[start : text.at])}, kind


def _alignment(values: dict[str, Any], fields: list[Field], text: _Text) -> int:
    found = values.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    is_u32 = all(field.kind == "u32" for field in fields if field.key == ALIGNMENT)
    # A power of two, as llama.cpp asks; a huge one would make a small file's offsets anything.
    if not is_u32 or found < 1 or found & (found - 1) or found > _MAX_ALIGNMENT:
        raise text.error(
            f"{ALIGNMENT} can't be right", expected=f"a u32 power of 2, at most {_MAX_ALIGNMENT}", found=found
        )
    return int(found)


# --------------------------------------------------------------------------------------------- tensors


class _Info(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    """Rows last, as numpy has it; the file has it the other way round."""
    offset: int


def _parse_info(text: _Text) -> _Info:
    name = text.string("a tensor's name")
    num_dims = text.number("I")
    if num_dims > _MAX_DIMS:
        raise text.error(f"{name!r} has too many dimensions", expected=f"at most {_MAX_DIMS}", found=num_dims)
    sides = tuple(text.number("Q") for _ in range(num_dims))
    code, offset = text.number("I"), text.number("Q")
    if code not in _TYPES:
        raise text.error(
            f"{name!r} has a type that is not known, so nobody can say how many bytes it has",
            found=f"type {code}",
            do="types of other programs (ik_llama.cpp) are converted with these",
        )
    return _Info(name, _TYPES[code], sides[::-1], offset)


def _place(infos: list[_Info], name: str, start: int, file_nbytes: int, alignment: int, text: _Text) -> list[Tensor]:
    """Tensors with their bytes, which follow each other, each at a multiple of the alignment."""
    names, found, end = set[str](), list[Tensor](), 0
    for info in infos:
        if info.name in names:
            raise text.error(f"the tensor {info.name!r} is there twice")
        names.add(info.name)
        # Sides that overflow are no shape, though another one is 0.
        is_possible = numel_of(tuple(max(1, side) for side in info.shape)) < MAX_NBYTES
        nbytes = nbytes_of(info.dtype, info.shape) if is_possible else None
        if nbytes is None:
            raise text.error(f"{info.name!r} has an impossible shape", found=f"{info.dtype} {list(info.shape)}")
        expected = padded(end, alignment)
        # Gaps hide data, overlaps let one tensor be another.
        if info.offset != expected:
            raise text.error(
                f"the bytes of {info.name!r} do not follow those of the tensor before it",
                expected=f"offset {expected}",
                found=info.offset,
            )
        end = expected + nbytes
        found.append(Tensor(info.name, info.dtype, info.shape, name, start + expected, nbytes))
    # Bytes after the last tensor hide data; missing ones are a download that broke off.
    last = start + end if infos else text.at
    if not last <= file_nbytes <= padded(last, alignment):
        raise text.error(
            "the file is truncated" if file_nbytes < last else "bytes follow the last tensor",
            expected=f"{last} bytes in all",
            found=file_nbytes,
            do="get the file again",
        )
    return found


def _slices(stack: Tensor, experts: object) -> list[Tensor]:
    """The tensors of single experts in one that holds those of all; the whole of any other."""
    if not isinstance(experts, int) or not stack.shape or not 0 < stack.shape[0] == experts:
        return [stack]
    nbytes = stack.nbytes // experts
    return [
        Tensor(f"{stack.name}[{n}]", stack.dtype, stack.shape[1:], stack.file, stack.start + n * nbytes, nbytes)
        for n in range(min(experts, MAX_TENSORS + 1))  # a huge number is refused, not walked through
    ]


# --------------------------------------------------------------------------------------------- writing


def encode_string(text: str) -> bytes:
    """A text as it stands in a header: after its length."""
    data = text.encode()
    return _U64.pack(len(data)) + data


def encode_field(key: str, kind: str, value: Any) -> bytes:
    """A key with its value. kind: as in `Field`; of lists only such of texts."""
    if kind == "[string]":
        content = struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(encode_string, value))
    elif kind == "string":
        content = struct.pack("<I", _STRING) + encode_string(value)
    else:
        content = struct.pack("<I" + _NUMBERS[_CODES[kind]][1], _CODES[kind], value)
    return encode_string(key) + content


def encode_opening(num_tensors: int, num_keys: int) -> bytes:
    """What a file begins with."""
    return MAGIC + struct.pack("<IQQ", VERSIONS[-1], num_tensors, num_keys)


def encode_infos(tensors: Iterable[tuple[str, str, tuple[int, ...]]], alignment: int) -> tuple[bytes, list[int]]:
    """Where each tensor (name, dtype, shape) lies, as a header says it, and its offset within the data."""
    found, offsets, end = bytearray(), list[int](), 0
    for name, dtype, shape in tensors:
        offsets.append(end)
        found += encode_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        found += struct.pack("<IQ", GGML_TYPES[dtype].id, end)
        end = padded(end + (nbytes_of(dtype, shape) or 0), alignment)
    return bytes(found), offsets
