"""Verifying: a child is what its manifest says, and that is what its parents make; anything else is found by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chimerakit.errors import ManifestError, PlanError
from chimerakit.formats import open_checkpoint
from chimerakit.records import Checkpoint, Findings
from chimerakit.verify import verify_child
from tests import synthetic
from tests.merging import merge, stored

RULES = "- {take: r1, components: routed_experts}\n- {mix: {r1: 0.75}, components: shared_experts}"
MIXED = "model.layers.1.mlp.shared_experts.gate_proj.weight"
COPIED = "model.layers.2.mlp.experts.3.up_proj.weight"


@pytest.fixture
def parents(tmp_path: Path) -> dict[str, Path]:
    return {
        "v3": synthetic.make(tmp_path / "v3", 1, "fp8", shards=3),
        "r1": synthetic.make(tmp_path / "r1", 2, "fp8", shards=2, shuffle=7),
    }


@pytest.fixture
def child(tmp_path: Path, parents: dict[str, Path]) -> Path:
    merge(parents, RULES, tmp_path / "child")
    return tmp_path / "child"


def opened(parents: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(path) for name, path in parents.items()}


def flip(folder: Path, tensor: str, byte: int = 0) -> None:
    """Change one bit of a tensor's stored bytes."""
    found = open_checkpoint(folder).tensors[tensor]
    with (folder / found.file).open("r+b") as file:
        file.seek(found.start + byte)
        old = file.read(1)
        file.seek(found.start + byte)
        file.write(bytes([old[0] ^ 1]))


def failures(findings: Findings) -> dict[str, str]:
    return {f.subject: f.says for f in findings.failed}


def test_a_child_as_merged_holds_with_and_without_parents(child: Path, parents: dict[str, Path]) -> None:
    """Every tensor and every file of an untouched child is a statement that holds."""
    alone, proven = verify_child(child), verify_child(child, opened(parents))
    num_tensors = len(stored(child))
    assert alone.ok
    assert proven.ok
    assert alone.passed["tensors as written (digest)"] == num_tensors
    tensors = {k: v for k, v in proven.passed.items() if k.startswith("tensors proven")}
    assert sum(tensors.values()) == num_tensors
    assert tensors["tensors proven against the parents: mixed"] == 2 * 9  # weights and scales of three layers


@pytest.mark.parametrize("storage", ["bf16", "ue8m0", "e8m0"])
def test_every_storage_is_proven(tmp_path: Path, storage: str) -> None:
    """Children of BF16 parents and of both kinds of power-of-two scales are proven, conversions included."""
    parents = {
        "v3": synthetic.make(tmp_path / "v3", 1, storage),
        "r1": synthetic.make(tmp_path / "r1", 2, storage),
    }
    for number, output in enumerate(("", "dtype: bf16", "dtype: fp8-block", "shards: by-rule")):
        merge(parents, RULES, tmp_path / f"child{number}", output=output)
        assert failures(verify_child(tmp_path / f"child{number}", opened(parents))) == {}


@pytest.mark.parametrize("tensor", [MIXED, MIXED + "_scale_inv", COPIED, "model.norm.weight"])
@pytest.mark.parametrize("with_parents", [False, True])
def test_one_flipped_bit_is_found_by_name(
    child: Path, parents: dict[str, Path], tensor: str, with_parents: bool
) -> None:
    """A changed bit in any tensor is exactly one finding, about that tensor."""
    flip(child, tensor, byte=3 if tensor.endswith("scale_inv") else 5)
    found = failures(verify_child(child, opened(parents) if with_parents else None))
    assert list(found) == [tensor]
    says = "is not what its parents give (from byte" if with_parents else "its bytes are not those that were written"
    assert says in found[tensor]


def _cut(child: Path) -> str:
    file = child / "model-00002-of-000003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return file.name


def _drop(child: Path) -> str:
    (child / "tokenizer.json").unlink()
    return "tokenizer.json"


def _edit(child: Path) -> str:
    (child / "config.json").write_text((child / "config.json").read_text().replace("200", "201"))
    return "config.json"


def _add(child: Path) -> str:
    (child / "extra.py").write_text("import os")
    return "extra.py"


