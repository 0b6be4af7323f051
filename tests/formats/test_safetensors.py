"""Reading and writing safetensors, beside the reference reader and writer."""

import errno
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from chimerakit.errors import CheckpointError
from chimerakit.formats import open_checkpoint
from chimerakit.formats.safetensors import INDEX, header_bytes, parse_header, storage_order
from chimerakit.records import Checkpoint, Tensor
from tests import synthetic
from tests.effort import examples
from tests.formats.bits import BITS

TORCH = {
    "BOOL": torch.bool, "F4": torch.float4_e2m1fn_x2, "U8": torch.uint8, "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip


_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


def shard_of(text: str | bytes, data: bytes = b"") -> bytes:
    """A file with this header, true or not."""
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> str:
    """A header's text for one tensor."""
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets}, separators=(",", ":"))


def bytes_of(tensor: Tensor, root: Path | str) -> bytes:
    """A tensor's bytes, where the record says that they are."""
    return Path(root, tensor.file).read_bytes()[tensor.start : tensor.start + tensor.nbytes]


def seen_by_us(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(dtype, shape, bytes) by name."""
    return {n: (t.dtype, t.shape, bytes_of(t, checkpoint.root)) for n, t in checkpoint.tensors.items()}


def seen_by_reference(file: Path) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, str] | None]:
    """The same, by the reference reader, and the metadata."""
    data = {name: bytes(found["data"]) for name, found in _deserialize(file.read_bytes())}
    with safetensors.safe_open(file, "numpy") as opened:
        slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
        return {n: (s.get_dtype(), tuple(s.get_shape()), data[n]) for n, s in slices.items()}, opened.metadata()


def message_of(path: Path) -> str:
    """What is said about a checkpoint that is refused."""
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    return str(refused.value)


# --------------------------------------------------------------------------------------- what is opened


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_is_read_whole(tmp_path: Path, shards: int) -> None:
    """Every tensor of a folder is found, with the dtype, shape and bytes that were written."""
    tensors = synthetic.tensors_of(0, "fp8")
    root = synthetic.write_checkpoint(tmp_path / "m", tensors, synthetic.config_of("fp8"), shards=shards, shuffle=1)
    found = open_checkpoint(root)
    expected = {n: (synthetic.NAMES[t.dtype], t.shape, t.tobytes()) for n, t in tensors.items()}
    assert seen_by_us(found) == expected
    assert len(found.shards) == shards
    assert (found.index is None) == (shards == 1)
    assert found.config == synthetic.config_of("fp8")


def test_tensors_come_in_the_order_of_shards_and_bytes(tmp_path: Path) -> None:
    """A checkpoint's tensors are in the order in which a disk would read them."""
    root = synthetic.make(tmp_path / "m", 0, shuffle=3)
    places = [(t.file, t.start) for t in open_checkpoint(root).tensors.values()]
    assert places == sorted(places)


def test_a_single_file_is_a_checkpoint(tmp_path: Path) -> None:
    """The path of one weight file opens that file, with the config that lies beside it."""
    root = synthetic.make(tmp_path / "m", 0, shards=1)
    by_file, by_folder = open_checkpoint(root / "model.safetensors"), open_checkpoint(root)
    assert by_file.tensors == by_folder.tensors
    assert by_file.shards == by_folder.shards
    assert by_file.config == by_folder.config
    assert [f.name for f in by_file.files] == ["config.json"]


def test_a_single_file_needs_no_config(tmp_path: Path) -> None:
    """A weight file without config.json opens, and its config is empty."""
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert open_checkpoint(tmp_path / "w.safetensors").config == {}


def test_the_hub_cache_is_followed(tmp_path: Path) -> None:
    """A snapshot folder whose files are links to blobs is read like the folder itself."""
    real = synthetic.make(tmp_path / "real", 0, shuffle=2)
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(real.iterdir())):
        (blobs / f"{number:064x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    linked, plain = open_checkpoint(snapshot), open_checkpoint(real)
    assert linked.tensors == plain.tensors
    assert [(f.name, f.nbytes) for f in linked.files] == [(f.name, f.nbytes) for f in plain.files]
    assert [s.header_digest for s in linked.shards] == [s.header_digest for s in plain.shards]
    assert seen_by_us(linked) == seen_by_us(plain)


def test_other_files_are_listed_and_other_weights_left_out(tmp_path: Path) -> None:
    """Files without weights are the checkpoint's, weight files that no index names are not."""
    root = synthetic.make(tmp_path / "m", 0)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "x.part", ".hidden", "modeling.py"):
        (root / name).write_bytes(b"12345")
    (root / "sub").mkdir()
    (root / "sub" / "vocab.txt").write_bytes(b"123")
    found = open_checkpoint(root)
    assert found.left_out == ("consolidated.safetensors", "model.gguf", "pytorch_model.bin", "x.part")
    assert [f.name for f in found.files] == [
        "LICENSE", "config.json", "generation_config.json", "modeling.py",
        "sub/vocab.txt", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert {f.name: f.nbytes for f in found.files}["sub/vocab.txt"] == 3
    assert found.texts == {"tokenizer_config.json": '{"chat_template": "template of m"}'}


def test_opening_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a weight file nothing is read but the header, and that once."""
    root = synthetic.make(tmp_path / "m", 0)
    read: dict[str, list[tuple[int, int]]] = {}
    preadv = os.preadv

    def recording(fd: int, buffers: Sequence[memoryview], start: int) -> int:
        count = preadv(fd, buffers, start)
        read.setdefault(Path(f"/proc/self/fd/{fd}").readlink().name, []).append((start, start + count))
        return count

    monkeypatch.setattr(os, "preadv", recording)
    checkpoint = open_checkpoint(root)
    for shard in checkpoint.shards:
        ranges = read[shard.name]
        assert max(stop for _, stop in ranges) == shard.header_nbytes < shard.nbytes
        assert sum(stop - start for start, stop in ranges) <= shard.header_nbytes + 8


# ---------------------------------------------------------------------------- beside the reference reader


@pytest.mark.parametrize("dtype", BITS)
def test_every_storage_type_is_read(tmp_path: Path, dtype: str) -> None:
    """A tensor of each storage type of the format is found with the bytes that the reference reader finds."""
    shape, nbytes = (3, 8), 3 * BITS[dtype]
    data = bytes(range(nbytes))
    file = tmp_path / "m.safetensors"
    text = f'{{"before":{entry("U8", [2], [0, 2])},"w":{entry(dtype, shape, [2, 2 + nbytes])}}}'
    file.write_bytes(shard_of(text, b"ab" + data))
    found = seen_by_us(open_checkpoint(file))
    assert found["w"] == (dtype, shape, data)
    assert found == seen_by_reference(file)[0]


def some_tensors(dtypes: Mapping[str, torch.dtype] = TORCH) -> dict[str, torch.Tensor]:
    """Two tensors of each dtype, their names not in the order of their dtypes."""
    random = np.random.default_rng(0)
    found = {}
    for number, (name, dtype) in enumerate(dtypes.items()):
        for letter, sides in (("z", (2, 16)), ("é", (16,))):
            raw = torch.from_numpy(random.integers(0, 2, sides, dtype=np.uint8))
            found[f"{letter}{number * 7 % 11}.{name}"] = raw.view(dtype)
    return found | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}


def test_files_of_torch_are_read_as_the_reference_reads_them(tmp_path: Path) -> None:
    """Names, their order, dtypes, shapes, bytes and metadata are those of safetensors.safe_open."""
    file = tmp_path / "m.safetensors"
    save_file(some_tensors(), file, {"format": "pt", "by": "ü"})
    checkpoint = open_checkpoint(file)
    tensors, metadata = seen_by_reference(file)
    ours = seen_by_us(checkpoint)
    assert ours == tensors
    assert [n for n in ours if n != "empty"] == [n for n in tensors if n != "empty"]  # an empty one is at no place
    assert checkpoint.shards[0].metadata == metadata == {"format": "pt", "by": "ü"}


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {'a"\\\n\x01\x7f': "ü\u2028😀"}])
def test_headers_are_those_of_the_reference_writer(metadata: dict[str, str] | None) -> None:
    """header_bytes over storage_order is, byte for byte, what safetensors.torch writes for every dtype."""
    tensors = some_tensors()
    written = save(tensors, metadata)
    theirs = written[: 8 + int.from_bytes(written[:8], "little")]
    names = {dtype: name for name, dtype in TORCH.items()}
    wide = {"F4": 2}  # two elements in one of torch's
    places = []
    for name, tensor in tensors.items():
        dtype = names[tensor.dtype]
        shape = tuple(tensor.shape)
        places.append((name, dtype, (*shape[:-1], shape[-1] * wide.get(dtype, 1)) if shape else ()))
    assert header_bytes(storage_order(places), metadata) == theirs


def test_metadata_is_written_in_order() -> None:
    """Metadata keys are sorted, so that the same tensors give the same bytes (the reference writer's order is random)."""
    header = header_bytes([("w", "F32", (1,))], {"z": "1", "a": "2"})
    text = b'{"__metadata__":{"a":"2","z":"1"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    assert header == (88).to_bytes(8, "little") + text + b" "


# -------------------------------------------------------------------------------------- damaged headers

W = entry()
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ": is too short for a safetensors file\n  found:    0 bytes"),
    "too short": (b"\0" * 7, ": is too short for a safetensors file\n  found:    7 bytes"),
    "no header": (shard_of(b""), ": the header does not begin with '{'\n  found:    b''"),
    "length beyond the file": (
        (100).to_bytes(8, "little") + b"{}",
        ": the header's length can't be right\n  expected: at most 2 bytes\n  found:    100\n"
        "  to do:    download the file again; it may be truncated or no safetensors file",
    ),
    "length of 2^63": (
        (1 << 63).to_bytes(8, "little") + b"{}",
        f": the header's length can't be right\n  expected: at most 2 bytes\n  found:    {1 << 63}\n",
    ),
    "space first": (shard_of(f' {{"w":{W}}}', b"1234"), ": the header does not begin with '{'\n  found:    b' {\"w\""),
    "a list": (shard_of("[]"), ": the header does not begin with '{'\n  found:    b'[]'"),
    "not UTF-8": (shard_of(b'{"\xff":' + W.encode() + b"}", b"1234"), " (header): is not UTF-8 text (byte 2)"),
    "not JSON": (shard_of('{"w":nothing}'), " (header): is not valid JSON: Expecting value"),
    "text after the header": (shard_of(f'{{"w":{W}}}x', b"1234"), " (header): is not valid JSON: Extra data"),
    "NUL as padding": (shard_of("{}\0"), " (header): is not valid JSON: Extra data"),
    "nested too deep": (shard_of('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"), " (header): is not valid JSON: "),
    "number too long": (shard_of(f'{{"w":{"1" * 5000}}}'), " (header): is not valid JSON: Exceeds the limit"),
    "half a surrogate pair": (
        shard_of(f'{{"\\ud800":{W}}}', b"1234"),
        " (header): is not valid JSON: it holds half of a surrogate pair",
    ),
    "a tensor twice": (
        shard_of(f'{{"w":{W},"v":{entry(offsets=[4, 8])},"w":{entry("I32")}}}', b"12345678"),
        " (header): has the key 'w' twice",
    ),
    "a tensor twice, alike": (shard_of(f'{{"w":{W},"w":{W}}}', b"1234"), " (header): has the key 'w' twice"),
    "a tensor twice, one no entry": (shard_of(f'{{"w":5,"w":{W}}}', b"1234"), " (header): has the key 'w' twice"),
    "a tensor twice, one escaped": (
        shard_of(f'{{"w":{W},"\\u0077":{W}}}', b"1234"),
        " (header): has the key 'w' twice",
    ),
    "a field twice": (
        shard_of('{"w":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', b"1234"),
        " (header): has the key 'shape' twice",
    ),
    "a field twice, one escaped": (
        shard_of('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"\\u0064type":"I32"}}', b"1234"),
        " (header): has the key 'dtype' twice",
    ),
    "metadata with a key twice": (
        shard_of(f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{W}}}', b"1234"),
        " (header): has the key 'a' twice",
    ),
    "metadata twice": (
        shard_of(f'{{"__metadata__":{{}},"w":{W},"__metadata__":{{}}}}', b"1234"),
        " (header): has the key '__metadata__' twice",
    ),
    "metadata no object": (
        shard_of(f'{{"__metadata__":[],"w":{W}}}', b"1234"),
        ": '__metadata__' is no valid entry of a header: Expected `object`, got `array`",
    ),
    "metadata no text": (
        shard_of(f'{{"__metadata__":{{"a":1}},"w":{W}}}', b"1234"),
        ": '__metadata__' is no valid entry of a header: Expected `str`, got `int`",
    ),
    "a tensor called as the metadata": (
        shard_of(f'{{"__metadata__":{{}},"__metadata__":{W}}}', b"1234"),
        " (header): has the key '__metadata__' twice",
    ),
    "a side too long to say": (
        shard_of('{"w":{"dtype":"F32","shape":[' + "1" * 5000 + '],"data_offsets":[0,4]}}', b"1234"),
        " (header): is not valid JSON: Exceeds the limit",
    ),
    "no entry": (shard_of('{"w":5}'), ": 'w' is no valid entry of a header: Expected `object`, got `int`"),
    "a field missing": (
        shard_of('{"w":{"dtype":"F32","shape":[1]}}', b"1234"),
        ": 'w' is no valid entry of a header: Object missing required field `data_offsets`",
    ),
    "an unknown field": (
        shard_of('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"scale":1}}', b"1234"),
        ": 'w' is no valid entry of a header: Object contains unknown field `scale`",
    ),
    "three offsets": (
        shard_of(f'{{"w":{entry(offsets=[0, 4, 8])}}}', b"1234"),
        ": 'w' is no valid entry of a header: Expected `array` of length 2, got 3 - at `$.data_offsets`",
    ),
    "shape with a fraction": (
        shard_of(f'{{"w":{entry(shape=[1.0])}}}', b"1234"),
        ": 'w' is no valid entry of a header: Expected `int`, got `float` - at `$.shape[0]`",
    ),
    "shape of truth": (
        shard_of(f'{{"w":{entry(shape=[True])}}}', b"1234"),
        ": 'w' is no valid entry of a header: Expected `int`, got `bool` - at `$.shape[0]`",
    ),
    "offset with an exponent": (
        shard_of('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4e0]}}', b"1234"),
        ": 'w' is no valid entry of a header: Expected `int`, got `float` - at `$.data_offsets[1]`",
    ),
    "offset of minus nothing": (
        shard_of('{"w":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', b"1234"),
        ": 'w' is no valid entry of a header: Expected `int`, got `float` - at `$.data_offsets[0]`",
    ),
    "unknown dtype": (
        shard_of(f'{{"w":{entry("f32")}}}', b"1234"),
        ": 'w' has an unknown dtype\n  found:    f32",
    ),
    "negative shape": (
        shard_of(f'{{"w":{entry(shape=[-1, -1])}}}', b"1234"),
        ": 'w' has an impossible shape or range\n  found:    [-1, -1], [0, 4]",
    ),
    "negative offset": (
        shard_of(f'{{"w":{entry(offsets=[-4, 0])}}}', b"1234"),
        ": 'w' has an impossible shape or range\n  found:    [1], [-4, 0]",
    ),
    "offsets reversed": (
        shard_of(f'{{"w":{entry(offsets=[4, 0])}}}', b"1234"),
        ": 'w' has an impossible shape or range\n  found:    [1], [4, 0]",
    ),
    "offset of 2^64": (
        shard_of(f'{{"w":{entry(offsets=[0, 1 << 64])}}}', b"1234"),
        f": 'w' has an impossible shape or range\n  found:    [1], [0, {1 << 64}]",
    ),
    "a side of 2^64 + 1": (
        shard_of(f'{{"w":{entry(shape=[(1 << 64) + 1])}}}', b"1234"),
        f": 'w' has an impossible shape or range\n  found:    [{(1 << 64) + 1}], [0, 4]",
    ),
    "a product of 2^64 + 4 bytes": (
        shard_of(f'{{"w":{entry("U8", [(1 << 64) // 5 + 1, 5])}}}', b"1234"),
        f": 'w': shape and dtype do not agree with its bytes\n"
        f"  expected: U8 [{(1 << 64) // 5 + 1}, 5]: too large or no whole bytes\n  found:    4 bytes",
    ),
    "a product that overflows before its 0": (
        shard_of(f'{{"w":{entry(shape=[1 << 40, 1 << 40, 0], offsets=[0, 0])}}}'),
        f": 'w': shape and dtype do not agree with its bytes\n"
        f"  expected: F32 [{1 << 40}, {1 << 40}, 0]: too large or no whole bytes\n  found:    0 bytes",
    ),
    "more bytes than the shape": (
        shard_of(f'{{"w":{entry(shape=[3], offsets=[0, 16])}}}', b"0" * 16),
        ": 'w': shape and dtype do not agree with its bytes\n  expected: F32 [3]: 12\n  found:    16 bytes",
    ),
    "fewer bytes than the shape": (
        shard_of(f'{{"w":{entry(shape=[2, 2], offsets=[0, 12])}}}', b"0" * 12),
        ": 'w': shape and dtype do not agree with its bytes\n  expected: F32 [2, 2]: 16\n  found:    12 bytes",
    ),
    "half a byte": (
        shard_of(f'{{"w":{entry("F4", [3], [0, 2])}}}', b"12"),
        ": 'w': shape and dtype do not agree with its bytes\n"
        "  expected: F4 [3]: too large or no whole bytes\n  found:    2 bytes",
    ),
    "three quarters of a byte": (
        shard_of(f'{{"w":{entry("F6_E2M3", [5], [0, 4])}}}', b"1234"),
        ": 'w': shape and dtype do not agree with its bytes\n"
        "  expected: F6_E2M3 [5]: too large or no whole bytes\n  found:    4 bytes",
    ),
    "a gap": (
        shard_of(f'{{"v":{entry()},"w":{entry(offsets=[5, 9])}}}', b"123456789"),
        ": the bytes of 'w' do not follow those of the tensor before it\n"
        "  expected: data_offsets from 4\n  found:    from 5",
    ),
    "a gap before the first": (
        shard_of(f'{{"w":{entry(offsets=[4, 8])}}}', b"12345678"),
        ": the bytes of 'w' do not follow those of the tensor before it\n"
        "  expected: data_offsets from 0\n  found:    from 4",
    ),
    "an overlap": (
        shard_of(f'{{"v":{entry()},"w":{entry(offsets=[2, 6])}}}', b"123456"),
        ": the bytes of 'w' do not follow those of the tensor before it\n"
        "  expected: data_offsets from 4\n  found:    from 2",
    ),
    "two tensors of the same bytes": (
        shard_of(f'{{"v":{entry()},"w":{entry()}}}', b"1234"),
        ": the bytes of 'w' do not follow those of the tensor before it\n"
        "  expected: data_offsets from 4\n  found:    from 0",
    ),
    "bytes after the last tensor": (
        shard_of(f'{{"w":{W}}}', b"12345"),
        ": bytes follow the last tensor\n  expected: 66 bytes in all\n  found:    67\n  to do:    download the file again",
    ),
    "truncated": (
        shard_of(f'{{"w":{W}}}', b"123"),
        ": the file is truncated\n  expected: 66 bytes in all\n  found:    65\n  to do:    download the file again",
    ),
    "truncated to its header": (
        shard_of(f'{{"w":{W}}}'),
        ": the file is truncated\n  expected: 66 bytes in all\n  found:    62\n  to do:    download the file again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, damage: str) -> None:
    """Each kind of damage has its message: the file, what is wrong, what was expected and found."""
    content, message = DAMAGE[damage]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    said = message_of(file)
    assert said.startswith(f"{file}{message}")
    assert message_of(tmp_path) == said, "the same file in a folder"


def test_a_header_longer_than_the_reference_reads_is_refused(tmp_path: Path) -> None:
    """A length above 100 MB is refused even if the file is that long: nothing is allocated for it."""
    file = tmp_path / "model.safetensors"
    with file.open("wb") as f:
        f.write((100_000_001).to_bytes(8, "little"))
        f.truncate(200_000_000)  # a hole, no bytes on the disk
    assert "expected: at most 100000000 bytes\n  found:    100000001" in message_of(file)


def test_a_name_from_a_file_cannot_draw_on_the_terminal(tmp_path: Path) -> None:
    """A tensor's name with escape sequences or line ends is shown escaped."""
    file = tmp_path / "model.safetensors"
    hostile = json.dumps({"\x1b[2J\n  to do: trust me": json.loads(entry("\x1b[31mF32\n"))})
    file.write_bytes(shard_of(hostile, b"1234"))
    said = message_of(file)
    assert "\x1b" not in said
    assert said.count("\n") == 1
    assert "'\\x1b[2J\\n  to do: trust me' has an unknown dtype\n  found:    \\x1b[31mF32\\n" in said


# ------------------------------------------------------------------------------------- damaged folders


def folder(root: Path, shards: Mapping[str, Sequence[str]], weight_map: Any) -> Path:
    """Files with tensors of these names, and an index with this weight_map; None for no index."""
    for file, names in shards.items():
        synthetic.write_shard(root / file, {name: np.zeros(2, np.float32) for name in names})
    if weight_map is not None:
        (root / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return root


A, B = "a.safetensors", "b.safetensors"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks is refused by its path."""
    folder(tmp_path, {A: ["v"]}, {"v": A, "w": B})
    assert message_of(tmp_path) == f"{tmp_path / B}: can't be opened: No such file or directory"


def test_a_dangling_link_in_place_of_a_shard_is_named(tmp_path: Path) -> None:
    """A link to a blob that is gone is a missing file, weights or not."""
    folder(tmp_path, {A: ["v"]}, {"v": A, "w": B})
    (tmp_path / B).symlink_to("gone")
    assert message_of(tmp_path).startswith(f"{tmp_path / B}: is a link that leads nowhere")


def test_a_tensor_that_only_the_index_has_is_named(tmp_path: Path) -> None:
    """A tensor that the index promises and its shard lacks is refused, with the count of such tensors."""
    folder(tmp_path, {A: ["v"], B: ["w"]}, {"v": A, "w": B, "x": B, "y": A})
    assert message_of(tmp_path) == (
        f"{tmp_path / INDEX}: the index names 2 tensors that are not there\n"
        f"  expected: 'x' in {B}\n  found:    no such tensor in that file"
    )


def test_a_tensor_that_only_a_shard_has_is_named(tmp_path: Path) -> None:
    """A shard's tensor that the index does not name is refused: it would be lost or come from nowhere."""
    folder(tmp_path, {A: ["v", "x"], B: ["w"]}, {"v": A, "w": B})
    assert message_of(tmp_path) == (
        f"{tmp_path / A}: the tensor 'x' is not where the index says\n"
        f"  expected: not in any file (it is not in the index)\n  found:    {A}"
    )


def test_a_tensor_in_another_shard_is_named(tmp_path: Path) -> None:
    """A tensor in another shard than the index says is refused."""
    folder(tmp_path, {A: ["v", "w"], B: ["x"]}, {"v": A, "w": B, "x": B})
    assert message_of(tmp_path) == (
        f"{tmp_path / A}: the tensor 'w' is not where the index says\n  expected: {B}\n  found:    {A}"
    )


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    """A tensor that two shards hold is refused: readers would disagree on which one counts."""
    folder(tmp_path, {A: ["v"], B: ["v", "w"]}, {"v": A, "w": B})
    assert message_of(tmp_path) == f"{tmp_path}: the tensor 'v' is in two shards\n  found:    {A}, {B}"


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..",
        ".",
        "",
        "..safetensors",
        ".safetensors",
        ".hidden.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "a.safetensors/",
        "a.safetensors\n",
        "a.bin",
        "a.safetensors.index.json",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_a_shard_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: object) -> None:
    """The index can't make us read, or by the same layout write, outside the folder."""
    folder(tmp_path, {A: ["v"]}, {"v": A, "w": name})
    assert message_of(tmp_path) == (
        f"{tmp_path / INDEX}: 'w' is not in a plain file name\n  expected: NAME.safetensors\n  found:    {name!r}"
    )


@pytest.mark.parametrize("content", ['{"metadata":{}}', '{"weight_map":{}}', '{"weight_map":[["v","a"]]}', "{}"])
def test_an_index_without_a_weight_map_is_refused(tmp_path: Path, content: str) -> None:
    """A weight_map that is missing, empty or no object is refused."""
    folder(tmp_path, {A: ["v"]}, None)
    (tmp_path / INDEX).write_text(content)
    assert message_of(tmp_path) == (
        f'{tmp_path / INDEX}: has no weight_map\n  expected: {{"weight_map": {{tensor: file, ...}}}}'
    )


@pytest.mark.parametrize("indent", [None, 2])
def test_an_index_with_a_tensor_twice_is_refused(tmp_path: Path, indent: int | None) -> None:
    """A tensor that the index gives two places is refused, however the index is written."""
    folder(tmp_path, {A: ["v"], B: ["w"]}, None)
    text = json.dumps({"weight_map": {"v": A, "w": B, "twice": B}}, indent=indent)
    (tmp_path / INDEX).write_text(text.replace("twice", "v"))
    assert message_of(tmp_path) == f"{tmp_path / INDEX}: has the key 'v' twice"


def test_several_weight_files_need_an_index(tmp_path: Path) -> None:
    """Shards without their index may be a part of a download, so they are refused."""
    folder(tmp_path, {f"model-{i}.safetensors": [f"v{i}"] for i in range(4)}, None)
    assert message_of(tmp_path) == (
        f"{tmp_path}: holds several weight files but no index\n"
        "  expected: model.safetensors.index.json with its shards, or one *.safetensors file\n"
        "  found:    model-0.safetensors, model-1.safetensors, model-2.safetensors ...\n"
        "  to do:    download the whole checkpoint"
    )


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """A folder that holds no weight file is no checkpoint."""
    (tmp_path / "config.json").write_text("{}")
    assert message_of(tmp_path).startswith(f"{tmp_path}: holds no safetensors checkpoint\n")


def test_a_path_to_nothing_is_refused(tmp_path: Path) -> None:
    """A path where nothing is, is said so."""
    assert message_of(tmp_path / "none") == f"{tmp_path / 'none'}: there is no such file or folder"


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,}', "is not valid JSON: "),
        (b"", "is not valid JSON: "),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        (b"[1]", "must hold a JSON object\n  found:    list"),
        (b"null", "must hold a JSON object\n  found:    NoneType"),
        (b'{"a": "\xff"}', "is not UTF-8 text (byte 7)"),
        (b'{"a": ["\\uDC00"]}', "is not valid JSON: it holds half of a surrogate pair"),
        (b"[" * 100_000, "is not valid JSON: "),
    ],
)
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes, message: str, in_folder: bool) -> None:
    """config.json must be an object of JSON without any key twice."""
    folder(tmp_path, {A: ["v"]}, None)
    (tmp_path / "config.json").write_bytes(content)
    assert message_of(tmp_path if in_folder else tmp_path / A).startswith(f"{tmp_path / 'config.json'}: {message}")


