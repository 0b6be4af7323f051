"""Linked files: symbolic links in parents and children that lead elsewhere.

Tries to have another file read in a shard's place, or to have a proof look at one file while a loader later sees another.
Parents may be links: the hub's cache is made of them, and whoever can place a link in a parent can place weights there as
well. In a child none is followed, neither when it is written nor when it is proven.
"""

from pathlib import Path

import pytest

from chimerakit.formats import open_checkpoint
from chimerakit.verify import verify_child
from tests import synthetic
from tests.attacks.attempt import Attacker
from tests.merging import R1T, merge

_SHARD = "model-00001-of-000003.safetensors"


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory, impatient: None) -> Path:
    """A child, and its parents beside it."""
    root = tmp_path_factory.mktemp("linked")
    parents = {name: synthetic.make(root / name, seed) for seed, name in enumerate(("v3", "r1"))}
    merge(parents, R1T, root / "child")
    return root / "child"


@pytest.mark.parametrize("name", [_SHARD, "config.json", "README.md", "chimerakit.json"])
def test_a_link_in_a_child_is_a_finding(child: Path, name: str) -> None:
    """A file of the child that is a link to the same bytes elsewhere is not the child's file."""
    real = child / name
    elsewhere = real.rename(child.parent / name)
    real.symlink_to(elsewhere)
    try:
        findings = verify_child(child)
    finally:
        elsewhere.replace(real)
    assert any(f.subject == name and "symbolic link" in f.says for f in findings.failed)


def test_a_link_in_a_parent_is_followed(child: Path) -> None:
    """A parent's shard may be a link, as in the hub's cache."""
    shard = child.parent / "v3" / _SHARD
    shard.rename(child.parent / "blob")
    shard.symlink_to(child.parent / "blob")
    assert verify_child(child, {name: open_checkpoint(child.parent / name) for name in ("v3", "r1")}).ok


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/"])
def test_a_shard_that_leads_to_no_file_is_refused(tmp_path: Path, attempt: Attacker, target: str) -> None:
    """A link to a device, which never ends, or to a folder is refused at once."""
    (tmp_path / "model.safetensors").symlink_to(target)
    attempt("plan", "--parent", f"v3={tmp_path}").check_refused("model.safetensors")
