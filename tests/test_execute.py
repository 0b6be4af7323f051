"""One job at a time: it travels as JSON, runs in any order and any number of times, and refuses what can't be mixed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from chimerakit.errors import ChangedError, NonFiniteError
from chimerakit.execute import Inputs, make_units, run_job
from chimerakit.merge import merge_parents
from chimerakit.plan import make_jobs
from chimerakit.plan.ranges import Run
from chimerakit.records import Job, Receipt, Tensor
from chimerakit.runners.local import Threads
from chimerakit.stores.local import Buffer, Reader
from tests import naive, synthetic
from tests.merging import MIX, MIX_ALL, R1T, contents, make_parts, merge, plan_of, receipts, stored, values

Pair = dict[str, Path]
UNIT = "model.layers.1.mlp.experts.2.up_proj.weight"


pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("parents")
    v3 = synthetic.make(root / "v3", 1, "fp8", shards=3, shuffle=5)
    return {"v3": v3, "r1": synthetic.make(root / "r1", 2, "fp8", shards=2)}


def ignore(_: int) -> None:
    pass


# ------------------------------------------------------------------------------------------------ jobs


def test_jobs_travel_as_json_and_run_in_any_order_any_number_of_times(parents: Pair, tmp_path: Path) -> None:
    """Jobs sent through JSON, last first, each twice, leave the bytes and receipts of a merge."""
    plan = plan_of(parents, MIX_ALL, segment_nbytes=40_000)
    merge_parents(plan, tmp_path / "merged")
    (tmp_path / "jobs").mkdir()
    jobs = msgspec.json.decode(msgspec.json.encode(make_jobs(plan, tmp_path / "jobs")), type=list[Job])
    assert len(jobs) > 10
    make_parts(jobs, tmp_path / "jobs")
    first = [msgspec.json.decode(msgspec.json.encode(run_job(job, ignore)), type=Receipt) for job in reversed(jobs)]
    assert [run_job(job, ignore) for job in reversed(jobs)] == first
    weights = {n: data for n, data in contents(tmp_path / "merged").items() if n.endswith(".safetensors")}
    assert {n.removesuffix(".part"): data for n, data in contents(tmp_path / "jobs").items()} == weights
    assert [receipt.job for receipt in first] == list(range(len(jobs)))[::-1]


def test_a_job_reports_the_bytes_that_it_writes(parents: Pair, tmp_path: Path) -> None:
    """The reports of a job add up to its bytes, which its receipt states."""
    jobs = make_jobs(plan_of(parents, MIX, segment_nbytes=100_000), tmp_path)
    make_parts(jobs, tmp_path)
    for job in jobs:
        seen: list[int] = []
        receipt = run_job(job, seen.append)
        assert sum(seen) == job.nbytes == receipt.nbytes
        assert {m.unit for m in receipt.made} == {row.unit for row in job.rows}
        assert set(receipt.headers) == {h.file for h in job.headers}


def test_a_report_that_raises_stops_the_job(parents: Pair, tmp_path: Path) -> None:
    """Nothing more is written once the caller has had enough, and no receipt is given."""
    seen = 0

    def stop(nbytes: int) -> None:
        nonlocal seen
        seen += nbytes
        raise InterruptedError

    job = make_jobs(plan_of(parents, ""), tmp_path)[0]
    make_parts([job], tmp_path)
    with pytest.raises(InterruptedError):
        run_job(job, stop)
    assert 0 < seen < job.nbytes / 2


def test_a_parents_file_that_was_replaced_is_not_read(tmp_path: Path) -> None:
    """A job knows size and time of the files it was planned with, and names the one that differs."""
    base = synthetic.make(tmp_path / "v3", 1, shards=1)
    (job,) = make_jobs(plan_of({"v3": base}, ""), tmp_path / "child")
    (tmp_path / "child").mkdir()
    shard = base / "model.safetensors"
    shard.write_bytes(shard.read_bytes() + b"\0")
    with pytest.raises(ChangedError, match=r"v3/model\.safetensors: has changed since the plan was made"):
        run_job(job, ignore)


# ----------------------------------------------------------------------------------------------- sinks


class Memory:
    """A sink that keeps everything, and how often each byte was written."""

    def __init__(self) -> None:
        self.data: dict[str, bytearray] = {}
        self.times: dict[str, Any] = {}

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        self.data.setdefault(tensor.name, bytearray(tensor.nbytes))[start : start + len(data)] = data
        self.times.setdefault(tensor.name, np.zeros(tensor.nbytes, int))[start : start + len(data)] += 1

    def copy(self, run: Run, reader: Reader) -> None:
        data = reader.read(run.start, run.nbytes)
        for tensor, start, first, last in run.slices(0, run.nbytes):
            self.write(tensor, start, data[first:last])


@pytest.mark.parametrize("rules", ["", MIX_ALL])
def test_a_unit_is_written_byte_for_byte_once(parents: Pair, rules: str, tmp_path: Path) -> None:
    """Any sink gets every byte of every tensor exactly once, the same that a merge puts into files."""
    plan = plan_of(parents, rules)
    merge_parents(plan, tmp_path / "child")
    sink = Memory()
    for job in make_jobs(plan, tmp_path):
        with Inputs(job.roots, job.signatures) as inputs:
            assert [row for row, _ in make_units(job.rows, inputs, sink, allow_nonfinite=False)] == list(job.rows)
    assert all((times == 1).all() for times in sink.times.values())
    child = stored(tmp_path / "child")
    assert {name: bytes(data) for name, data in sink.data.items()} == {name: d for name, (_, _, d) in child.items()}


@pytest.mark.parametrize("rules", ["", R1T, MIX_ALL])
def test_neighbours_that_write_directly_share_pages(
    parents: Pair, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small jobs side by side, whole pages past the page cache and the ends through it: the bytes of one large job."""
    merge_parents(plan_of(parents, rules), tmp_path / "whole")
    opened: list[int] = []
    real = os.open

    def opening(path: Any, flags: int, mode: int = 0o777) -> int:
        opened.append(flags)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr("chimerakit.stores.part._DIRECT", 4096)
    monkeypatch.setattr("chimerakit.stores.part.STAGE", 3 * 4096)
    merge_parents(plan_of(parents, rules, segment_nbytes=30_000), tmp_path / "cut", runner=Threads(4))
    assert any(flags & os.O_DIRECT for flags in opened)
    found = {name: data for name, data in contents(tmp_path / "cut").items() if not name.startswith(".")}
    assert found == contents(tmp_path / "whole")  # what is hidden is not removed while os.open is not the system's


