"""Lying receipts: an unfinished child whose receipts tell of bytes that are not there, or of another plan.

Tries to have a merge take as done what was never made. Stopped by a seal over plan and receipt, by digesting
what a receipt tells of before it is believed, and by the plan's digest. Who can write into the folder can put bytes and fitting receipts there, as into any
file: `verify --parent` makes every unit again, and finds them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chimerakit.errors import OutputError
from chimerakit.formats import open_checkpoint
from chimerakit.verify import verify_child
from tests import synthetic
from tests.merging import R1T, contents, interrupt, merge, plan_of

_LIES: list[Callable[[dict[str, Any]], object]] = [
    lambda receipt: receipt["made"].pop(),
    lambda receipt: receipt["made"][0]["digests"].update(dict.fromkeys(receipt["made"][0]["digests"], "0" * 32)),
    lambda receipt: receipt.update(job=1),
    lambda receipt: receipt.update(headers={}),
    lambda receipt: receipt["made"][0].update(unit="../../x"),
    lambda receipt: receipt.update(made="all"),
]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two parents."""
    root = tmp_path_factory.mktemp("parents")
    return {name: synthetic.make(root / name, seed) for seed, name in enumerate(("v3", "r1"))}


@pytest.mark.parametrize("lie", _LIES)
def test_a_receipt_that_does_not_fit_is_not_believed(
    tmp_path: Path, parents: dict[str, Path], impatient: None, lie: Callable[[dict[str, Any]], object]
) -> None:
    """A merge that goes on from changed receipts ends in the same bytes as one that was never interrupted."""
    child = tmp_path / "child"
    interrupt(plan_of(parents, R1T), child, after=1 << 20)
    receipts = sorted((child / ".chimerakit" / "receipts").glob("*.json"))
    assert receipts
    for file in receipts:
        kept = json.loads(file.read_text())
        lie(kept["receipt"])
        file.write_text(json.dumps(kept, separators=(",", ":")))
    merge(parents, R1T, child)
    merge(parents, R1T, tmp_path / "right")
    assert contents(child) == contents(tmp_path / "right")


def test_receipts_of_another_plan_are_never_reused(tmp_path: Path, parents: dict[str, Path], impatient: None) -> None:
    """The folder of another plan's unfinished child is refused before a receipt is looked at."""
    interrupt(plan_of(parents, R1T), tmp_path / "child", after=1 << 20)
    with pytest.raises(OutputError, match="holds an unfinished child of another plan"):
        merge(parents, "- {take: r1, components: router}", tmp_path / "child")


def test_bytes_with_fitting_receipts_are_found_by_the_parents(
    tmp_path: Path, parents: dict[str, Path], impatient: None
) -> None:
    """A child begun with other weights of the same headers goes on as if they were right; a proof names what is wrong."""
    child, shard = tmp_path / "child", parents["v3"] / "model-00001-of-000003.safetensors"
    plan = plan_of(parents, R1T)
    tensor = next(t for row in plan.rows for t in row.outputs if t.file == shard.name and row.inputs[0].parent == "v3")
    right, times = shard.read_bytes(), (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    wrong = bytearray(right)
    wrong[tensor.start] ^= 1
    for data, work in (
        (bytes(wrong), lambda: interrupt(plan, child, after=1 << 20)),
        (right, lambda: merge(parents, R1T, child)),
    ):
        shard.write_bytes(data)
        os.utime(shard, ns=times)
        work()
    assert verify_child(child).ok
    findings = verify_child(child, {name: open_checkpoint(path) for name, path in parents.items()})
    assert [finding.subject for finding in findings.failed] == [tensor.name]
