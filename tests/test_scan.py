"""Scanning: units of several checkpoints in one pass, cut into jobs."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from chimerakit import scan
from chimerakit.anatomy import Anatomy
from chimerakit.events import ignore
from chimerakit.formats import open_checkpoint
from chimerakit.stores.digest import digest_of
from tests import synthetic
from tests.merging import stored


def test_jobs_hold_every_unit_once_and_no_more_than_asked(tmp_path: Path) -> None:
    """Cutting loses and repeats nothing, and a job is larger than asked only if one unit is."""
    sides = {n: open_checkpoint(synthetic.make(tmp_path / n, i, "fp8")) for i, n in enumerate(("a", "b"))}
    units = scan.scan_units({n: Anatomy(c).units() for n, c in sides.items()})
    jobs = scan.cut_jobs(sides, units, segment_nbytes=100_000)
    assert Counter(u.name for job in jobs for u in job.units) == Counter(u.name for u in units)
    assert all(job.nbytes <= 100_000 or len(job.units) == 1 for job in jobs)
    assert len(jobs) > 5


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    """Each tensor's digest is that of its bytes, read here without the scanner."""
    root = synthetic.make(tmp_path / "a", 1, "fp8", shuffle=1)
    sides = {"a": open_checkpoint(root)}
    units = scan.scan_units({"a": Anatomy(sides["a"]).units()})
    found = {}
    for _, digests in scan.scan("x", scan.digest_side("a"), sides, units, threads=2, listener=ignore):
        found.update(digests)
    assert found == {name: digest_of(data) for name, (_, _, data) in stored(root).items()}


@pytest.mark.parametrize("chunk", [1009, 1 << 22])
def test_equal_pairs_are_those_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Among three sides every pair is right, also where the difference is in the last byte."""
    monkeypatch.setattr(scan, "CHUNK", chunk)
    tensors = synthetic.tensors_of(1, "fp8")
    name = "model.layers.0.mlp.up_proj.weight"
    changed = dict(tensors)
    changed[name] = tensors[name].copy()
    changed[name].view("uint8")[-1, -1] ^= 1
    scaled = dict(tensors)
    scaled[name + "_scale_inv"] = tensors[name + "_scale_inv"] * 2
    config = synthetic.config_of("fp8")
    sides = {
        side: open_checkpoint(synthetic.write_checkpoint(tmp_path / side, content, config, shuffle=number))
        for number, (side, content) in enumerate({"a": tensors, "b": changed, "c": scaled, "d": tensors}.items())
    }
    units = scan.scan_units({n: Anatomy(c).units() for n, c in sides.items()})
    for unit, pairs in scan.scan("x", scan.equal_pairs, sides, units, threads=2, listener=ignore):
        expected = {("a", "d")} if unit.name == name else set(combinations("abcd", 2))
        assert pairs == expected, unit.name