def test_linked_files_are_never_opened_for_writing(
    parents: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --link a file of the child is a parent's own: its bytes are read, for their digests, and that is all."""
    linked = {path.stat().st_ino for root in parents.values() for path in root.iterdir()}
    real = os.open

    def opening(path: Any, flags: int, mode: int = 0o777) -> int:
        fd = real(path, flags, mode)
        assert os.fstat(fd).st_ino not in linked or not flags & (os.O_WRONLY | os.O_RDWR), path
        return fd

    plan = plan_of(parents, "- {take: r1, tensors: model.norm.weight}")
    monkeypatch.setattr(os, "open", opening)
    merge_parents(plan, tmp_path / "child", link=True)
    weights = [path for path in (tmp_path / "child").iterdir() if path.suffix == ".safetensors"]
    assert sum(path.stat().st_nlink == 2 for path in weights) == len(weights) - 1


# ------------------------------------------------------------------------------------ very wide matrices

WIDE = synthetic.CONFIG | {
    "hidden_size": 700,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "n_routed_experts": 2,
    "moe_intermediate_size": 140,
    "num_nextn_predict_layers": 0,
}


def wide_pair(root: Path, storage: str, config: dict[str, Any]) -> Pair:
    made = {}
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed, storage, config=config, mtp=False)
        made[name] = synthetic.write_checkpoint(root / name, tensors, synthetic.config_of(storage, config), shards=1)
    return made