# -------------------------------------------------------------------------------------- unreadable files


@pytest.mark.parametrize("name", [A, "config.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_place_of_a_file_is_refused(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    """A folder or a pipe in place of a file is refused; a pipe is not waited for."""
    folder(tmp_path, {B: ["v"]}, {"v": B} if name != A else {"v": A})
    make(tmp_path / name)
    assert message_of(tmp_path) == f"{tmp_path / name}: is not a regular file"


def test_a_file_that_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without read permission is refused by name."""
    folder(tmp_path, {A: ["v"]}, None)
    real = os.open

    def denying(path: Path, *arguments: Any) -> int:
        if Path(path).name == A:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", denying)
    assert message_of(tmp_path) == f"{tmp_path / A}: can't be opened: Permission denied"


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose files may not be looked at is refused by name."""
    real = os.stat

    def denying(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(INDEX):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", denying)
    assert message_of(tmp_path) == f"{tmp_path / INDEX}: can't be read: Permission denied"


HINT = "  to do:    check the disk, get the file again, and run the same command again"


def test_a_disk_error_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails names the file and the byte."""
    folder(tmp_path, {A: ["v"]}, None)

    def failing(fd: int, buffers: object, start: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    assert message_of(tmp_path) == f"{tmp_path / A}: can't be read at byte 0: Input/output error\n{HINT}"


def test_gguf_is_read_as_what_it_is(tmp_path: Path) -> None:
    """A GGUF file is no broken safetensors, whether it or its folder is given."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "m.gguf"):
        assert message_of(path).startswith(f"{tmp_path / 'm.gguf'}: ends within its header")


# ------------------------------------------------------------------------------------------ random files

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 3), max_size=3)


@st.composite
def valid(draw: st.DrawFn) -> tuple[list[tuple[str, str, tuple[int, ...]]], dict[str, str] | None]:
    """(name, dtype, shape) of some tensors, and metadata."""
    found = []
    for name in draw(st.lists(names, max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(shapes)
        found.append((name, dtype, tuple(shape) if BITS[dtype] % 8 == 0 else (*shape, 4)))
    return found, draw(st.none() | st.dictionaries(names, names, max_size=2))


def data_nbytes(places: Sequence[tuple[str, str, tuple[int, ...]]]) -> int:
    """Bytes of all tensors."""
    return sum(int(np.prod(shape, dtype=int)) * BITS[dtype] // 8 for _, dtype, shape in places)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where random files are written, one after the other."""
    return tmp_path_factory.mktemp("random") / "model.safetensors"


@settings(max_examples=examples(quick=150, ci=600, prove=20_000))
@given(valid(), st.randoms(use_true_random=False), st.booleans())
def test_whatever_is_written_is_read(file: Path, content: Any, random: Any, is_sorted: bool) -> None:
    """Random tensors with our header are read alike by us and by the reference, as what they were."""
    places, metadata = content
    ordered = storage_order(places) if is_sorted else places
    data = random.randbytes(data_nbytes(places))
    file.write_bytes(header_bytes(ordered, metadata) + data)
    checkpoint = open_checkpoint(file)
    ours = seen_by_us(checkpoint)
    assert (ours, checkpoint.shards[0].metadata) == seen_by_reference(file)
    assert {(name, dtype, shape) for name, (dtype, shape, _) in ours.items()} == set(places)
    assert b"".join(raw for name, _, _ in ordered for raw in [ours[name][2]]) == data


NUMBERS = [b"0", b"1", b"2", b"4", b"8", b"-1", b"-0", b"1.0", b"1e0", b"01", b"true", b"null", b'"1"', b"[]", b"9" * 20,
           b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616"]  # fmt: skip
PIECES = [b'"', b",", b"{", b"}", b"[", b"]", b":", b" ", b"\\", b"\\u0061", b"\\ud800", b"\0", b"\xff", b"\xc3\xa9", b"0",
          b'"a":{},', b'"a":null,', b'"x":1,', b',"__metadata__":{}', b',"dtype":"I8"', b'"F4"', b"NaN"]  # fmt: skip


def damaged(text: bytes, choose: Callable[[str, Any], Any]) -> bytes:
    """The text with one random change."""
    kind = choose("kind", st.sampled_from(["flip", "insert", "delete", "number", "repeat", "word"]))
    at = choose("at", st.integers(0, max(0, len(text) - 1)))
    if kind == "flip":
        return text[:at] + bytes([choose("byte", st.integers(0, 255))]) + text[at + 1 :]
    if kind == "insert":
        return text[:at] + bytes(choose("piece", st.sampled_from(PIECES))) + text[at:]
    length = choose("length", st.integers(1, 60))
    if kind == "delete":
        return text[:at] + text[at + length :]
    if kind == "repeat":
        to = choose("to", st.integers(0, len(text)))
        return text[:to] + text[at : at + length] + text[to:]
    pattern, words = (rb"\d+", NUMBERS) if kind == "number" else (rb'"[^"]*"', PIECES)
    found = list(re.finditer(pattern, text))
    if not found:
        return text
    match: re.Match[bytes] = choose("match", st.sampled_from(found))
    new = bytes(choose("new", st.sampled_from([*words, *(m.group() for m in found)])))
    return text[: match.start()] + new + text[match.end() :]


# ---------------------------------------------------------------------------- texts that are read quickly

READER = "chimerakit.formats.safetensors"


def told(header: bytes, nbytes: int) -> Any:
    """What a header says, or why it is refused."""
    try:
        return parse_header(header, "model.safetensors", nbytes, "here")
    except CheckpointError as e:
        return str(e)


def told_without_haste(header: bytes, nbytes: int) -> Any:
    """The same by the strict way alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{READER}._decode_written", lambda text: None)
        return told(header, nbytes)


@given(st.lists(st.tuples(st.sampled_from(["v", "w", "é", "__metadata__"]), st.integers(0, 2)), max_size=4))
def test_a_key_that_comes_twice_is_never_read_quickly(keys: list[tuple[str, int]]) -> None:
    """A header in the writer's spelling with the same key in two places is refused as the strict way refuses it."""
    pieces, end = [], 0
    for key, what in keys:
        value = ('{"format":"pt"}', '{"a":"1","a":"2"}', entry(offsets=[end, end + 4]))[what]
        end += 4 if what == 2 else 0
        pieces.append(f'"{key}":{value}')
    header = shard_of("{" + ",".join(pieces) + "}")
    assert told(header, end) == told_without_haste(header, end)
    assert len({key for key, _ in keys}) == len(keys) or " twice" in told(header, end)


@settings(max_examples=examples(quick=200, ci=1000, prove=10_000))
@given(valid(), st.data())
def test_how_a_header_is_spelled_does_not_matter(content: Any, data: st.DataObject) -> None:
    """A header in the writer's spelling, in another one or damaged: whatever is read quickly is what is read strictly."""
    places, metadata = content
    text = header_bytes(places, metadata)[8:]
    if data.draw(st.booleans(), label="respelled"):
        text = json.dumps(json.loads(text), indent=data.draw(st.none() | st.integers(0, 2))).encode()
    for _ in range(data.draw(st.integers(0, 2), label="damages")):
        text = damaged(text, lambda label, strategy: data.draw(strategy, label=label))
    header = shard_of(text)
    assert told(header, data_nbytes(places)) == told_without_haste(header, data_nbytes(places))


def test_what_writers_write_is_read_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers of the reference writer and of ours, and an index as every library writes it, need no strict parsing."""
    tensors = {"w": torch.zeros(2, 3), 'ü"\\\n/\x7f\u2028😀': torch.zeros(0), "v": torch.zeros(())}
    save_file(tensors, tmp_path / A, {"format": "pt"})
    (tmp_path / B).write_bytes(header_bytes([("x", "F4", (2, 2))], None) + b"12")
    index = {"metadata": {"total_size": 30}, "weight_map": {**dict.fromkeys(tensors, A), "x": B}}
    (tmp_path / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")

    def fail(*arguments: Any) -> None:
        raise AssertionError(f"read strictly: {arguments}")

    monkeypatch.setattr(f"{READER}.parse_json", fail)
    monkeypatch.setattr("chimerakit.formats.strict_json.parse_json", fail)
    assert open_checkpoint(tmp_path).tensors.keys() == {*tensors, "x"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)


@given(values, st.sampled_from(["", "\n", "\n\n", " ", "\x0b"]), st.booleans())
def test_an_indented_text_says_what_any_parser_reads(file: Path, value: Any, ending: str, is_ascii: bool) -> None:
    """A config, indented as writers do it, is what the standard library reads; what follows it is white space."""
    weights, config = file.parent / "indented" / A, file.parent / "indented" / "config.json"
    config.parent.mkdir(exist_ok=True)
    weights.write_bytes(header_bytes([], None))
    config.write_text(text := json.dumps({"c": value}, indent=2, ensure_ascii=is_ascii) + ending)
    if ending == "\x0b":
        assert message_of(weights).startswith(f"{config}: is not valid JSON: Extra data")
    else:
        assert repr(open_checkpoint(weights).config) == repr(json.loads(text))


def test_one_shard_is_no_checkpoint(tmp_path: Path) -> None:
    """A shard that an index beside it names is refused: two thirds of the model would be missing."""
    root = synthetic.make(tmp_path / "v3", 1, shards=3)
    with pytest.raises(CheckpointError, match=r"is one shard of a checkpoint(?s:.*)give the folder"):
        open_checkpoint(root / "model-00001-of-000003.safetensors")


@pytest.mark.parametrize("name", ["model.bin", ".hidden.safetensors", "model"])
def test_a_file_of_another_name_is_no_weight_file(tmp_path: Path, name: str) -> None:
    """A child of it would have a weight file that no loader finds."""
    synthetic.write_shard(tmp_path / name, {"w": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match="is no weight file that can be read"):
        open_checkpoint(tmp_path / name)


def test_links_are_never_passed_by_silently(tmp_path: Path) -> None:
    """A link that leads nowhere is an error; a linked folder is listed as left out."""
    root = synthetic.make(tmp_path / "v3", 1)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text("")
    (root / "code").symlink_to(tmp_path / "code")
    assert open_checkpoint(root).left_out == ("code/",)
    (root / "vocab.json").symlink_to("gone")
    with pytest.raises(CheckpointError, match=r"vocab\.json: is a link that leads nowhere"):
        open_checkpoint(root)


def test_a_folder_with_a_lone_shard_is_no_checkpoint(tmp_path: Path) -> None:
    """One of three shards without an index is a download that broke off, not a model; one of one is whole."""
    synthetic.write_shard(tmp_path / "model-00001-of-000003.safetensors", {"w": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match="holds one of 3 shards and no index"):
        open_checkpoint(tmp_path)
    (tmp_path / "model-00001-of-000003.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == {"w"}
