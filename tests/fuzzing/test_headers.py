"""Nearly right safetensors files, beside the reference reader: the same ones accepted, and the same read from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors

from chimerakit.errors import CheckpointError
from chimerakit.formats import open_checkpoint
from tests.formats.bits import BITS
from tests.fuzzing import LEAST_ACCEPTED, headers, reproducible, seeds

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
_MOST = 2**63 - 1
"""Bytes: the largest size that an operating system, numpy or torch can say."""


class Content(NamedTuple):
    """What a reader finds in a file."""

    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    """(dtype, shape, bytes) by name."""
    metadata: dict[str, str] | None


def read_by_us(file: Path) -> Content | None:
    """What we find, None if we refuse the file."""
    try:
        found = open_checkpoint(file)
    except CheckpointError:
        return None
    data = file.read_bytes()
    tensors = {n: (t.dtype, t.shape, data[t.start : t.start + t.nbytes]) for n, t in found.tensors.items()}
    return Content(tensors, found.shards[0].metadata)


def read_by_reference(file: Path) -> Content | None:
    """What the reference finds, by both of its ways in, which must agree."""
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            names, metadata = set(opened.keys()), opened.metadata()
    except (safetensors.SafetensorError, OSError):
        names = None
    try:
        found = _deserialize(file.read_bytes())
    except safetensors.SafetensorError:
        assert names is None
        return None
    assert names == {name for name, _ in found}
    return Content({n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in found}, metadata)


# ------------------------------------------------------------------------- where we are stricter, and why


class Object(list[tuple[str, Any]]):
    """A JSON object that remembers a key that stands twice."""


def _objects(node: object) -> list[Object]:
    below = [value for _, value in node] if isinstance(node, Object) else node if isinstance(node, list) else []
    return ([node] if isinstance(node, Object) else []) + [found for value in below for found in _objects(value)]


def _entries(top: Object) -> list[Any]:
    return [value for name, value in top if name != "__metadata__"]


def _has_key_twice(top: Object) -> bool:
    return any(len(dict(pairs)) < len(pairs) for pairs in _objects(top))


def _has_unknown_field(top: Object) -> bool:
    known = {"dtype", "shape", "data_offsets"}
    return any(not {name for name, _ in entry} <= known for entry in _entries(top) if isinstance(entry, Object))


def _has_another_kind(top: Object) -> bool:
    entries = [dict(entry) if isinstance(entry, Object) else None for entry in _entries(top)]
    return ("__metadata__", None) in top or any(e is None or not isinstance(e["dtype"], str) for e in entries)


def _has_impossible_shape(top: Object) -> bool:
    for entry in (dict(entry) for entry in _entries(top) if isinstance(entry, Object)):
        bits = BITS[entry["dtype"]] if isinstance(entry["dtype"], str) else 1
        for side in map(int, entry["shape"]):
            bits *= side
            if max(side, bits // 8) > _MOST:
                return True
    return False


STRICTER: dict[str, Callable[[Object], bool]] = {
    # The reference keeps the last of two keys; another reader may keep the first.
    "a key twice": _has_key_twice,
    # It ignores fields that it does not know; one could carry what another reader obeys.
    "an unknown field": _has_unknown_field,
    # Its decoder takes a list for an object, {"F32": null} for a name and null for no metadata; no writer does that.
    "another kind": _has_another_kind,
    # Tensors without elements, a side or all sides before the 0 of which no signed 64-bit number can say.
    "an impossible shape": _has_impossible_shape,
}
"""Files that the reference accepts and we refuse: all of these and no others."""


def is_refused_by_us_alone(content: bytes) -> bool:
    """Whether a file that the reference accepts is one that we mean to refuse."""
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    # The reference passes over white space before the brace, which the format's own text forbids.
    if not header.startswith(b"{"):
        return True
    top = json.loads(header, object_pairs_hook=Object, parse_int=str, parse_float=str)
    return any(is_stricter(top) for is_stricter in STRICTER.values())


def accept(file: Path, content: bytes) -> bool:
    """Whether we accept a file; we must exactly if the reference does and no line of STRICTER is against it."""
    file.write_bytes(content)
    ours, theirs = read_by_us(file), read_by_reference(file)
    if theirs is not None and is_refused_by_us_alone(content):
        theirs = None
    assert ours == theirs
    return ours is not None


def test_files_are_accepted_and_read_as_the_reference_does(memory: Path) -> None:
    """Of random files we accept those that the reference accepts, but for STRICTER, and find the same in them."""
    file = memory / "model.safetensors"
    accepted, all_seeds = 0, seeds(quick=3_000, ci=60_000, prove=900_000)
    for seed in all_seeds:
        content = headers.make(seed)
        with reproducible(seed, content):
            accepted += accept(file, content)
    assert accepted >= LEAST_ACCEPTED * len(all_seeds)


def test_one_seed_gives_one_file() -> None:
    """A failure can be looked at again: the same seed makes the same file."""
    assert all(headers.make(seed) == headers.make(seed) for seed in range(50))


_W = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "header",
    [
        f" {{{_W}}}",
        f"{{{_W},{_W}}}",
        f'{{"__metadata__":{{"a":"1","a":"2"}},{_W}}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}',
        '{"w":["F32",[1],[0,4]]}',
        '{"w":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}',
        f'{{"__metadata__":null,{_W}}}',
        f'{{"v":{{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}},{_W}}}',
        f'{{"v":{{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}},{_W}}}',
    ],
)
def test_where_we_are_stricter_than_the_reference(tmp_path: Path, header: str) -> None:
    """Each line of STRICTER has a file that the reference reads and we refuse."""
    file, text = tmp_path / "model.safetensors", header.encode()
    content = len(text).to_bytes(8, "little") + text + b"1234"
    file.write_bytes(content)
    assert read_by_reference(file) is not None
    assert not accept(file, content)
