"""GGUF headers, held against gguf-py: what it writes is read as it reads it, and what is wrong is refused by name."""

import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chimerakit.anatomy import Anatomy
from chimerakit.dtypes import GGML_TYPES
from chimerakit.errors import CheckpointError
from chimerakit.formats import open_checkpoint
from chimerakit.records import Checkpoint
from tests import gguf_files
from tests.effort import examples

NUMBERS = {
    GGUFValueType.UINT8: (0, 2**8 - 1),
    GGUFValueType.INT8: (-(2**7), 2**7 - 1),
    GGUFValueType.UINT16: (0, 2**16 - 1),
    GGUFValueType.INT16: (-(2**15), 2**15 - 1),
    GGUFValueType.UINT32: (0, 2**32 - 1),
    GGUFValueType.INT32: (-(2**31), 2**31 - 1),
    GGUFValueType.UINT64: (0, 2**64 - 1),
    GGUFValueType.INT64: (-(2**63), 2**63 - 1),
}


def stored(checkpoint: Checkpoint, name: str) -> bytes:
    """A tensor's bytes."""
    tensor = checkpoint.tensors[name]
    with Path(checkpoint.root, tensor.file).open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.nbytes)


def check_tensors(path: Path, checkpoint: Checkpoint) -> None:
    """Every tensor, and every expert of a stack, has the bytes that gguf-py finds."""
    named = set()
    for tensor in GGUFReader(path).tensors:
        shape = tuple(int(side) for side in tensor.shape[::-1])
        if tensor.name in checkpoint.tensors:
            mine = checkpoint.tensors[tensor.name]
            assert (mine.dtype, mine.shape) == (tensor.tensor_type.name, shape)
            assert stored(checkpoint, tensor.name) == tensor.data.tobytes()
            named.add(tensor.name)
        else:
            for expert in range(shape[0]):
                name = f"{tensor.name}[{expert}]"
                assert (checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) == (
                    tensor.tensor_type.name,
                    shape[1:],
                )
                assert stored(checkpoint, name) == tensor.data[expert].tobytes()
                named.add(name)
    assert named == set(checkpoint.tensors)


# ------------------------------------------------------------------------------------------- what is read


def test_a_model_is_read_as_gguf_py_reads_it(tmp_path: Path) -> None:
    """Names, types, shapes and bytes; experts that are stacked in one tensor are one record each."""
    path = gguf_files.make(tmp_path / "m.gguf", 1, types={"ffn_down": "Q6_K", "exps": "Q4_K"})
    found = open_checkpoint(path)
    check_tensors(path, found)
    assert sum(name.endswith("]") for name in found.tensors) == 2 * 3 * gguf_files.EXPERTS
    assert found.config["deepseek2.expert_count"] == gguf_files.EXPERTS
    assert (found.format, found.model_type, found.is_folder) == ("gguf", "deepseek2", False)


def names(prefix: str) -> st.SearchStrategy[str]:
    """Keys and names that gguf-py writes."""
    return st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(
        lambda t: f"{prefix}{t}"
    )