@pytest.mark.parametrize("storage", ["fp8", "e8m0"])
def test_matrices_wider_than_a_panel_give_the_same_bytes(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Panels that are not in storage order change neither bytes nor digests, which are then read back."""
    pair = wide_pair(tmp_path, storage, WIDE)
    whole = merge(pair, MIX_ALL, tmp_path / "whole", sha256=True).manifest
    monkeypatch.setattr("chimerakit.plan.panels.BLOCKED_COLS", 256)
    cut = merge(pair, MIX_ALL, tmp_path / "cut", sha256=True).manifest
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")
    for mine, theirs in zip(cut.units, whole.units, strict=True):
        assert (mine.tensors, mine.sha256, mine.outcome) == (theirs.tensors, theirs.sha256, theirs.outcome)
        assert (mine.rms_error or 0) == pytest.approx(theirs.rms_error or 0, rel=1e-5)


@pytest.mark.parametrize("flat", [1, 1000])
def test_short_runs_of_plain_weights_give_the_same_bytes(
    flat: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storages without blocks go by runs of weights; how long these are does not show."""
    small = WIDE | {"hidden_size": 24, "vocab_size": 5, "moe_intermediate_size": 5, "q_lora_rank": 5}
    pair = wide_pair(tmp_path, "bf16", small)
    merge(pair, MIX_ALL, tmp_path / "whole")
    monkeypatch.setattr("chimerakit.plan.panels.FLAT_WEIGHTS", flat)
    merge(pair, MIX_ALL, tmp_path / "cut")
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")


@pytest.mark.slow
def test_a_matrix_of_seventy_thousand_columns_equals_the_naive_merge(tmp_path: Path) -> None:
    """Wider than a panel, without any patching."""
    config = WIDE | {"hidden_size": 70_000, "n_routed_experts": 1, "moe_intermediate_size": 2, "q_lora_rank": 130}
    small = {"kv_lora_rank": 2, "qk_rope_head_dim": 2, "v_head_dim": 1, "qk_nope_head_dim": 2, "vocab_size": 1}
    pair = wide_pair(tmp_path, "fp8", config | small)
    rules = '- {mix: {r1: 0.75}, tensors: "*.q_a_proj.weight"}'
    merge(pair, rules, tmp_path / "child")
    name = "model.layers.0.self_attn.q_a_proj.weight"
    both = {"v3": 0.25, "r1": 0.75}
    expected = naive.merge(pair, "v3", lambda n: both if n == name else {"v3": 1.0})
    child = stored(tmp_path / "child")
    for each in (name, name + "_scale_inv"):
        assert child[each][2] == naive.bytes_of(expected[each])[1]


# ------------------------------------------------------------------------------------------ NaN, infinity

Poison = Callable[[dict[str, Any]], None]


def _set(name: str, value: float) -> Poison:
    def poison(tensors: dict[str, Any]) -> None:
        tensors[name].reshape(-1)[-1] = value

    return poison


def _code(code: int) -> Poison:
    def poison(tensors: dict[str, Any]) -> None:
        tensors[UNIT].view(np.uint8)[70, 199] = code

    return poison


def _exponent(tensors: dict[str, Any]) -> None:
    tensors[UNIT + "_scale_inv"].view(np.uint8)[0, 1] = 0xFF


POISONS: dict[str, tuple[str, Poison, int]] = {
    "a BF16 NaN": ("bf16", _set(UNIT, np.nan), 1),
    "a BF16 infinity": ("bf16", _set(UNIT, -np.inf), 1),
    "an F16 NaN": ("f16", _set(UNIT, np.nan), 1),
    "an F32 infinity": ("f32", _set(UNIT, np.inf), 1),
    "an FP8 NaN": ("fp8", _code(0x7F), 1),
    "an FP8 NaN with a sign": ("ue8m0", _code(0xFF), 1),
    "an infinite scale": ("fp8", _set(UNIT + "_scale_inv", np.inf), 72 * 72),
    "a NaN scale": ("fp8", _set(UNIT + "_scale_inv", np.nan), 72 * 72),
    "a NaN exponent": ("e8m0", _exponent, 72 * 72),
}


def poisoned_pair(root: Path, storage: str, poison: Poison, whose: tuple[str, ...]) -> Pair:
    made = {}
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed, storage)
        if name in whose:
            poison(tensors)
        made[name] = synthetic.write_checkpoint(root / name, tensors, synthetic.config_of(storage))
    return made


@pytest.mark.parametrize(
    ("kind", "whose"),
    [*((kind, ("r1",)) for kind in POISONS), ("a BF16 NaN", ("v3",)), ("an FP8 NaN", ("v3", "r1"))],
)
def test_what_is_not_finite_is_not_mixed(kind: str, whose: tuple[str, ...], tmp_path: Path) -> None:
    """The refusal names the unit and whoever brought it, and leaves no manifest."""
    storage, poison, _ = POISONS[kind]
    pair = poisoned_pair(tmp_path, storage, poison, whose)
    with pytest.raises(NonFiniteError) as refusal:
        merge(pair, MIX, tmp_path / "child")
    assert str(refusal.value) == (
        f"{UNIT}: NaN or infinity in {' and '.join(map(repr, whose))}\n"
        "  to do:    leave the unit out of the rule, or go on with --allow-nonfinite"
    )
    assert not (tmp_path / "child/chimerakit.json").exists()


