"""Verifying: a child is what its manifest says, and that is what its parents make; anything else is found by name."""

import hashlib
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from chimerakit.errors import ChimerakitError, ManifestError, PlanError
from chimerakit.formats import open_checkpoint
from chimerakit.records import Checkpoint, Findings, MadeRow, Manifest, OtherFile, ParentRecord, WeightFile
from chimerakit.runners.local import Threads
from chimerakit.verify import verify_child
from tests import synthetic
from tests.effort import examples
from tests.merging import merge, stored

RULES = "- {take: r1, components: routed_experts}\n- {mix: {r1: 0.75}, components: shared_experts}"
MIXED = "model.layers.1.mlp.shared_experts.gate_proj.weight"
COPIED = "model.layers.2.mlp.experts.3.up_proj.weight"
UNIT = "model.embed_tokens.weight"
"""The first unit of a child."""
_FIRST = "model-00001-of-000003.safetensors"


pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parents and their child, made once; tests get copies to damage."""
    root = tmp_path_factory.mktemp("family")
    pair = {
        "v3": synthetic.make(root / "v3", 1, "fp8", shards=3),
        "r1": synthetic.make(root / "r1", 2, "fp8", shards=2, shuffle=7),
    }
    merge(pair, RULES, root / "child")
    merge(pair, RULES, root / "released", sha256=True)
    return root


@pytest.fixture
def parents(tmp_path: Path, family: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(family / name, tmp_path / name)) for name in ("v3", "r1")}


@pytest.fixture
def child(tmp_path: Path, family: Path) -> Path:
    return Path(shutil.copytree(family / "child", tmp_path / "child"))


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


@pytest.mark.parametrize("name", ["", ".", "a\0b"])
def test_a_manifest_that_names_no_file_is_refused(child: Path, name: str) -> None:
    """What can't be the name of a file in the child is refused like a name outside of it."""
    rewrite(child, lambda manifest: manifest["files"].update({name: {"nbytes": 1, "digest": "0"}}))
    with pytest.raises(ManifestError, match="names a file outside its folder"):
        verify_child(child)


# --------------------------------------------------------------------------------- a child and its folder


