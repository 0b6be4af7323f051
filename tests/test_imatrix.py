"""Importance matrices of children: whose activations each tensor sees, entry by entry; read by gguf-py."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from chimerakit.cli.app import app
from chimerakit.errors import CheckpointError, PlanError
from chimerakit.formats import open_checkpoint
from chimerakit.formats.imatrix import encode_imatrix, open_imatrix, read_imatrix
from chimerakit.imatrix import blend_imatrix
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.verify import verify_child
from tests import gguf_files, llama_cpp
from tests.plan.test_gguf import plan_of

F32 = npt.NDArray[np.float32]
Entries = dict[str, tuple[F32, F32]]
"""By tensor: sums (rows, cols) and counts (rows,)."""
R1T = "- {take: r1, components: routed_experts}"
EXPERTS = gguf_files.EXPERTS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models."""
    root = tmp_path_factory.mktemp("pair")
    return {name: gguf_files.make(root / f"{name}.gguf", seed) for seed, name in enumerate(("v3", "r1"), 1)}


def entries_of(seed: int) -> Entries:
    """An entry for every matrix; experts that tokens are sent to more or less often."""
    found: Entries = {}
    for number, (name, (_, shape)) in enumerate(gguf_files.layout().items()):
        if len(shape) > 1:
            random = np.random.default_rng([seed, number])
            rows = shape[0] if len(shape) == 3 else 1
            counts = random.integers(1, 900, rows).astype(np.float32)
            sums = np.asarray(random.random((rows, shape[-1])) * counts[:, None], np.float32)
            found[name] = sums, counts
    return found


def write(path: Path, entries: Entries, dataset: str = "text", kind: str = "imatrix") -> Path:
    """A file as llama-imatrix writes it."""
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()  # it has no architecture
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_key_value("imatrix.chunk_count", 7, GGUFValueType.UINT32)
    writer.add_key_value("imatrix.chunk_size", 512, GGUFValueType.UINT32)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy(path: Path, entries: Entries, calls: int = 5) -> Path:
    """A file as older programs wrote it: means of each chunk, one after the other for experts."""
    data = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        values = (sums / counts[:, None] * calls).reshape(-1)
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size)
        data += np.asarray(values, np.float32).tobytes()
    path.write_bytes(data + struct.pack("<ii", calls, 4) + b"text")
    return path