numbers = st.sampled_from(list(NUMBERS)).flatmap(
    lambda kind: st.integers(*NUMBERS[kind]).map(lambda number: (number, kind))
)
lists = st.sampled_from(list(NUMBERS)).flatmap(
    lambda kind: st.lists(st.integers(*NUMBERS[kind]), min_size=1, max_size=80).map(lambda found: (found, kind))
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.one_of(
    numbers, lists, st.booleans(), st.floats(width=32, allow_nan=False), texts, st.lists(texts, min_size=1, max_size=80)
)
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@settings(
    max_examples=examples(quick=40, ci=150, prove=2000), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    keys=st.dictionaries(names("k."), values, max_size=6),
    tensors=st.dictionaries(names("t."), st.tuples(st.sampled_from(sorted(GGML_TYPES)), shapes), max_size=6),
    alignment=st.sampled_from([None, 1, 8, 64, 256]),
)
def test_any_file_is_read_as_gguf_py_reads_it(
    keys: dict[str, Any], tensors: dict[str, Any], alignment: int | None, tmp_path: Path
) -> None:
    """Any keys and tensors of the types that it knows, at any alignment."""
    known = set(GGMLQuantizationType.__members__) - {"Q8_1"}  # of which it has other bytes than llama.cpp
    whole = {
        name: (dtype, (*shape, GGML_TYPES[dtype].weights)) for name, (dtype, shape) in tensors.items() if dtype in known
    }
    path = gguf_files.write(tmp_path / "m.gguf", whole, keys, alignment=alignment)
    found = open_checkpoint(path)
    check_tensors(path, found)
    for key, field in GGUFReader(path).fields.items():
        if not key.startswith("GGUF."):
            content, mine = field.contents(), found.config[key]
            assert mine == content or (mine["length"] == len(content) > 64)
    data = path.read_bytes()
    assert all(struct.pack("<Q", len(f.key.encode())) == data[f.start : f.start + 8] for f in found.fields)
    assert found.shards[0].header_nbytes == min((t.start for t in found.tensors.values()), default=found.nbytes)


def test_the_types_are_those_of_gguf_py() -> None:
    """Numbers, weights and bytes; of Q8_1, which no file has, gguf-py's bytes are those of an older llama.cpp."""
    mine = {name: kind for name, kind in GGML_TYPES.items() if name in GGMLQuantizationType.__members__}
    assert set(mine) == set(GGMLQuantizationType.__members__)
    for name, kind in mine.items():
        assert kind.id == GGMLQuantizationType[name]
        assert (kind.weights, kind.nbytes) == GGML_QUANT_SIZES[GGMLQuantizationType[name]] or name == "Q8_1"
    assert len({kind.id for kind in GGML_TYPES.values()}) == len(GGML_TYPES)


def test_a_split_model_is_the_whole_one(tmp_path: Path) -> None:
    """Parts are opened by the first of them, or by their folder; split keys are no part of the model."""
    whole = gguf_files.make(tmp_path / "whole.gguf", 1)
    folder = tmp_path / "split"
    folder.mkdir()
    gguf_files.make(folder / "m.gguf", 1, split_max_tensors=20)
    first = next(iter(sorted(folder.iterdir())))
    expected = open_checkpoint(whole)
    for path in (first, folder):
        found = open_checkpoint(path)
        assert len(found.shards) == len(list(folder.iterdir())) > 1
        assert found.config == expected.config
        assert {n: (t.dtype, t.shape) for n, t in found.tensors.items()} == {
            n: (t.dtype, t.shape) for n, t in expected.tensors.items()
        }
        assert all(stored(found, name) == stored(expected, name) for name in found.tensors)


def test_a_large_vocabulary_is_no_list_of_objects(tmp_path: Path) -> None:
    """130,000 tokens are kept as what identifies them."""
    tokens = [f"a token of some length {number}" for number in range(130_000)]
    path = gguf_files.write(tmp_path / "m.gguf", {}, gguf_files.keys_of() | {"tokenizer.ggml.tokens": tokens})
    tracemalloc.start()
    found = open_checkpoint(path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.config["tokenizer.ggml.tokens"]["length"] == len(tokens)
    assert kept < 1 << 20
    changed = gguf_files.write(
        tmp_path / "n.gguf", {}, gguf_files.keys_of() | {"tokenizer.ggml.tokens": [*tokens[:-1], "!"]}
    )
    assert open_checkpoint(changed).config["tokenizer.ggml.tokens"] != found.config["tokenizer.ggml.tokens"]


def test_old_files_are_read(tmp_path: Path) -> None:
    """Version 2 differs from version 3 in its number only."""
    path = gguf_files.make(tmp_path / "m.gguf", 1)
    expected = open_checkpoint(path)
    patch(path, 4, struct.pack("<I", 2))
    assert open_checkpoint(path).tensors == expected.tensors


def test_a_folder_with_other_files_is_a_model_with_these(tmp_path: Path) -> None:
    """A licence goes along; weights in other formats are left out, and said to be."""
    gguf_files.make(tmp_path / "m.gguf", 1)
    for name in ("LICENSE", "README.md", "x.bin"):
        (tmp_path / name).write_text(name)
    found = open_checkpoint(tmp_path)
    assert [file.name for file in found.files] == ["LICENSE"]
    assert found.left_out == ("x.bin",)


# ---------------------------------------------------------------------------------------- what is refused


def patch(path: Path, at: int, data: bytes) -> None:
    """Other bytes in a file."""
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def message_of(path: Path) -> str:
    """What opening refuses a file with."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def string(text: bytes) -> bytes:
    """A text as a file holds it."""
    return struct.pack("<Q", len(text)) + text


def by_hand(
    path: Path, keys: list[bytes], infos: list[bytes], data: bytes = b"", counts: tuple[int, int] | None = None
) -> Path:
    """A file of these keys and infos, each as bytes."""
    num_tensors, num_keys = counts or (len(infos), len(keys) + 1)
    architecture = string(b"general.architecture") + struct.pack("<I", 8) + string(b"deepseek2")
    header = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + architecture + b"".join((*keys, *infos))
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def info(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """Where a tensor lies, as a header says it."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


KEY = string(b"k") + struct.pack("<I", 4) + struct.pack("<I", 1)
WRONG: dict[str, tuple[list[bytes], list[bytes], bytes]] = {
    "has the key 'k' twice": ([KEY, KEY], [], b""),
    "has a key without a name": ([string(b"") + KEY[9:]], [], b""),
    "a key is not UTF-8": ([string(b"\xff") + KEY[9:]], [], b""),
    "'k' is not UTF-8 text": ([string(b"k") + struct.pack("<I", 8) + string(b"\xe4")], [], b""),
    "a text of 'k' is not UTF-8": (
        [string(b"k") + struct.pack("<IIQ", 9, 8, 2) + string(b"\xc3") + string(b"\xa4")], [], b"",
    ),
    "'k' has an unknown type": ([string(b"k") + struct.pack("<I", 13)], [], b""),
    "'k' is a list of what can't be read": ([string(b"k") + struct.pack("<IIQ", 9, 9, 1)], [], b""),
    "'k' is neither true nor false": ([string(b"k") + struct.pack("<IB", 7, 2)], [], b""),
    "general.alignment can't be right": ([string(b"general.alignment") + struct.pack("<II", 4, 24)], [], b""),
    "the tensor 'a' is there twice": ([], [info(b"a", [8]), info(b"a", [8], 0, 32)], bytes(64)),
    "a tensor's name is not UTF-8": ([], [info(b"\xff", [8])], bytes(32)),
    "'a' has too many dimensions": ([], [info(b"a", [1, 1, 1, 1, 1])], bytes(32)),
    "'a' has a type that is not known": ([], [info(b"a", [8], 137)], bytes(32)),
    "'a' has an impossible shape": ([], [info(b"a", [33], 8)], bytes(64)),
    "the bytes of 'b' do not follow": ([], [info(b"a", [16]), info(b"b", [8], 0, 32)], bytes(96)),
    "the file is truncated": ([], [info(b"a", [16])], bytes(32)),
    "bytes follow the last tensor": ([], [info(b"a", [8])], bytes(96)),
}  # fmt: skip


@pytest.mark.parametrize("says", WRONG)
def test_what_is_wrong_is_named(says: str, tmp_path: Path) -> None:
    """One error, with the file and the key or tensor."""
    keys, infos, data = WRONG[says]
    message = message_of(by_hand(tmp_path / "m.gguf", keys, infos, data))
    assert message.startswith(f"{tmp_path / 'm.gguf'}: {says}")


@pytest.mark.parametrize("dims", [[2**63], [2**32, 2**32], [2**64 - 1, 2**64 - 1, 3]])
def test_shapes_that_no_file_has_are_refused(dims: list[int], tmp_path: Path) -> None:
    """However large they say that they are."""
    assert "has an impossible shape" in message_of(by_hand(tmp_path / "m.gguf", [], [info(b"a", dims)], bytes(32)))


@pytest.mark.parametrize("counts", [(2**63, 1), (1, 2**63), (2**40, 2**40)])
def test_counts_that_lie_cost_nothing(counts: tuple[int, int], tmp_path: Path) -> None:
    """No memory and no time go into what the file can't hold."""
    path = by_hand(tmp_path / "m.gguf", [], [], counts=counts)
    tracemalloc.start()
    assert "counts can't be right" in message_of(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "key",
    [
        string(b"k") + struct.pack("<IIQ", 9, 8, 2**60),
        string(b"k") + struct.pack("<IIQ", 9, 12, 2**61),
        string(b"k") + struct.pack("<IQ", 8, 2**63),
        struct.pack("<Q", 2**64 - 1) + b"k",
    ],
)
def test_lengths_that_lie_cost_nothing(key: bytes, tmp_path: Path) -> None:
    """A list or text that is longer than the file ends it too early."""
    path = by_hand(tmp_path / "m.gguf", [key], [])
    tracemalloc.start()
    assert "ends within its header" in message_of(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_stack_of_more_experts_than_a_file_may_hold_is_refused(tmp_path: Path) -> None:
    """Slices are records; a small file can't make millions of them."""
    experts = string(b"deepseek2.expert_count") + struct.pack("<II", 4, 200_000)
    stack = info(b"blk.0.ffn_up_exps.weight", [1, 200_000], 24)
    path = by_hand(tmp_path / "m.gguf", [experts], [stack], bytes(200_000))
    assert "the header holds too much" in message_of(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Cut anywhere, in its header or in its weights, a file is never opened."""
    path = gguf_files.write(tmp_path / "m.gguf", {"a": ("Q8_0", (2, 32)), "b": ("F32", (3,))})
    data = path.read_bytes()
    last = open_checkpoint(path).tensors["b"]
    for nbytes in range(last.start + last.nbytes):
        path.write_bytes(data[:nbytes])
        message_of(path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: patch(path, 0, b"GGML"), "is no GGUF file"),
        (lambda path: patch(path, 4, struct.pack("<I", 1)), "is a GGUF file of a version that can't be read"),
        (lambda path: patch(path, 4, struct.pack("<I", 9)), "is a GGUF file of a version that can't be read"),
        (lambda path: gguf_files.make(path, 1, endian=GGUFEndian.BIG), "is a big-endian GGUF file"),
        (lambda path: path.write_bytes(b""), "ends within its header"),
        (lambda path: path.unlink(), "there is no such file or folder"),
        (lambda path: gguf_files.write(path, {}, {"general.type": "imatrix"}), "holds no language model"),
    ],
)
def test_a_file_that_is_no_model_is_named(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    """Other formats, versions and byte orders, and files that hold something else."""
    path = gguf_files.make(tmp_path / "m.gguf", 1)
    spoil(path)
    assert message_of(path).startswith(f"{path}: {says}")


def split(folder: Path, seed: int = 1, **options: Any) -> list[Path]:
    """A model in some parts."""
    folder.mkdir()
    gguf_files.make(folder / "m.gguf", seed, split_max_tensors=20, **options)
    return sorted(folder.iterdir())


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    """Whether the folder or the first file is given; and a later part alone is no model."""
    parts = split(tmp_path / "m")
    parts[1].unlink()
    for path in (tmp_path / "m", parts[0]):
        assert f"1 of them are missing\n  expected: {parts[1]}" in message_of(path)
    assert "is one part of a model" in message_of(parts[2])


def test_a_part_that_is_another_one_is_named(tmp_path: Path) -> None:
    """Renamed, it would be a broken model."""
    first, second, third, *_ = split(tmp_path / "m")
    shutil.copy(third, second)
    message = message_of(first)
    assert message.startswith(f"{second}: is not the part of a model that its name says")
    assert "expected: split.no 1" in message


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    """Of one that is cut elsewhere: tensors are there twice, or not at all."""
    parts = split(tmp_path / "m")
    (tmp_path / "n").mkdir()
    gguf_files.make(tmp_path / "n" / "m.gguf", 2, split_max_tensors=20, mtp=True)
    others = sorted((tmp_path / "n").iterdir())
    assert len(others) != len(parts)
    renamed = [other.rename(other.with_name(part.name)) for other, part in zip(others, parts, strict=False)]
    shutil.copy(renamed[1], parts[1])
    assert "is not the part of a model that its name says" in message_of(parts[0])


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    """Which of them is meant, only the user knows."""
    for name in ("a.gguf", "b.gguf"):
        gguf_files.make(tmp_path / name, 1)
    assert message_of(tmp_path) == (
        f"{tmp_path}: holds several GGUF models\n  found:    a.gguf, b.gguf\n  to do:    give the file that is meant"
    )


def test_a_number_of_layers_that_is_none_is_named_with_its_file(tmp_path: Path) -> None:
    """Parents may lie in one folder."""
    path = gguf_files.write(tmp_path / "m.gguf", {}, gguf_files.keys_of() | {"deepseek2.block_count": "three"})
    with pytest.raises(CheckpointError, match=r"m\.gguf: the header: deepseek2\.block_count must be a whole number"):
        Anatomy(open_checkpoint(path))
