"""Nearly right manifests: read, or refused with one clear error; and nothing outside the child is opened for them."""

import builtins
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chimerakit.errors import ManifestError, PlanError, RecipeError
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import MANIFEST, encode_manifest, read_manifest
from chimerakit.records import Checkpoint, Finding, Manifest
from chimerakit.runners.local import Threads
from chimerakit.verify import verify_child
from tests import merging, synthetic
from tests.fuzzing import LEAST_ACCEPTED, is_clear, manifests, reproducible, seeds

_VERIFIED = 25
"""Every so many manifests the child is verified, too: that reads all its files."""


@pytest.fixture(scope="module")
def parents(memory: Path) -> dict[str, Path]:
    """Two small models that no family knows."""
    found = {}
    for seed, name in enumerate(("v3", "r1")):
        values = np.random.default_rng(seed).normal(size=(3, 4, 8)).astype(ml_dtypes.bfloat16)
        found[name] = synthetic.write_checkpoint(memory / name, dict(zip("abc", values, strict=True)), {}, shards=2)
    return found


@pytest.fixture(scope="module")
def child(memory: Path, parents: dict[str, Path], impatient: None) -> Path:
    """Their child; beside it lies what no manifest may lead to."""
    merging.merge(parents, "- {take: r1, tensors: a}\n- {mix: {r1: 0.75}, tensors: b}", memory / "child", sha256=True)
    (memory / "secret").write_bytes(b"outside")
    (memory / "child" / ".trap").mkdir()  # hidden, so that it is no finding by itself
    (memory / "child" / ".trap" / "link").symlink_to("../../secret")
    (memory / "child" / ".trap" / "shelf").symlink_to("../..")
    return memory / "child"


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """Where everything really lies that is opened meanwhile."""
    found: set[str] = set()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def open_watched(path: Any, *arguments: Any, **options: Any) -> Any:
            found.add(os.path.realpath(path))
            return real(path, *arguments, **options)

        return open_watched

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watched(os.open))
        patch.setattr(builtins, "open", watched(open))
        yield found


def read(child: Path, text: bytes) -> Manifest | None:
    """The manifest of a child, None if it is refused; what is read stays so when it is written and read again."""
    (child / MANIFEST).write_bytes(text)
    try:
        found = read_manifest(child)
    except ManifestError as e:
        refusal = str(e)
    else:
        assert isinstance(json.loads(text), dict)
        (child / MANIFEST).write_bytes(encode_manifest(found))
        assert read_manifest(child) == found
        return found
    assert is_clear(refusal), refusal
    return None


def verify(child: Path, text: bytes, parents: dict[str, Checkpoint] | None) -> None:
    """Verifying ends in findings or in a refusal, and opens nothing but the child and the parents."""
    (child / MANIFEST).write_bytes(text)
    allowed = [os.path.realpath(folder) for folder in [str(child), *(c.root for c in (parents or {}).values())]]
    # With parents, the manifest's recipe is planned again.
    refusals = ManifestError if parents is None else (ManifestError, RecipeError, PlanError)
    said = ""
    with opened_files() as opened:
        try:
            findings = verify_child(child, parents, runner=Threads(1))
        except refusals as e:
            said = str(e)
    assert is_clear(said) if said else all(map(is_clear_finding, findings.failed))
    assert opened
    assert [path for path in opened if not any(path.startswith(folder + "/") for folder in allowed)] == []


def is_clear_finding(finding: Finding) -> bool:
    """Whether a finding says what it is about, at a length that can be read."""
    return 0 < len(finding.says) < 1500


def test_manifests_are_read_or_refused_and_lead_nowhere(child: Path, parents: dict[str, Path]) -> None:
    """Of random manifests each is read or refused with ManifestError, and none makes us look outside the child."""
    make = manifests.maker((child / MANIFEST).read_bytes())
    checkpoints = {name: open_checkpoint(path) for name, path in parents.items()}
    accepted, all_seeds = 0, seeds(quick=600, ci=10_000, prove=70_000)
    for seed in all_seeds:
        text = make(seed)
        with reproducible(seed, text):
            accepted += read(child, text) is not None
            if seed % _VERIFIED == 0:
                verify(child, text, checkpoints if seed % 2 else None)
    assert accepted >= LEAST_ACCEPTED * len(all_seeds)
