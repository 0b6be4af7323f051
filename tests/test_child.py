"""The child on disk: what is refused, what survives a kill, what is written again, what the manifest says."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from chimerakit.errors import ChangedError, CheckpointError, ManifestError, OutputError
from chimerakit.events import Event, FileDone, JobDone, Said
from chimerakit.manifest import read_manifest
from chimerakit.merge import merge_parents
from chimerakit.plan import make_jobs
from chimerakit.records import Job, Plan
from chimerakit.runners.local import Threads
from tests import synthetic
from tests.merging import MIX, MIX_ALL, R1T, contents, interrupt, plan_of, stored

SEGMENT = 30_000
Pair = dict[str, Path]


pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("parents")
    v3 = synthetic.make(root / "v3", 1, "fp8", shards=4)
    (v3 / "figures").mkdir()
    (v3 / "figures/one.svg").write_text("<svg/>")
    return {"v3": v3, "r1": synthetic.make(root / "r1", 2, "fp8", shards=2, shuffle=5)}


@pytest.fixture(scope="module")
def plan(parents: Pair) -> Plan:
    return plan_of(parents, MIX, segment_nbytes=SEGMENT)


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a child that was made without interruption."""
    child = tmp_path_factory.mktemp("whole") / "child"
    merge_parents(plan, child)
    return contents(child)


def jobs_of(plan: Plan) -> list[Job]:
    return make_jobs(plan, Path("unused"))


def nbytes_of(plan: Plan) -> int:
    return sum(job.nbytes for job in jobs_of(plan))


# -------------------------------------------------------------------------------------------- finished


def test_a_finished_child_holds_nothing_but_its_files(plan: Plan, whole: dict[str, bytes], parents: Pair) -> None:
    """The base's files, README.md and the manifest; no part files, no workspace."""
    assert set(whole) == {*contents(parents["v3"]), "chimerakit.json"}


def test_the_manifest_tells_every_byte(plan: Plan, whole: dict[str, bytes], tmp_path: Path) -> None:
    """xxh3-128 of each tensor, header and other file is that of the bytes on disk, and every tensor is there."""
    merge_parents(plan, tmp_path / "child")
    manifest = read_manifest(tmp_path / "child")

    def digest(data: bytes) -> str:
        return str(xxhash.xxh3_128_hexdigest(data))

    recorded = {name: d for unit in manifest.units for name, d in unit.tensors.items()}
    assert recorded == {name: digest(data) for name, (_, _, data) in stored(tmp_path / "child").items()}
    for name, weight in manifest.weights.items():
        assert weight.nbytes == len(whole[name])
        assert weight.header == digest(whole[name][: weight.header_nbytes])
    others = {n: (len(d), digest(d)) for n, d in whole.items() if n not in manifest.weights and n != "chimerakit.json"}
    assert {n: (f.nbytes, f.digest) for n, f in manifest.files.items()} == others


def test_the_manifest_says_who_each_unit_is_from(plan: Plan, whole: dict[str, bytes]) -> None:
    """Parents with their shares and the number of the rule, base first, for every unit."""
    for unit in json.loads(whole["chimerakit.json"])["units"]:
        is_mixed = ".mlp.experts." in unit["unit"]
        assert (unit["rule"], unit["outcome"]) == ((0, "mixed") if is_mixed else (None, "copied"))
        assert list(unit["parents"].items()) == ([("v3", 0.25), ("r1", 0.75)] if is_mixed else [("v3", 1.0)])


def test_a_second_call_on_a_finished_child_does_nothing(plan: Plan, whole: dict[str, bytes], tmp_path: Path) -> None:
    """It says so, runs no job, and touches no file."""
    child = tmp_path / "child"
    merge_parents(plan, child)
    before = {p: p.stat().st_mtime_ns for p in child.rglob("*")}
    events: list[Event] = []
    merged = merge_parents(plan, child, listener=events.append)
    assert (merged.jobs_run, merged.jobs_reused, merged.nbytes_written) == (0, len(plan.segments), 0)
    assert merged.manifest == read_manifest(child)
    assert [e.text for e in events if isinstance(e, Said)] == [
        f"{child} is this child already; `chimerakit verify --parent ...` proves all of it"
    ]
    assert {p: p.stat().st_mtime_ns for p in child.rglob("*")} == before


