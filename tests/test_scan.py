"""Scanning: units of several checkpoints in one pass, cut into jobs."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from chimerakit import scan
from chimerakit.anatomy import Anatomy
from chimerakit.events import ignore
from chimerakit.execute import Inputs
from chimerakit.formats import open_checkpoint
from chimerakit.runners.local import ThreadWorkers
from chimerakit.stores.local import Reader
from tests import synthetic


def test_jobs_hold_every_unit_once_and_no_more_than_asked(tmp_path: Path) -> None:
    """Cutting loses and repeats nothing, and a job is larger than asked only if one unit is."""
    sides = {n: open_checkpoint(synthetic.make(tmp_path / n, i, "fp8")) for i, n in enumerate(("a", "b"))}
    units = scan.scan_units({n: Anatomy(c).units() for n, c in sides.items()})
    jobs = scan.cut_jobs(sides, units, segment_nbytes=100_000)
    assert Counter(u.name for job in jobs for u in job.units) == Counter(u.name for u in units)
    assert all(job.nbytes <= 100_000 or len(job.units) == 1 for job in jobs)
    assert len(jobs) > 5


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
    for unit, pairs in scan.scan("x", scan.equal_pairs, sides, units, workers=ThreadWorkers(2), listener=ignore):
        expected = {("a", "d")} if unit.name == name else set(combinations("abcd", 2))
        assert pairs == expected, unit.name


def test_a_first_unit_without_bytes_is_in_a_job(tmp_path: Path) -> None:
    """Tensors of no elements are legal, also in the first place."""
    tensors = {"empty": np.zeros((0, 4), np.float32), "full": np.ones(4, np.float32)}
    root = synthetic.write_checkpoint(tmp_path / "a", tensors, synthetic.config_of("bf16"), shards=1)
    sides = {"a": open_checkpoint(root), "b": open_checkpoint(root)}
    units = scan.scan_units({n: Anatomy(c).units() for n, c in sides.items()})
    answers = scan.scan("x", scan.equal_pairs, sides, units, workers=ThreadWorkers(1), listener=ignore)
    assert {unit.name: pairs for unit, pairs in answers} == {"empty": {("a", "b")}, "full": {("a", "b")}}


def reported(tmp_path: Path, report: Callable[[int], None]) -> int:
    """Bytes of all units of three sides, each unit compared with a report."""
    tensors = synthetic.tensors_of(1, "fp8")
    config = synthetic.config_of("fp8")
    for side, content in {"a": tensors, "b": tensors, "c": synthetic.tensors_of(2, "bf16")}.items():
        synthetic.write_checkpoint(tmp_path / side, content, config)
    sides = {side: open_checkpoint(tmp_path / side) for side in "abc"}
    units = scan.scan_units({n: Anatomy(c).units() for n, c in sides.items()})
    (job,) = scan.cut_jobs(sides, units)
    with Inputs(job.roots, job.signatures) as inputs:
        for unit in units:
            scan.equal_pairs(unit, inputs, report)
    return sum(unit.nbytes for unit in units)


def test_comparing_reports_all_bytes_as_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come piece by piece and add up to all bytes, also those that need not be read."""
    monkeypatch.setattr(scan, "CHUNK", 1009)
    seen: list[int] = []
    nbytes = reported(tmp_path, seen.append)
    assert sum(seen) == nbytes
    assert seen.count(1009) > 100


def test_a_report_that_raises_stops_comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has seen enough waits for no unit to end."""
    monkeypatch.setattr(scan, "CHUNK", 1009)
    seen: list[int] = []

    def stop(nbytes: int) -> None:
        seen.append(nbytes)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        reported(tmp_path, stop)
    assert seen == [1009]


def test_holes_on_all_sides_are_equal_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a rehearsal with sparse files of any size reads next to nothing; a hole beside data is read."""
    hole, data = 8 << 20, b"\x01" * 4096

    def sparse(side: str, *, is_filled: bool) -> Path:
        header = json.dumps({"w": {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]}}).encode().ljust(4088)
        (tmp_path / side).mkdir()
        with (tmp_path / side / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(4096 + hole)
            if is_filled:
                file.seek(4096 + hole - len(data))
                file.write(data)
        (tmp_path / side / "config.json").write_text("{}")
        return tmp_path / side

    sides = {side: open_checkpoint(sparse(side, is_filled=side == "c")) for side in "abc"}
    units = scan.scan_units({n: Anatomy(c).units() for n, c in sides.items()})
    read: list[int] = []
    real = Reader.read_into

    def read_into(reader: Reader, buffer: memoryview, start: int) -> None:
        read.append(len(buffer))
        real(reader, buffer, start)

    monkeypatch.setattr(Reader, "read_into", read_into)
    for kept, expected in ((("a", "b"), {("a", "b")}), (("a", "b", "c"), {("a", "b")})):
        chosen = [replace(unit, sides={side: unit.sides[side] for side in kept}) for unit in units]
        read.clear()
        ((_, pairs),) = scan.scan("x", scan.equal_pairs, sides, chosen, workers=ThreadWorkers(1), listener=ignore)
        assert pairs == expected
        assert (sum(read) == 0) == ("c" not in kept)