def rewrite(child: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the manifest says, and write it as chimerakit does."""
    manifest = json.loads((child / "chimerakit.json").read_text())
    change(manifest)
    write(child, manifest)


def record(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"nbytes": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}


def write(child: Path, manifest: object) -> None:
    (child / "chimerakit.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def _shard(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["weights"][_FIRST]
    return found


def test_a_link_in_the_child_is_found_whatever_it_leads_to(
    child: Path, parents: dict[str, Path], tmp_path: Path
) -> None:
    """Files and folders behind symbolic links are not the child's, not even with the right bytes."""
    (child / "config.json").rename(tmp_path / "config.json")
    (child / "config.json").symlink_to(tmp_path / "config.json")
    (child / "chimerakit.json").rename(tmp_path / "chimerakit.json")
    (child / "chimerakit.json").symlink_to(tmp_path / "chimerakit.json")
    (child / "assets").symlink_to(parents["v3"], target_is_directory=True)
    (child / "nowhere").symlink_to(tmp_path / "gone")
    found = failures(verify_child(child))
    found.pop("child", None)  # the loader's own words on a link that leads nowhere
    assert found == {
        "assets": "is a symbolic link",
        "chimerakit.json": "is a symbolic link",
        "config.json": "is a symbolic link, or lies behind one",
        "nowhere": "is a symbolic link",
    }


def test_a_file_behind_a_linked_folder_is_not_read(child: Path, parents: dict[str, Path]) -> None:
    """A manifest can't name a file outside of the child by way of a link, hidden or not."""
    (child / ".hidden").symlink_to(parents["v3"], target_is_directory=True)
    entry = record((parents["v3"] / "LICENSE").read_bytes())
    rewrite(child, lambda manifest: manifest["files"].update({".hidden/LICENSE": entry}))
    assert failures(verify_child(child)) == {".hidden/LICENSE": "is a symbolic link, or lies behind one"}


def test_what_is_no_file_is_found(child: Path) -> None:
    """A pipe in the folder is no file of the manifest's, and is not waited for."""
    os.mkfifo(child / "pipe")
    (child / "tokenizer.json").unlink()
    os.mkfifo(child / "tokenizer.json")
    assert failures(verify_child(child)) == {"pipe": "is not in the manifest", "tokenizer.json": "is missing"}


def test_hidden_files_and_folders_are_not_looked_at(child: Path) -> None:
    """What other tools keep beside a model is none of the child's."""
    (child / ".git").mkdir()
    (child / ".git" / "config").write_text("[core]")
    (child / ".gitattributes").write_text("*.safetensors filter=lfs")
    (child / ".cache").symlink_to(child / ".git", target_is_directory=True)
    assert verify_child(child).ok


@pytest.mark.parametrize(
    ("change", "subject", "says"),
    [
        (lambda m: m["files"].update({"a" * 5000: m["files"].pop("LICENSE")}), "a" * 5000, "File name too long"),
        (lambda m: _shard(m).update(header_nbytes=-8), _FIRST, "-8 for its header"),
        (lambda m: _shard(m).update(header_nbytes=2**60), _FIRST, "for its header"),
        (lambda m: m["files"].update({_FIRST: m["files"]["LICENSE"]}), _FIRST, "twice, as weights"),
        (lambda m: m["units"].append(m["units"][0]), UNIT, "is in the manifest twice"),
        (lambda m: m["units"][0].update(unit="x"), "x", "does not hold the tensor of its name"),
        (lambda m: m["units"][0]["tensors"].update(y="0"), "y", "is in the manifest but not in the child"),
        (lambda m: m["weights"].pop(_FIRST), _FIRST, "is not in the manifest"),
    ],
)
def test_a_manifest_that_can_not_be_is_answered_with_a_finding(
    child: Path, change: Callable[[dict[str, Any]], object], subject: str, says: str
) -> None:
    """Numbers, names and lists that fit no child are said by name, without parents, too."""
    rewrite(child, change)
    found = [f.says for f in verify_child(child).failed if f.subject == subject]
    assert any(says in text for text in found), found


# ------------------------------------------------------------------------- forged children and manifests


def _unit(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(u for u in manifest["units"] if u["unit"] == name)
    return found


def _forge_header(child: Path) -> str:
    """Two experts change places, by their offsets in the header alone."""
    names = [f"model.layers.2.mlp.experts.{expert}.up_proj.weight" for expert in (0, 1)]
    found = open_checkpoint(child).tensors
    assert found[names[0]].file == found[names[1]].file
    path = child / found[names[0]].file
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    a, b = (header[name] for name in names)
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(end - 8)
    assert len(text) == end - 8
    path.write_bytes(data[:8] + text + data[end:])

    def patch(manifest: dict[str, Any]) -> None:
        manifest["weights"][path.name]["header"] = xxhash.xxh3_128_hexdigest(data[:8] + text)
        one, other = (_unit(manifest, name)["tensors"] for name in names)
        one[names[0]], other[names[1]] = other[names[1]], one[names[0]]

    rewrite(child, patch)
    return path.name


def _forge_file(name: str) -> Callable[[Path], str]:
    def forge(child: Path) -> str:
        data = (child / name).read_bytes() if (child / name).exists() else b""
        data = data.replace(b"0", b"1") + b"\n"
        (child / name).write_bytes(data)
        rewrite(child, lambda manifest: manifest["files"].update({name: record(data)}))
        return name

    return forge


def _forge_tensor(child: Path) -> str:
    flip(child, MIXED, byte=5)
    digest = xxhash.xxh3_128_hexdigest(stored(child)[MIXED][2])
    rewrite(child, lambda manifest: _unit(manifest, MIXED)["tensors"].update({MIXED: digest}))
    return MIXED


FORGERIES = [_forge_header, *map(_forge_file, ("config.json", "evil.py", "README.md", "tokenizer.json")), _forge_tensor]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_child_with_a_manifest_that_fits_is_found_by_its_parents(
    child: Path, parents: dict[str, Path], forge: Callable[[Path], str]
) -> None:
    """A manifest that was changed along with the child does not help: recipe and parents give other bytes."""
    name = forge(child)
    assert verify_child(child).ok
    assert name in failures(verify_child(child, opened(parents)))


def test_all_forgeries_of_a_child_are_found_together(child: Path, parents: dict[str, Path]) -> None:
    """A header that moves weights does not hide what else was forged."""
    names = {forge(child) for forge in FORGERIES if forge is not _forge_tensor}
    assert verify_child(child).ok
    found = failures(verify_child(child, opened(parents)))
    assert set(found) == names
    assert found["evil.py"] == "is in the manifest, but recipe and parents do not give it"
    assert found["config.json"].startswith("the manifest says")


LIES: list[tuple[Callable[[dict[str, Any]], object], str, str]] = [
    (lambda m: _unit(m, MIXED)["parents"].update(r1=0.5), MIXED, "says parents {'v3': 0.25, 'r1': 0.5}, the parents"),
    (lambda m: _unit(m, MIXED).update(rule=0), MIXED, "says rule 0, the parents give 1"),
    (lambda m: _unit(m, MIXED).update(outcome="equal"), MIXED, "says outcome equal, the parents give mixed"),
    (lambda m: _unit(m, COPIED).update(nonfinite=3), COPIED, "says nonfinite 3, the parents give 0"),
    (lambda m: _unit(m, COPIED).update(rms_error=0.1), COPIED, "says rms_error 0.1, the parents give None"),
    (lambda m: m.update(family="generic"), "chimerakit.json", "says family generic, the parents give deepseek"),
    (lambda m: m.update(allow_nonfinite=True), "chimerakit.json", "says allow_nonfinite True, the parents give False"),
    (lambda m: m["parents"].update(x=m["parents"]["v3"]), "x", "is in the manifest, but recipe and parents do not"),
    (lambda m: m["parents"].pop("r1"), "r1", "the manifest has no record of it"),
    (lambda m: m["units"].reverse(), "", "does not stand in the manifest where it stands in the child"),
    (lambda m: m.update(extra=1), "chimerakit.json", "its text is not that of chimerakit"),
    (lambda m: m.update(plan="0" * 32), "chimerakit.json", "give another plan"),
    (lambda m: m["recipe"]["rules"][0].update(mtp=None), "chimerakit.json", "the manifest says recipe"),
]


@pytest.mark.parametrize(("lie", "subject", "says"), LIES)
def test_every_statement_of_a_manifest_is_held_against_the_parents(
    child: Path, parents: dict[str, Path], lie: Callable[[dict[str, Any]], object], subject: str, says: str
) -> None:
    """A lie about a unit, a parent or the whole is one finding: what it is about, what is said, what is right."""
    rewrite(child, lie)
    ((found, text),) = failures(verify_child(child, opened(parents))).items()
    assert subject in ("", found)
    assert says in text


def test_a_key_that_stands_twice_in_a_manifest_is_found(child: Path, parents: dict[str, Path]) -> None:
    """Readers disagree about which of two equal keys counts; a proven manifest has none."""
    path = child / "chimerakit.json"
    path.write_text(path.read_text().replace('"family":', '"family": "llama", "family":', 1))
    assert "double keys" in failures(verify_child(child, opened(parents)))["chimerakit.json"]


def test_the_version_in_a_manifest_is_free(child: Path, parents: dict[str, Path]) -> None:
    """Another version may have made the same child."""
    rewrite(child, lambda manifest: manifest.update(chimerakit="99.0"))
    assert verify_child(child, opened(parents)).ok


# ------------------------------------------------------------------------------------------------ sha256


@pytest.fixture
def released(tmp_path: Path, family: Path) -> Path:
    return Path(shutil.copytree(family / "released", tmp_path / "released"))


SHARD = "model-00002-of-000003.safetensors"
SHA_LIES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda m: m["weights"][SHARD].update(sha256="0" * 64), SHARD),
    (lambda m: m["weights"][SHARD].pop("sha256"), SHARD),
    (lambda m: m["files"]["config.json"].update(sha256="0" * 64), "config.json"),
    (lambda m: m["files"]["README.md"].pop("sha256"), "README.md"),
    (lambda m: _unit(m, MIXED)["sha256"].update({MIXED: "0" * 64}), MIXED),
    (lambda m: _unit(m, COPIED).pop("sha256"), COPIED),
    (lambda m: _unit(m, MIXED)["sha256"].update(x="0" * 64), MIXED),
]