def test_files_are_renamed_when_their_jobs_are_done(plan: Plan, tmp_path: Path) -> None:
    """At each FileDone the file has its name and its full size, and there is no manifest yet."""
    child = tmp_path / "child"
    done = []

    def look(event: Event) -> None:
        if isinstance(event, FileDone):
            done.append(event.name)
            assert not (child / (event.name + ".part")).exists()
            assert (child / event.name).stat().st_size == sizes[event.name]
            assert not (child / "chimerakit.json").exists()

    sizes = {shard.name: shard.nbytes for shard in plan.shards}
    merge_parents(plan, child, listener=look)
    assert sorted(done) == sorted(sizes)


# -------------------------------------------------------------------------------------------- resuming


def test_a_kill_while_the_workspace_is_removed_leaves_a_finished_child(
    plan: Plan, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """With its manifest there and plan.json gone, what is left of the workspace is swept away by the next call."""
    child = tmp_path / "child"
    merge_parents(plan, child)
    (child / ".chimerakit/receipts").mkdir(parents=True)
    (child / ".chimerakit/receipts/3.json").write_text("{}")
    assert merge_parents(plan, child).jobs_run == 0
    assert not (child / ".chimerakit").exists()
    assert contents(child) == whole


def test_reused_jobs_are_announced(plan: Plan, tmp_path: Path) -> None:
    """Each job is told once, as reused or not, and the bytes of both kinds add up to the whole."""
    done = interrupt(plan, tmp_path / "child", after=nbytes_of(plan) // 2)
    events: list[Event] = []
    merge_parents(plan, tmp_path / "child", listener=events.append)
    jobs = [e for e in events if isinstance(e, JobDone)]
    assert sorted(e.job for e in jobs) == list(range(len(plan.segments)))
    assert {e.job for e in jobs if e.reused} == done
    assert sum(e.nbytes for e in jobs) == nbytes_of(plan)


def first_range(job: Job) -> tuple[str, int]:
    tensor = next(t for row in job.rows for t in row.outputs if t.nbytes)
    return tensor.file, tensor.start


def flip(child: Path, name: str, offset: int) -> None:
    path = child / name if (child / name).exists() else child / (name + ".part")
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def _flip_weight(child: Path, job: Job) -> None:
    flip(child, *first_range(job))


def _flip_header(child: Path, job: Job) -> None:
    flip(child, job.headers[0].file, 20)


def _receipt(child: Path, job: Job) -> Path:
    return child / f".chimerakit/receipts/{job.id}.json"


def _cut_receipt(child: Path, job: Job) -> None:
    file = _receipt(child, job)
    file.write_bytes(file.read_bytes()[:-9])


def _swap_receipt(child: Path, job: Job) -> None:
    other = next(p for p in _receipt(child, job).parent.iterdir() if p != _receipt(child, job))
    shutil.copy(other, _receipt(child, job))


DAMAGE: dict[str, Callable[[Path, Job], None]] = {
    "a bit of its weights": _flip_weight,
    "a bit of its header": _flip_header,
    "a lost receipt": lambda child, job: _receipt(child, job).unlink(),
    "half a receipt": _cut_receipt,
    "another job's receipt": _swap_receipt,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_job_runs_again(plan: Plan, whole: dict[str, bytes], damage: str, tmp_path: Path) -> None:
    """A job whose receipt or bytes do not hold is not trusted: it alone runs again, also in a file that was renamed."""
    child = tmp_path / "child"
    done = interrupt(plan, child, after=nbytes_of(plan) * 3 // 4)
    job = jobs_of(plan)[0]
    assert {0, 1} <= done
    assert job.headers
    assert (child / first_range(job)[0]).exists()
    DAMAGE[damage](child, job)
    merged = merge_parents(plan, child)
    assert merged.jobs_run == len(plan.segments) - len(done) + 1
    assert contents(child) == whole


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_all_jobs_of_a_file_of_the_wrong_size_run_again(
    plan: Plan, whole: dict[str, bytes], change: str, tmp_path: Path
) -> None:
    """A weight file that is gone, cut or grown is made anew."""
    child = tmp_path / "child"
    done = interrupt(plan, child, after=nbytes_of(plan) * 3 // 4)
    name = first_range(jobs_of(plan)[0])[0]
    file = child / name
    if change == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + (100 if change == "longer" else -100))
    merged = merge_parents(plan, child)
    lost = {job.id for job in jobs_of(plan) if name in job.sizes} & done
    assert len(lost) > 1
    assert merged.jobs_run == len(plan.segments) - len(done) + len(lost)
    assert contents(child) == whole


def test_a_damaged_job_behind_a_manifest_takes_the_manifest_away(plan: Plan, tmp_path: Path) -> None:
    """A child that was killed between manifest and clean-up is unfinished again when a job of it must run again."""
    child = tmp_path / "child"
    interrupt(plan, child, after=nbytes_of(plan))
    (child / "chimerakit.json").write_text("{}")
    _flip_weight(child, jobs_of(plan)[0])
    seen = []

    def look(event: Event) -> None:
        seen.append((child / "chimerakit.json").exists())

    merge_parents(plan, child, listener=lambda e: look(e) if isinstance(e, FileDone) else None)
    assert seen
    assert not any(seen)


# -------------------------------------------------------------------------------------------- refusals


def assert_refused(plan: Plan, path: Path, message: str, **options: Any) -> None:
    """An OutputError with this text, and not a byte changed at the path."""
    before = contents(path) if path.is_dir() else None
    with pytest.raises(OutputError) as refusal:
        merge_parents(plan, path, **options)
    assert str(refusal.value) == message
    assert (contents(path) if path.is_dir() else None) == before


@pytest.mark.parametrize(
    ("place", "how"),
    [("r1", "is the parent"), ("r1/child", "lies inside the parent"), ("r1/../r1/a/b", "lies inside the parent")],
)
def test_a_child_in_a_parents_place_is_refused(parents: Pair, plan: Plan, place: str, how: str) -> None:
    """A folder that is a parent or lies in one; nothing is made there."""
    path = parents["r1"].parent / place
    before = contents(parents["r1"])
    assert_refused(
        plan,
        path,
        f"{path}: the output folder {how} 'r1'\n  found:    {parents['r1']}\n  to do:    choose another folder",
    )
    assert contents(parents["r1"]) == before
    assert not (parents["r1"] / "child").exists()


def test_a_child_around_a_parent_is_refused(parents: Pair, plan: Plan) -> None:
    """A folder that holds a parent."""
    path = parents["v3"].parent
    assert_refused(
        plan,
        path,
        f"{path}: the output folder holds the parent 'v3'\n  found:    {parents['v3']}\n"
        "  to do:    choose another folder",
    )


def test_a_child_in_a_parent_behind_a_symlink_is_refused(parents: Pair, plan: Plan, tmp_path: Path) -> None:
    """The real folders are compared, not their names."""
    (tmp_path / "link").symlink_to(parents["r1"])
    path = tmp_path / "link/child"
    assert_refused(
        plan,
        path,
        f"{path}: the output folder lies inside the parent 'r1'\n  found:    {parents['r1']}\n"
        "  to do:    choose another folder",
    )


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_an_output_folder_that_is_a_symlink_is_refused(plan: Plan, target: str, tmp_path: Path) -> None:
    """Output is never written through a symlink, dangling or not."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "child").symlink_to(tmp_path / target)
    path = tmp_path / "child"
    assert_refused(plan, path, f"{path}: is a symbolic link; output is never written through one", force=True)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_an_output_folder_that_is_a_file_is_refused(plan: Plan, tmp_path: Path) -> None:
    """A file in the child's place stays."""
    (tmp_path / "child").write_text("mine")
    assert_refused(plan, tmp_path / "child", f"{tmp_path / 'child'}: is not a folder", force=True)
    assert (tmp_path / "child").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_something_else_in_it_is_refused(plan: Plan, force: bool, tmp_path: Path) -> None:
    """Also with --force, which deletes children only."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_text("not a child's, for there is no manifest")
    assert_refused(
        plan,
        tmp_path,
        f"{tmp_path}: the output folder holds something else\n  found:    model.safetensors, notes.txt\n"
        "  to do:    choose an empty folder",
        force=force,
    )


def test_a_finished_child_of_another_plan_is_refused(parents: Pair, plan: Plan, tmp_path: Path) -> None:
    """It would be overwritten; --force says that this is meant."""
    merge_parents(plan_of(parents, R1T), tmp_path / "child")
    assert_refused(
        plan,
        tmp_path / "child",
        f"{tmp_path / 'child'}: holds a finished child of another plan\n  to do:    --force starts over",
    )


@pytest.mark.parametrize("rules", [MIX_ALL, MIX])
def test_an_unfinished_child_of_another_plan_is_refused(parents: Pair, plan: Plan, rules: str, tmp_path: Path) -> None:
    """Another recipe, or the same one cut into other jobs."""
    interrupt(plan_of(parents, rules, segment_nbytes=50_000), tmp_path / "child", after=100_000)
    assert_refused(
        plan,
        tmp_path / "child",
        f"{tmp_path / 'child'}: holds an unfinished child of another plan\n  to do:    --force starts over",
    )


@pytest.mark.parametrize("option", ["sha256", "allow_nonfinite"])
def test_an_unfinished_child_of_other_options_is_refused(plan: Plan, option: str, tmp_path: Path) -> None:
    """Receipts made otherwise can't be mixed with new ones."""
    interrupt(plan, tmp_path / "child", after=100_000)
    assert_refused(
        plan,
        tmp_path / "child",
        f"{tmp_path / 'child'}: was begun with other options\n  to do:    use the same ones, or --force",
        **{option: True},
    )


@pytest.fixture
def own_pair(parents: Pair, tmp_path: Path) -> Pair:
    """Parents that a test may change."""
    for name, path in parents.items():
        shutil.copytree(path, tmp_path / name)
    return {name: tmp_path / name for name in parents}


def test_an_unfinished_child_of_a_changed_parent_is_refused(own_pair: Pair, tmp_path: Path) -> None:
    """A parent's file that was modified since: what was written may not fit the rest."""
    interrupt(plan_of(own_pair, MIX, segment_nbytes=SEGMENT), tmp_path / "child", after=100_000)
    os.utime(next(own_pair["r1"].glob("*.safetensors")), ns=(1, 1))
    assert_refused(
        plan_of(own_pair, MIX, segment_nbytes=SEGMENT),
        tmp_path / "child",
        f"{tmp_path / 'child'}: a parent's file has changed since this child was begun\n"
        "  to do:    --force starts over",
    )


def test_a_parent_that_changes_after_planning_is_refused(own_pair: Pair, tmp_path: Path) -> None:
    """Its shard is named with both times, before any of its weights are used."""
    plan = plan_of(own_pair, MIX)
    shard = own_pair["r1"] / "model-00001-of-000002.safetensors"
    os.utime(shard, ns=(1, 1))
    with pytest.raises(ChangedError, match="has changed since the plan was made") as refusal:
        merge_parents(plan, tmp_path / "child")
    assert str(shard) in str(refusal.value)
    assert f"found:    {shard.stat().st_size} bytes, modified at 1 ns" in str(refusal.value)
    assert not (tmp_path / "child/chimerakit.json").exists()


def test_a_folder_that_another_process_works_on_is_refused(plan: Plan, tmp_path: Path) -> None:
    """The lock is on the folder itself and goes with the process that holds it."""
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert_refused(plan, tmp_path, f"{tmp_path}: another process is working on this folder")
    os.close(fd)
    merge_parents(plan, tmp_path)


def test_too_little_disk_is_refused(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written, with both numbers."""
    monkeypatch.setattr("chimerakit.output.free_nbytes", lambda _: 1000)
    needed = plan.output_nbytes + (16 << 20)
    path = tmp_path / "child"
    assert_refused(
        plan, path, f"{path}: too little disk space\n  expected: {needed} bytes\n  found:    1000 bytes free"
    )
    assert not path.exists()


def test_what_is_on_the_disk_already_needs_no_space(
    plan: Plan, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that is half written needs room for the rest only."""
    child = tmp_path / "child"
    interrupt(plan, child, after=nbytes_of(plan) // 2)
    there = sum(p.stat().st_blocks * 512 for p in child.glob("*") if p.is_file())
    assert there > 100_000
    free = plan.output_nbytes + (16 << 20) - there
    monkeypatch.setattr("chimerakit.output.free_nbytes", lambda _: free - 1)
    assert_refused(
        plan, child, f"{child}: too little disk space\n  expected: {free} bytes\n  found:    {free - 1} bytes free"
    )
    monkeypatch.setattr("chimerakit.output.free_nbytes", lambda _: free)
    merge_parents(plan, child)
    assert contents(child) == whole


@pytest.mark.parametrize("suffix", ["", ".part"])
def test_output_is_not_written_through_a_symlinked_file(plan: Plan, suffix: str, tmp_path: Path) -> None:
    """A symlink in the place of a weight file is refused, and what it points to stays."""
    child, victim = tmp_path / "child", tmp_path / "victim"
    interrupt(plan, child, after=100_000)
    victim.write_text("mine")
    link = child / (plan.shards[-1].name + suffix)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    with pytest.raises(OutputError, match="is a symbolic link; output is never written through one") as refusal:
        merge_parents(plan, child)
    assert str(refusal.value).startswith(f"{link}: ")
    assert victim.read_text() == "mine"


def test_output_is_not_written_through_a_symlinked_workspace(plan: Plan, tmp_path: Path) -> None:
    """A workspace that is a symlink belongs to somebody else."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "child").mkdir()
    (tmp_path / "child/.chimerakit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link; output is never written through one"):
        merge_parents(plan, tmp_path / "child")
    assert not list((tmp_path / "elsewhere").iterdir())


# --------------------------------------------------------------------------------------------- --force


def test_force_replaces_a_finished_child(parents: Pair, plan: Plan, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Files that only the old child had are gone too."""
    child = tmp_path / "child"
    old = plan_of(parents, R1T, output="shards: by-rule")
    merge_parents(old, child)
    assert {shard.name for shard in old.shards} - {shard.name for shard in plan.shards}
    merge_parents(plan, child, force=True)
    assert contents(child) == whole


@pytest.mark.parametrize("rules", [MIX_ALL, MIX])
def test_force_starts_an_unfinished_child_over(
    parents: Pair, plan: Plan, whole: dict[str, bytes], rules: str, tmp_path: Path
) -> None:
    """Of another plan or of the same: no job is reused."""
    child = tmp_path / "child"
    assert interrupt(plan_of(parents, rules, segment_nbytes=SEGMENT), child, after=300_000)
    merged = merge_parents(plan, child, force=True)
    assert merged.jobs_reused == 0
    assert contents(child) == whole


@pytest.mark.parametrize("is_finished", [True, False])
def test_force_deletes_nothing_that_is_not_the_childs(plan: Plan, is_finished: bool, tmp_path: Path) -> None:
    """With something else beside the old child, both stay."""
    child = tmp_path / "child"
    if is_finished:
        merge_parents(plan, child)
    else:
        interrupt(plan, child, after=100_000)
    (child / "results").mkdir()
    (child / "results/notes.txt").write_text("mine")
    assert_refused(
        plan,
        child,
        f"{child}: the output folder holds something else; nothing was deleted\n  found:    results\n"
        "  to do:    move it away, or choose another folder",
        force=True,
    )


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", "link/victim", ""])
def test_force_deletes_nothing_outside(plan: Plan, name: str, tmp_path: Path) -> None:
    """A manifest that names a file elsewhere is refused whole."""
    child = tmp_path / "child"
    merge_parents(plan, child)
    (tmp_path / "victim").write_text("mine")
    (child / "link").symlink_to(tmp_path)
    manifest = json.loads((child / "chimerakit.json").read_text())
    manifest["files"][name] = {"nbytes": 4, "digest": "0"}
    (child / "chimerakit.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="names a file outside its folder") as refusal:
        merge_parents(plan, child, force=True)
    assert repr(name) in str(refusal.value)
    assert (tmp_path / "victim").read_text() == "mine"
    assert (child / "config.json").exists()


def test_a_kill_while_force_deletes_can_be_gone_on_from(
    plan: Plan, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-deleted child is unfinished, and --force again starts over."""
    child, unlink = tmp_path / "child", Path.unlink
    merge_parents(plan, child)
    count = 0

    def dying(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += path.parent == child and not path.name.endswith(".part")
        if count > 3:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        with pytest.raises(KeyboardInterrupt):
            merge_parents(plan, child, force=True)
    assert 2 < len(contents(child)) < len(whole)
    assert_refused(plan, child, f"{child}: holds an unfinished child of another plan\n  to do:    --force starts over")
    merge_parents(plan, child, force=True)
    assert contents(child) == whole


# ------------------------------------------------------------------------------------- reading manifests


def test_a_folder_without_manifest_is_no_child(tmp_path: Path) -> None:
    """The refusal names the file and the check that needs none."""
    with pytest.raises(ManifestError) as refusal:
        read_manifest(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: there is no manifest\n  expected: chimerakit.json\n"
        "  to do:    compare with its parents: verify --table --parent ..."
    )


def test_an_unfinished_child_has_no_manifest(plan: Plan, tmp_path: Path) -> None:
    """The refusal says that the same merge finishes it."""
    interrupt(plan, tmp_path, after=100_000)
    with pytest.raises(ManifestError) as refusal:
        read_manifest(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: this child is unfinished: it has no manifest yet\n  expected: chimerakit.json\n"
        "  to do:    run the same merge again to finish it"
    )


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000, b'{"format": "1"}'])
def test_a_damaged_manifest_is_refused(text: bytes, tmp_path: Path) -> None:
    """Cut, of another kind, not text, nested without end: one clear error each."""
    (tmp_path / "chimerakit.json").write_bytes(text)
    with pytest.raises(ManifestError, match=r"chimerakit\.json: the manifest can't be read: "):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("key", "expected"), [("format", "format 2, numerics 1"), ("numerics", "format 1, numerics 2")]
)
def test_a_manifest_of_another_version_is_refused(
    whole: dict[str, bytes], key: str, expected: str, tmp_path: Path
) -> None:
    """The refusal says which version wrote it."""
    manifest = json.loads(whole["chimerakit.json"])
    (tmp_path / "chimerakit.json").write_text(json.dumps(manifest | {key: 2}))
    with pytest.raises(ManifestError, match="the manifest is of another version") as refusal:
        read_manifest(tmp_path)
    assert f"found:    {expected}, by chimerakit {manifest['chimerakit']}" in str(refusal.value)
    assert "to do:    use the chimerakit that wrote it" in str(refusal.value)


# ------------------------------------------------------------------------- other weights, other files


def test_a_finished_child_of_a_parent_with_the_same_headers_is_refused(
    plan: Plan, parents: Pair, tmp_path: Path
) -> None:
    """Plans know parents by their headers; a sister checkpoint of the same layout is told apart by its weights."""
    merge_parents(plan, tmp_path / "child")
    sister = synthetic.make(tmp_path / "r1", 3, "fp8", shards=2, shuffle=5)
    other = plan_of({**parents, "r1": sister}, MIX, segment_nbytes=SEGMENT)
    assert other.digest == plan.digest
    with pytest.raises(OutputError, match="a finished child of parents with the same headers and other weights"):
        merge_parents(other, tmp_path / "child")


def test_a_finished_child_without_sha256_is_not_called_one_with(plan: Plan, tmp_path: Path) -> None:
    """Asking for sha256 afterwards is answered with how to get it."""
    merge_parents(plan, tmp_path / "child")
    with pytest.raises(OutputError, match=r"without sha256(?s:.*)--force makes it again"):
        merge_parents(plan, tmp_path / "child", sha256=True)


@pytest.mark.parametrize("parent", ["v3", "r1"])
def test_a_config_that_changes_after_planning_is_refused(own_pair: Pair, parent: str, tmp_path: Path) -> None:
    """The plan rests on every parent's config, copied (v3's is) or not: an edited one is not passed by silently."""
    plan = plan_of(own_pair, R1T)
    config = own_pair[parent] / "config.json"
    config.write_text(config.read_text().replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 1'))
    with pytest.raises(ChangedError, match=r"config\.json: has changed since the plan was made"):
        merge_parents(plan, tmp_path / "child")
    assert not (tmp_path / "child" / "chimerakit.json").exists()


def test_a_file_that_cant_be_read_is_refused_before_weights_are_written(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the child would get is known to be readable before work begins."""
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: can't be read; the child would get it"):
        merge_parents(plan, tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_a_foreign_file_in_an_unfinished_child_is_refused(plan: Plan, tmp_path: Path) -> None:
    """Nothing that the child does not know may hide among its files; hidden files are nobody's business."""
    interrupt(plan, tmp_path / "child", after=nbytes_of(plan) // 2)
    (tmp_path / "child" / ".hidden").write_text("")
    (tmp_path / "child" / "evil.py").write_text("")
    with pytest.raises(OutputError, match=r"holds something else beside the unfinished child(?s:.*)evil\.py"):
        merge_parents(plan, tmp_path / "child")
    (tmp_path / "child" / "evil.py").unlink()
    merge_parents(plan, tmp_path / "child")


def test_a_name_that_no_file_system_takes_is_one_clear_error(plan: Plan, tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(OutputError, match="can't be used: File name too long"):
        merge_parents(plan, tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match="name is not UTF-8"):
        merge_parents(plan, tmp_path / "\udcff")


def test_parents_that_are_files_may_lie_beside_the_child(tmp_path: Path) -> None:
    """A single weight file's folder is not the parent."""
    paths = {}
    for number, name in enumerate(("v3", "r1")):
        paths[name] = tmp_path / f"{name}.safetensors"
        synthetic.write_shard(paths[name], synthetic.tensors_of(number))
    plan = plan_of(paths, "- {take: r1, tensors: '*.experts.*'}")
    merge_parents(plan, tmp_path / "child")
    found, v3, r1 = stored(tmp_path / "child"), stored_in(paths["v3"]), stored_in(paths["r1"])
    assert found == {name: (r1 if ".experts." in name else v3)[name] for name in v3}


def stored_in(file: Path) -> dict[str, Any]:
    only = file.parent / f"only {file.stem}"
    only.mkdir()
    shutil.copy(file, only)
    return stored(only)


def test_a_receipt_is_written_after_its_bytes_are_on_the_disk(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power loss: between the last write of a job and its receipt every file that it wrote is synced."""
    dirty, order = set[str](), list[str]()
    pwrite = os.pwrite

    def name_of(fd: int) -> str:
        return Path(f"/proc/self/fd/{fd}").readlink().name

    def write(fd: int, data: memoryview, offset: int) -> int:
        if name_of(fd).endswith(".safetensors.part"):
            dirty.add(name_of(fd))
        elif name_of(fd).partition(".json.")[0].isdigit():
            order.append(f"receipt with {len(dirty)} unsynced")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "fsync", lambda fd: dirty.discard(name_of(fd)))
    merge_parents(plan, tmp_path / "child", runner=Threads(1))
    assert order == ["receipt with 0 unsynced"] * len(plan.segments)


def test_a_foreign_file_beside_a_finished_child_is_refused(plan: Plan, tmp_path: Path) -> None:
    """A second call does not call a folder this child that `verify` would object to."""
    merge_parents(plan, tmp_path / "child")
    (tmp_path / "child" / "foreign.bin").write_text("")
    with pytest.raises(OutputError, match=r"holds something else beside the child(?s:.*)foreign\.bin"):
        merge_parents(plan, tmp_path / "child")
