"""Output links: an output folder that is a link, or in which links wait where files, parts or receipts will be.

Tries to have a merge write its bytes somewhere else: over a file of the user's, or into a folder of the attacker's.
Stopped by opening whatever is written without following links, and by refusing folders that hold something else.
"""

from pathlib import Path

import pytest

from chimerakit.errors import ChimerakitError
from tests import synthetic
from tests.attacks.attempt import Attacker
from tests.merging import R1T, contents, interrupt, merge, plan_of

_SHARD = "model-00001-of-000003.safetensors"


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two parents; one has a file in a folder."""
    root = tmp_path_factory.mktemp("parents")
    found = {name: synthetic.make(root / name, seed) for seed, name in enumerate(("v3", "r1"))}
    (found["v3"] / "code").mkdir()
    (found["v3"] / "code" / "model.py").write_text("right")
    return found


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """What must stay as it is."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "file").write_bytes(b"mine")
    return folder


def test_a_folder_that_is_a_link_is_refused(
    tmp_path: Path, parents: dict[str, Path], elsewhere: Path, attempt: Attacker
) -> None:
    """The child's folder is never a link, not even to an empty folder."""
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", elsewhere, tmp_path / "gone"):
        child = tmp_path / f"to-{target.name}"
        child.symlink_to(target)
        flags = [f"--parent={name}={path}" for name, path in parents.items()]
        attempt("merge", "-o", child, "--base=v3", *flags, "-q").check_refused("symbolic link; output is never written")
    assert contents(elsewhere) == {"file": b"mine"}


@pytest.mark.parametrize("name", [_SHARD, f"{_SHARD}.part", "config.json", "config.json.part", "README.md.part", "chimerakit.json.part",
                                  "code", ".chimerakit/plan.json",
                                  ".chimerakit/receipts"])  # fmt: skip
def test_links_in_an_unfinished_child_are_never_written_through(
    tmp_path: Path, parents: dict[str, Path], elsewhere: Path, impatient: None, name: str
) -> None:
    """Whatever a link in an unfinished child stands for, going on ends in a refusal or in the right child."""
    child = tmp_path / "child"
    plan = plan_of(parents, R1T)
    interrupt(plan, child, after=1 << 16)
    planted = child / name
    if planted.is_dir():
        planted.rename(child / ".moved")
    planted.unlink(missing_ok=True)
    planted.symlink_to(elsewhere if name in ("code", ".chimerakit/receipts") else elsewhere / "file")
    try:
        merge(parents, R1T, child)
    except ChimerakitError as e:
        refusal = str(e)
    else:
        refusal = ""
    if refusal:
        assert "link" in refusal
    else:
        merge(parents, R1T, tmp_path / "right")
        found = {n: data for n, data in contents(child).items() if not n.startswith(".moved")}
        assert found == contents(tmp_path / "right")
    assert contents(elsewhere) == {"file": b"mine"}