def test_a_child_with_sha256_holds_with_and_without_parents(released: Path, parents: dict[str, Path]) -> None:
    """sha256 in the manifest are those of the files as they are stored, and both checks find them so."""
    manifest = json.loads((released / "chimerakit.json").read_text())
    for name, entry in (manifest["weights"] | manifest["files"]).items():
        assert entry["sha256"] == hashlib.sha256((released / name).read_bytes()).hexdigest()
    alone = verify_child(released)
    assert alone.failed == verify_child(released, opened(parents)).failed == ()
    assert alone.passed["weight files as written (sha256)"] == 3


@pytest.mark.parametrize("with_parents", [False, True])
@pytest.mark.parametrize(("lie", "subject"), SHA_LIES)
def test_a_wrong_or_missing_sha256_is_found(
    released: Path, parents: dict[str, Path], lie: Callable[[dict[str, Any]], object], subject: str, with_parents: bool
) -> None:
    """Every sha256 of a manifest is compared with the bytes, and where one is, all must be."""
    rewrite(released, lie)
    found = failures(verify_child(released, opened(parents) if with_parents else None))
    assert set(found) <= {subject, subject + "_scale_inv"}
    assert "sha256" in found[subject]


@pytest.mark.parametrize("with_parents", [False, True])
def test_a_flipped_bit_in_a_child_with_sha256_is_found_by_name(
    released: Path, parents: dict[str, Path], with_parents: bool
) -> None:
    """The finding about the tensor comes with or without sha256; the digests of wrong bytes are not complained about."""
    flip(released, MIXED, byte=5)
    file = open_checkpoint(released).tensors[MIXED].file
    found = failures(verify_child(released, opened(parents) if with_parents else None))
    assert set(found) == ({MIXED} if with_parents else {MIXED, file})


