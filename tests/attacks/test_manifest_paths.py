"""Manifest paths: a manifest that names `../secret`, /etc/passwd, or a link, as a file of the child.

Tries to have a proof digest a file elsewhere, or `--force` delete one. Stopped by refusing names that leave the folder,
and by following no link on the way to a file.
"""

import json
from pathlib import Path

import pytest

from tests import synthetic
from tests.attacks.attempt import Attacker
from tests.merging import R1T, merge


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory, impatient: None) -> Path:
    """A child, its parents beside it, and a file that is none of theirs."""
    root = tmp_path_factory.mktemp("paths")
    parents = {name: synthetic.make(root / name, seed) for seed, name in enumerate(("v3", "r1"))}
    merge(parents, R1T, root / "child")
    (root / "secret").write_bytes(b"secret")
    (root / "child" / ".shelf").symlink_to("..")
    return root / "child"


@pytest.mark.parametrize("verb", ["verify", "merge"])
@pytest.mark.parametrize("which", ["files", "weights"])
@pytest.mark.parametrize(
    "name", ["../secret", "{root}/secret", "a/../../secret", "./../secret", "../child/../secret", "", "/"]
)
def test_a_name_that_leaves_the_child_is_refused(
    child: Path, attempt: Attacker, name: str, which: str, verb: str
) -> None:
    """Neither is such a file looked at nor deleted."""
    text = (child / "chimerakit.json").read_text()
    manifest = json.loads(text)
    manifest[which][name.format(root=child.parent)] = dict(next(iter(manifest[which].values())))
    (child / "chimerakit.json").write_text(json.dumps(manifest))
    parents = [f"--parent={name}={child.parent / name}" for name in ("v3", "r1")]
    force = ["--base", "v3", "--take", "r1:router", "--force", "-o", child, *parents]
    done = attempt("verify", child) if verb == "verify" else attempt("merge", *force)
    (child / "chimerakit.json").write_text(text)
    done.check_refused("names a file outside its folder")
    assert (child.parent / "secret").read_bytes() == b"secret"


def test_a_file_behind_a_link_is_not_looked_at(child: Path, attempt: Attacker) -> None:
    """A hidden link to another folder makes no way out: a file behind it is a finding, right or wrong."""
    text = (child / "chimerakit.json").read_text()
    manifest = json.loads(text)
    manifest["files"][".shelf/secret"] = {"nbytes": 6, "digest": "0" * 32}
    (child / "chimerakit.json").write_text(json.dumps(manifest))
    done = attempt("verify", child)
    (child / "chimerakit.json").write_text(text)
    assert done.code == 1
    assert "is a symbolic link, or lies behind one" in done.out