def _rewrite_header(child: Path) -> str:
    file = child / "model-00001-of-000003.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"format":"pt"', b'"format":"tf"'))
    return file.name


@pytest.mark.parametrize("damage", [_cut, _drop, _edit, _add, _rewrite_header])
def test_other_damage_is_found_by_file(child: Path, damage: Callable[[Path], str]) -> None:
    """A file that is cut, missing, edited, added, or whose header says something else is a finding about that file."""
    name = damage(child)
    assert name in failures(verify_child(child))


def test_parents_that_are_not_the_parents_are_findings(tmp_path: Path, child: Path, parents: dict[str, Path]) -> None:
    """A child is not proven against other checkpoints under the same names."""
    other = synthetic.make(tmp_path / "other", 2, "fp8", shards=3)
    found = failures(verify_child(child, opened(parents | {"r1": other})))
    assert list(found) == ["r1"]
    assert "is not the parent that the manifest names" in found["r1"]


def test_a_parent_with_equal_headers_but_other_weights_is_found(
    tmp_path: Path, child: Path, parents: dict[str, Path]
) -> None:
    """Headers alone do not make a parent: its bytes are read."""
    flip(parents["r1"], COPIED, byte=9)
    found = failures(verify_child(child, opened(parents)))
    assert list(found) == [COPIED]


def test_missing_parents_are_refused(child: Path, parents: dict[str, Path]) -> None:
    """All parents of the recipe are needed, by their names."""
    with pytest.raises(PlanError, match="the child's parents are v3, r1; given: v3"):
        verify_child(child, opened({"v3": parents["v3"]}))


def test_a_manifest_that_lies_about_an_outcome_is_found(child: Path, parents: dict[str, Path]) -> None:
    """What the manifest says of how a unit was made is checked, too."""
    path = child / "chimerakit.json"
    manifest = json.loads(path.read_text())
    unit = next(u for u in manifest["units"] if u["unit"] == MIXED)
    unit["rms_error"] = 0.001
    path.write_text(json.dumps(manifest))
    found = failures(verify_child(child, opened(parents)))
    assert list(found) == [MIXED]
    assert "the manifest says rms_error 0.001, the parents give 0.02" in found[MIXED]


def test_a_manifest_with_another_recipe_is_found(child: Path, parents: dict[str, Path]) -> None:
    """The recipe in the manifest must give the plan that the manifest names."""
    path = child / "chimerakit.json"
    path.write_text(path.read_text().replace('"r1": 0.75', '"r1": 0.5'))
    found = failures(verify_child(child, opened(parents)))
    assert "give another plan" in found["chimerakit.json"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_points_outside_is_refused(child: Path, name: str) -> None:
    """A manifest can't make the verifier read files outside of the child."""
    path = child / "chimerakit.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"nbytes": 1, "digest": "0"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="names a file outside its folder"):
        verify_child(child)


def test_no_manifest_says_what_to_do(tmp_path: Path, parents: dict[str, Path]) -> None:
    """A folder without manifest is answered with the check that needs none; an unfinished child with how to finish."""
    with pytest.raises(ManifestError, match=r"there is no manifest(?s:.*)verify --table"):
        verify_child(parents["v3"])
    (tmp_path / "begun" / ".chimerakit").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"unfinished(?s:.*)run the same merge again"):
        verify_child(tmp_path / "begun")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\x00", '{"format": 2, "chimerakit": "9"}'])
def test_a_broken_manifest_is_one_clear_error(child: Path, text: str) -> None:
    """A manifest that can't be read is refused with its path."""
    (child / "chimerakit.json").write_text(text)
    with pytest.raises(ManifestError, match=r"chimerakit\.json: the manifest can't be read"):
        verify_child(child)


def test_a_manifest_of_another_version_is_refused(child: Path) -> None:
    """Digests of other number rules would mean something else."""
    path = child / "chimerakit.json"
    path.write_text(path.read_text().replace('"numerics": 1', '"numerics": 99'))
    with pytest.raises(ManifestError, match=r"another version(?s:.*)numerics 99"):
        verify_child(child)