# ----------------------------------------------------------------------------------------- NaN, infinity


def test_an_option_that_was_not_needed_makes_no_other_manifest(child: Path, parents: dict[str, Path]) -> None:
    """allow_nonfinite stands in the manifest where something was not finite, not where it was merely allowed."""
    merge(parents, RULES, child.parent / "allowed", allow_nonfinite=True)
    assert (child.parent / "allowed/chimerakit.json").read_bytes() == (child / "chimerakit.json").read_bytes()


def test_a_child_with_nan_is_proven_and_says_so(tmp_path: Path) -> None:
    """What is not finite is made again, too; a manifest that denies it is found."""
    pair = {}
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed)
        if name == "r1":
            tensors[MIXED][3, 4] = np.nan
        pair[name] = synthetic.write_checkpoint(tmp_path / name, tensors, synthetic.config_of("bf16"))
    merge(pair, RULES, tmp_path / "child", allow_nonfinite=True)
    assert verify_child(tmp_path / "child", opened(pair)).ok
    rewrite(tmp_path / "child", lambda manifest: manifest.update(allow_nonfinite=False))
    found = failures(verify_child(tmp_path / "child", opened(pair)))
    assert found == {"chimerakit.json": "the manifest says allow_nonfinite False, the parents give True"}


# --------------------------------------------------------------------------------------------- mutations