@pytest.mark.parametrize("kind", POISONS)
def test_what_is_not_finite_is_counted_when_allowed(kind: str, tmp_path: Path) -> None:
    """The receipt and manifest count the values; the unit's other values and all other units are as without them."""
    storage, poison, count = POISONS[kind]
    pair = poisoned_pair(tmp_path / "bad", storage, poison, ("r1",))
    clean = poisoned_pair(tmp_path / "good", storage, poison, ())
    merged = merge(pair, MIX, tmp_path / "child", allow_nonfinite=True)
    merge(clean, MIX, tmp_path / "clean")
    assert merged.manifest.allow_nonfinite
    assert {u.unit: u.nonfinite for u in merged.manifest.units if u.nonfinite} == {UNIT: count or 72 * 72}
    child, expected = stored(tmp_path / "child"), stored(tmp_path / "clean")
    assert {n for n in child if child[n] != expected[n]} <= {UNIT, UNIT + "_scale_inv"}
    found = values(child, UNIT)
    if storage in ("bf16", "f16", "f32"):
        assert (~np.isfinite(found)).sum() == count
        is_same = found == values(expected, UNIT)
        assert is_same.sum() == found.size - count
    else:  # the first block of columns has nothing bad in it
        assert np.array_equal(found[:, :128], values(expected, UNIT)[:, :128])


def test_what_is_not_finite_is_not_converted(tmp_path: Path) -> None:
    """output.dtype decodes, so it looks as well; the base is named."""
    pair = poisoned_pair(tmp_path, "fp8", _code(0x7F), ("v3",))
    with pytest.raises(NonFiniteError, match=rf"^{UNIT}: NaN or infinity in 'v3'\n"):
        merge({"v3": pair["v3"]}, "", tmp_path / "child", output="dtype: bf16")


def test_values_too_large_for_the_childs_storage_are_refused(tmp_path: Path) -> None:
    """Finite parents whose value has no place in F16: the storage is blamed, not a parent."""
    pair = poisoned_pair(tmp_path, "bf16", _set(UNIT, 1e5), ("r1",))
    with pytest.raises(NonFiniteError) as refusal:
        merge(pair, MIX, tmp_path / "child", output="dtype: f16")
    assert str(refusal.value).startswith(f"{UNIT}: the result is too large for F16, though every parent is finite\n")


def test_a_refused_merge_can_be_finished_by_another_recipe(tmp_path: Path) -> None:
    """Following the hint works: --force with a rule that leaves the unit out."""
    pair = poisoned_pair(tmp_path, "bf16", _set(UNIT, np.nan), ("r1",))
    with pytest.raises(NonFiniteError):
        merge(pair, MIX, tmp_path / "child")
    merge(pair, f'- {{take: v3, tensors: "{UNIT}"}}\n{MIX}', tmp_path / "child", force=True)
    assert stored(tmp_path / "child")[UNIT] == stored(pair["v3"])[UNIT]


def test_a_failing_job_stops_the_others(tmp_path: Path) -> None:
    """After the first refusal no further job gets a receipt."""
    pair = poisoned_pair(tmp_path, "bf16", _set("model.layers.1.mlp.experts.0.gate_proj.weight", np.nan), ("r1",))
    plan = plan_of(pair, MIX, segment_nbytes=1)
    with pytest.raises(NonFiniteError):
        merge_parents(plan, tmp_path / "child", runner=Threads(1))
    number = next(i for i, row in enumerate(plan.rows) if row.kind == "mix" and ".experts.0.gate" in row.unit)
    assert receipts(tmp_path / "child") == set(range(number))


@pytest.mark.parametrize("output", ["", "dtype: bf16"])
def test_scalars_and_empty_tensors_are_mixed_like_any_other(output: str, tmp_path: Path) -> None:
    """A tensor without sides is one weight; one without elements is none, also in FP8."""
    pair = {}
    flat = "model.layers.0.mlp.up_proj.weight"
    for seed, name in enumerate(("v3", "r1")):
        tensors = synthetic.tensors_of(seed, "fp8")
        tensors["model.scalar"] = np.array(float(seed), ml_dtypes.bfloat16)
        tensors["model.empty"] = np.zeros((3, 0), np.float32)
        tensors[flat] = np.zeros((0, 200), ml_dtypes.float8_e4m3fn)
        tensors[flat + "_scale_inv"] = np.zeros((0, 2), np.float32)
        pair[name] = synthetic.write_checkpoint(tmp_path / name, tensors, synthetic.config_of("fp8"))
    merge(pair, MIX_ALL, tmp_path / "child", output=output)
    child = stored(tmp_path / "child")
    assert values(child, "model.scalar").tolist() == 0.75
    assert child["model.empty"] == ("F32", (3, 0), b"")
    assert child[flat] == ("BF16" if output else "F8_E4M3", (0, 200), b"")