def read(path: Path) -> Entries:
    """What gguf-py finds in a file."""
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {name: (tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"].reshape(-1)) for name in names}


def blended(pair: Mapping[str, Path], rules: str, given: Mapping[str, Path], tmp_path: Path) -> Entries:
    """The imatrix of a child, by way of its file."""
    found = blend_imatrix(plan_of(pair, rules), {name: read_imatrix(path) for name, path in given.items()})
    (tmp_path / "child.gguf").write_bytes(encode_imatrix(found.imatrix))
    return read(tmp_path / "child.gguf")


@pytest.fixture
def matrices(tmp_path: Path) -> dict[str, Path]:
    """One of each parent."""
    return {
        name: write(tmp_path / f"{name}.imatrix", entries_of(seed), f"{name}.txt")
        for seed, name in enumerate(("v3", "r1"))
    }


def check(found: Entries, expected: Mapping[str, tuple[F32, F32]]) -> None:
    """The same entries, to the last bit."""
    assert found.keys() == expected.keys()
    for name, (sums, counts) in expected.items():
        assert np.array_equal(found[name][0].reshape(sums.shape), sums), name
        assert np.array_equal(found[name][1], counts), name


def test_each_tensor_has_the_entry_of_whose_activations_it_sees(
    pair: dict[str, Path], matrices: dict[str, Path], tmp_path: Path
) -> None:
    """In R1T: what R1's gate and up give to its down is R1's; everything else sees V3's stream, gate and up of R1 as well."""
    v3, r1 = (read(path) for path in matrices.values())
    found = blended(pair, R1T, matrices, tmp_path)
    check(found, {name: (r1 if "ffn_down_exps" in name else v3)[name] for name in v3})


def test_what_is_absorbed_into_queries_sees_queries(
    pair: dict[str, Path], matrices: dict[str, Path], tmp_path: Path
) -> None:
    """attn_k_b is multiplied with what attn_q_b gives, attn_v_b with what lies in the latent space."""
    v3, r1 = (read(path) for path in matrices.values())
    found = blended(pair, '- {take: r1, tensors: "blk.1.attn_q_b.weight"}', matrices, tmp_path)
    check(found, {name: (r1 if name == "blk.1.attn_k_b.weight" else v3)[name] for name in v3})
    found = blended(pair, '- {take: r1, tensors: "blk.1.attn_kv_a_mqa.weight"}', matrices, tmp_path)
    check(found, {name: (r1 if name == "blk.1.attn_v_b.weight" else v3)[name] for name in v3})


def test_single_experts_have_rows_of_their_own(
    pair: dict[str, Path], matrices: dict[str, Path], tmp_path: Path
) -> None:
    """Of a stack only the down of the experts that were taken sees other activations."""
    v3, r1 = (read(path) for path in matrices.values())
    found = blended(pair, "- {take: r1, components: routed_experts, experts: [1, 3], layers: 1}", matrices, tmp_path)
    for expert in range(EXPERTS):
        whose = r1 if expert in (1, 3) else v3
        for part in (0, 1):
            name = "blk.1.ffn_down_exps.weight"
            assert np.array_equal(found[name][part][expert], whose[name][part][expert])


def test_what_is_mixed_sees_blends_weighted_by_share_and_count(
    pair: dict[str, Path], matrices: dict[str, Path], tmp_path: Path
) -> None:
    """Sums and counts alike, so that the mean is that of what both saw; counts are whole numbers, as llama.cpp rounds them."""
    v3, r1 = (read(path) for path in matrices.values())
    found = blended(pair, "- {mix: {r1: 0.75}, components: routed_experts}", matrices, tmp_path)
    name = "blk.2.ffn_down_exps.weight"
    sums, counts = (
        0.25 * v3[name][part].astype(np.float64) + 0.75 * r1[name][part].astype(np.float64) for part in (0, 1)
    )
    assert np.array_equal(found[name][1], np.rint(counts))
    np.testing.assert_allclose(found[name][0] / found[name][1][:, None], sums / counts[:, None], rtol=1e-6)
    assert np.array_equal(found["blk.2.ffn_up_exps.weight"][0], v3["blk.2.ffn_up_exps.weight"][0])


def test_an_expert_that_was_seen_once_stays_seen(pair: dict[str, Path], tmp_path: Path) -> None:
    """A share of one token is still one: 0.1 of a count would be rounded to none, and the columns to ones."""
    v3, r1 = entries_of(0), entries_of(1)
    name = "blk.1.ffn_down_exps.weight"
    v3[name][1][2] = 0
    r1[name][1][2] = 1
    given = {"v3": write(tmp_path / "v3.imatrix", v3), "r1": write(tmp_path / "r1.imatrix", r1)}
    found = blended(pair, "- {mix: {r1: 0.1}, components: routed_experts}", given, tmp_path)
    assert found[name][1][2] == 1
    np.testing.assert_allclose(found[name][0][2], r1[name][0][2], rtol=1e-6)


def test_an_expert_that_nobody_was_sent_to_has_what_the_other_parent_saw(pair: dict[str, Path], tmp_path: Path) -> None:
    """Nothing is known of it there; it would be rounded as if all columns mattered alike."""
    v3, r1 = entries_of(0), entries_of(1)
    name = "blk.1.ffn_down_exps.weight"
    r1[name][0][2], r1[name][1][2] = 0, 0
    given = {"v3": write(tmp_path / "v3.imatrix", v3), "r1": write(tmp_path / "r1.imatrix", r1)}
    found = blended(pair, R1T, given, tmp_path)
    assert np.array_equal(found[name][0][2], v3[name][0][2])
    matrices = {parent: read_imatrix(path) for parent, path in given.items()}
    assert blend_imatrix(plan_of(pair, R1T), matrices).unseen == {name: 1}
    assert np.array_equal(found[name][0][1], r1[name][0][1])


def test_legacy_files_are_read(pair: dict[str, Path], tmp_path: Path) -> None:
    """Their means are those of the same matrix in GGUF, expert by expert; how often each was chosen they don't say."""
    entries = entries_of(0)
    found = read_imatrix(write_legacy(tmp_path / "v3.dat", entries))
    assert found.is_legacy
    assert found.datasets == ("text",)
    given = {"v3": tmp_path / "v3.dat", "r1": write_legacy(tmp_path / "r1.dat", entries_of(1))}
    child = blended(pair, R1T, given, tmp_path)
    r1 = entries_of(1)
    name = "blk.1.ffn_down_exps.weight"
    means = child[name][0] / child[name][1][:, None]
    np.testing.assert_allclose(means, r1[name][0] / r1[name][1][:, None], rtol=1e-5)


def test_tensors_without_an_entry_are_named(pair: dict[str, Path], tmp_path: Path) -> None:
    """So that nobody believes that they were weighed."""
    entries = entries_of(0)
    del entries["output.weight"]
    given = {"v3": read_imatrix(write(tmp_path / "v3.imatrix", entries))}
    assert blend_imatrix(plan_of({"v3": pair["v3"]}), given).missing == ("output.weight",)


def test_the_command_writes_it_and_says_whose_it_is(
    pair: dict[str, Path], matrices: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As gguf-py reads it; with the datasets of both."""
    out = tmp_path / "out.gguf"
    parents = [f"--parent={name}={path}" for name, path in pair.items()]
    given = [f"--imatrix={name}={path}" for name, path in matrices.items()]
    app(
        ["imatrix", *parents, "--base=v3", "--take=r1:routed_experts", *given, "-o", str(out), "--json"],
        standalone_mode=False,
    )
    assert '"by_parents"' in capsys.readouterr().out
    assert GGUFReader(out).fields["imatrix.datasets"].contents() == ["v3.txt", "r1.txt"]
    assert GGUFReader(out).fields["general.type"].contents() == "imatrix"


# ----------------------------------------------------------------------------------------- encoded by one


@pytest.mark.parametrize("dtype", ["q4_k", pytest.param("iq2_xs", marks=pytest.mark.slow), "q5_0"])
def test_quants_are_encoded_by_it_as_llama_cpp_does(dtype: str, tmp_path: Path) -> None:
    """Expert by expert, head by head: the float32 mix, stored by llama.cpp's code with each matrix's own line."""
    types = dict.fromkeys(("weight",), "BF16")
    pair = {
        name: gguf_files.make(tmp_path / f"{name}.gguf", seed, types=types, values=True)
        for seed, name in enumerate(("v3", "r1"), 1)
    }
    entries = entries_of(3)
    entries["blk.1.ffn_up_exps.weight"][1][1:3] = 1.5, 0  # counts are rounded; an expert that no token was sent to
    matrix = open_imatrix(write(tmp_path / "m.imatrix", entries))
    parents = {name: open_checkpoint(path) for name, path in pair.items()}
    rules = "- {mix: {r1: 0.75}, components: routed_experts}"
    recipes = {
        kind: plan_of(pair, rules, output=f"dtype: {kind}", imatrix=given).recipe
        for kind, given in (("f32", None), (dtype, matrix))
    }
    for kind, recipe in recipes.items():
        plan = make_plan(recipe, parents, imatrix=None if kind == "f32" else matrix)
        merge_parents(plan, tmp_path / kind)
    values = {t.name: t.data for t in GGUFReader(tmp_path / "f32" / "model.gguf").tensors}
    compared = 0
    for tensor in GGUFReader(tmp_path / dtype / "model.gguf").tensors:
        if tensor.tensor_type.name in ("F32", "BF16"):
            continue
        sums, counts = entries[tensor.name]
        counts = np.floor(counts + 0.5)
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1).astype(np.float32)
        matrices = values[tensor.name].reshape(len(means), -1, values[tensor.name].shape[-1])
        expected = [llama_cpp.encode(m, tensor.tensor_type.name, mean) for m, mean in zip(matrices, means, strict=True)]
        assert tensor.data.tobytes() == b"".join(e.tobytes() for e in expected), tensor.name
        compared += 1
    assert compared > 30
    keys = {f.name: f.contents() for f in GGUFReader(tmp_path / dtype / "model.gguf").fields.values()}
    assert (keys["quantize.imatrix.file"], keys["quantize.imatrix.entries_count"]) == ("m.imatrix", len(entries))
    assert verify_child(tmp_path / dtype, parents, imatrix=matrix).ok
    (finding,) = verify_child(tmp_path / dtype, parents).failed
    assert finding.says.startswith("names an importance matrix that quants were encoded by")
    other = open_imatrix(write(tmp_path / "n.imatrix", entries_of(4)))
    (finding,) = verify_child(tmp_path / dtype, parents, imatrix=other).failed
    assert finding.says == "the importance matrix is not the one that quants were encoded by"


def test_an_imatrix_of_another_model_is_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    """Before any work, with the tensor."""
    entries = entries_of(0)
    entries["output.weight"] = np.ones((1, 32), np.float32), np.ones(1, np.float32)
    matrix = open_imatrix(write(tmp_path / "m.imatrix", entries))
    with pytest.raises(
        PlanError, match=r"output\.weight is \[96, 256\]; its entry in the importance matrix is \[1, 32\]"
    ):
        plan_of(pair, R1T, output="dtype: q4_k", imatrix=matrix)


def test_a_legacy_file_is_not_encoded_by(tmp_path: Path) -> None:
    """It can be made a GGUF file of."""
    with pytest.raises(CheckpointError, match="is a legacy importance matrix"):
        open_imatrix(write_legacy(tmp_path / "v3.dat", entries_of(0)))


# ----------------------------------------------------------------------------------------------- refused


def test_a_parent_without_an_imatrix_is_named(pair: dict[str, Path], matrices: dict[str, Path]) -> None:
    """Half an imatrix would be worse than none; and so is one of somebody else."""
    v3 = read_imatrix(matrices["v3"])
    with pytest.raises(PlanError, match="no imatrix is given of r1"):
        blend_imatrix(plan_of(pair, R1T), {"v3": v3})
    with pytest.raises(PlanError, match="an imatrix is given of q, which the recipe does not name"):
        blend_imatrix(plan_of(pair, R1T), {"v3": v3, "r1": v3, "q": v3})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no importance matrix"),
        (b"\x01\x00\x00\x00", "is no importance matrix"),
        (struct.pack("<i", 2**30), "is no importance matrix"),
        (struct.pack("<iii", 1, 1, 2**30) + bytes(16), "is no importance matrix"),
        (b"GGUF" + bytes(4), "is a GGUF file of a version that can't be read"),
        (b"GGUF" + struct.pack("<I", 3), "ends within its header"),
    ],
)
def test_what_is_no_imatrix_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    """With the file's name."""
    (tmp_path / "x.dat").write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        read_imatrix(tmp_path / "x.dat")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Of either format."""
    entries: Entries = {"a": (np.ones((2, 3), np.float32), np.ones(2, np.float32))}
    whole: dict[str, Any] = {
        "gguf": write(tmp_path / "a.gguf", entries),
        "dat": write_legacy(tmp_path / "a.dat", entries),
    }
    ends = {"gguf": len(whole["gguf"].read_bytes()) - 32, "dat": len(whole["dat"].read_bytes()) - 12}
    for path, end in zip(whole.values(), ends.values(), strict=True):
        data = path.read_bytes()
        for nbytes in range(end):
            path.write_bytes(data[:nbytes])
            with pytest.raises(CheckpointError):
                read_imatrix(path)


def test_a_model_is_no_imatrix(pair: dict[str, Path]) -> None:
    """The right format, the wrong file."""
    with pytest.raises(CheckpointError, match="is no importance matrix"):
        read_imatrix(pair["v3"])


def test_numbers_that_can_not_be_right_are_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    """Of chunks, and of columns: an entry of another shape is no missing one."""
    path = write(tmp_path / "a.imatrix", entries_of(0))
    data = path.read_bytes()
    at = data.index(b"imatrix.chunk_count") + len("imatrix.chunk_count")
    path.write_bytes(data[:at] + struct.pack("<Ii", 5, -4) + data[at + 8 :])
    with pytest.raises(CheckpointError, match=r"imatrix\.chunk_count can't be right"):
        read_imatrix(path)
    entries = entries_of(0)
    entries["output.weight"] = np.ones((1, 100), np.float32), np.ones(1, np.float32)
    odd = {"v3": read_imatrix(write(tmp_path / "b.imatrix", entries))}
    with pytest.raises(PlanError, match=r"the entry of output\.weight in the imatrix of 'v3' is of another shape"):
        blend_imatrix(plan_of({"v3": pair["v3"]}), odd)