WORDS = {
    *(f for record in (Manifest, MadeRow, OtherFile, ParentRecord, WeightFile) for f in record.__struct_fields__),
    *("base", "rules", "output", "take", "mix", "components", "dtype", "v3", "r1"),
}
Spot = tuple[str | int, ...]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Checkpoint]]:
    """A child with sha256 and something of everything, and its parents."""
    root = tmp_path_factory.mktemp("small")
    pair = {}
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed, "fp8", config=synthetic.SMALL, mtp=False)
        pair[name] = synthetic.write_checkpoint(
            root / name, tensors, synthetic.config_of("fp8", synthetic.SMALL), shards=2
        )
    rules = (
        "- {take: r1, components: routed_experts}\n- {mix: {v3: 0.25, r1: 0.75}, components: [shared_experts, norm]}"
    )
    merge(pair, rules, root / "child", output="tokenizer: r1", sha256=True)
    return root / "child", opened(pair)


def spots(data: Any, at: Spot = ()) -> Iterator[Spot]:
    """Where anything stands in a JSON document."""
    yield at
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from spots(value, (*at, key))


def kinds(data: Any) -> dict[Spot, list[Spot]]:
    """Spots that mean the same of different units, files or tensors."""
    found: dict[Spot, list[Spot]] = defaultdict(list)
    for spot in spots(data):
        found[tuple(key if key in WORDS else "*" for key in spot)].append(spot)
    return found


def others(value: Any) -> list[Any]:
    """What could stand in the place of a value."""
    if isinstance(value, bool) or value is None:
        return [not value, None, 0, "x"]
    if isinstance(value, int | float):
        return [value + 1, -1 - value, value * 0.5, float(value), 0, 2**62, 2**70, 10**30, True, str(value), None]
    if isinstance(value, str):
        return [value + "x", value[:-1], value.upper(), value[::-1], "x" * 5000, "../x", "\0", "\u00e9", "", 0, None]
    return [None, [], {}, "x", 0, [value], {"x": value}]


def mutate(manifest: Any, spot: Spot, how: str, chance: random.Random) -> Any:
    """A copy with one change at one place."""
    top = {"": deepcopy(manifest)}
    parent: Any = top
    for key in ("", *spot)[:-1]:
        parent = parent[key]
    key = ("", *spot)[-1]
    value = parent[key]
    if how == "delete":
        del parent[key]
    elif how == "change":
        parent[key] = chance.choice(others(value))
    elif how == "rename" and isinstance(parent, dict):
        new = chance.choice(["x", str(key) + "x", "", "../x", "a" * 5000, *parent])
        parent[key], parent[new] = parent.get(new), value
    elif how == "repeat" and isinstance(parent, list):
        parent.append(value)
    elif isinstance(value, list):
        chance.shuffle(value)
    elif isinstance(value, dict) and how == "swap":
        values = list(value.values())
        chance.shuffle(values)
        value.update(zip(value, values, strict=True))
    elif isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        parent[key] = dict(items)
    return top.get("", {})


@given(st.data())
@settings(
    max_examples=examples(quick=60, ci=500, prove=20_000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
def test_no_single_change_of_a_manifest_passes_a_proof(
    small: tuple[Path, Mapping[str, Checkpoint]], data: st.DataObject
) -> None:
    """Whatever is deleted, changed, renamed, repeated or put in another order is found, or refused in clear words."""
    child, parents = small
    path = child / "chimerakit.json"
    text = path.read_bytes()
    manifest = json.loads(text)
    places = kinds(manifest)
    kind = data.draw(st.sampled_from(sorted(places, key=str)))
    spot = data.draw(st.sampled_from(places[kind]))
    how = data.draw(st.sampled_from(["delete", "change", "rename", "repeat", "swap", "order"]))
    changed = mutate(manifest, spot, how, data.draw(st.randoms(use_true_random=False)))
    is_free = isinstance(changed, dict) and isinstance(changed.get("chimerakit"), str)
    assume(changed != manifest or json.dumps(changed) != json.dumps(manifest))
    assume(not (is_free and json.dumps(changed | {"chimerakit": manifest["chimerakit"]}) == json.dumps(manifest)))
    try:
        write(child, changed)
        for given_parents in (None, parents):
            try:
                is_ok = verify_child(child, given_parents, runner=Threads(1)).ok
            except ChimerakitError:
                is_ok = False
        assert not is_ok
    finally:
        path.write_bytes(text)
