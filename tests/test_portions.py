"""Portions: together they are the merge, whoever does them, in whatever order, at once or again; the last call finishes."""

import itertools
import random
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chimerakit.child import Child
from chimerakit.errors import OutputError, RecipeError
from chimerakit.events import Event, FileDone
from chimerakit.merge import merge_parents
from chimerakit.plan import make_jobs
from chimerakit.portions import Portion, finish_merge, merge_portion, parse_portion, portion_of
from chimerakit.receipts import Receipts, do_job
from chimerakit.records import Header, Job
from chimerakit.runners.local import Threads
from tests.durability.kinds import KINDS, Kind, make_parents
from tests.merging import LeftError, contents, leave_after, receipts

pytestmark = pytest.mark.usefixtures("impatient")

COPY, LINKED, SHA256 = KINDS["fp8 mix"], KINDS["copy, linked"], KINDS["copy, sha256"]
THREE = [Portion(index, 3) for index in range(3)]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    for storage in ("fp8", "bf16"):
        make_parents(root, storage)
    return root


@pytest.fixture(scope="module")
def alone(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The child that one call makes."""
    child = tmp_path_factory.mktemp("alone") / "child"
    COPY.merge(parents, child)
    return contents(child)


def job(number: int, nbytes: int, file: str) -> Job:
    """A job that only has a size, in a file."""
    return Job(number, {}, {}, "", {file: nbytes}, (Header(file, nbytes, text=""),), ())


JOBS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3)), max_size=60).map(
    lambda sizes: [
        job(number, nbytes, f"{file}.safetensors")
        for number, ((nbytes, _), file) in enumerate(
            zip(sizes, itertools.accumulate(step for _, step in sizes), strict=True)
        )
    ]
)

# ------------------------------------------------------------------------------------------ who does what


@given(JOBS, st.integers(1, 9))
@example([job(0, 5, "a"), job(1, 0, "a")], 1)
def test_every_job_is_in_exactly_one_portion(jobs: list[Job], count: int) -> None:
    """And in the order of the plan."""
    found = [portion_of(jobs, Portion(index, count)) for index in range(count)]
    assert sorted(j.id for part in found for j in part) == [j.id for j in jobs]
    assert all(part == sorted(part, key=lambda j: j.id) for part in found)


@given(JOBS, st.integers(1, 9))
def test_portions_are_about_as_large_as_each_other(jobs: list[Job], count: int) -> None:
    """None has more than its share and one job, or, where files are left whole, one file."""
    files = {name: sum(j.nbytes for j in jobs if name in j.sizes) for j in jobs for name in j.sizes}
    is_by_file = len(files) >= 4 * count
    most = max([*files.values(), 0]) if is_by_file else max([j.nbytes for j in jobs], default=0)
    for index in range(count):
        part = portion_of(jobs, Portion(index, count))
        assert sum(j.nbytes for j in part) <= sum(j.nbytes for j in jobs) / count + most
        if is_by_file:
            others = {name for j in jobs if j not in part for name in j.sizes}
            assert others.isdisjoint(name for j in part for name in j.sizes)


@pytest.mark.parametrize(
    "text", ["", "1", "3/3", "-1/3", "0/0", "a/3", "1/b", "1/3/5", "\N{ARABIC-INDIC DIGIT ONE}/3", "1.0/3"]
)
def test_what_is_no_portion_is_refused(text: str) -> None:
    """With what it should look like."""
    with pytest.raises(RecipeError, match="i/n with i from 0 to n - 1"):
        parse_portion(text)


def test_a_portion_is_read_as_it_is_written() -> None:
    """From 0 on."""
    assert parse_portion("0/1") == Portion(0, 1)
    assert parse_portion("7/8") == Portion(7, 8)


# ------------------------------------------------------------------------------------------ the child


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order_gives_the_child_of_one_call(
    order: tuple[int, ...], parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Every file, manifest included; and each portion does its own jobs only."""
    plan, child, done = COPY.plan(parents), tmp_path / "child", 0
    for index in order:
        found = merge_portion(plan, child, THREE[index], runner=Threads(2))
        assert found.jobs_reused == 0
        assert found.jobs_in_all == len(plan.segments)
        done += found.jobs_run
        assert len(receipts(child)) == done
        assert not (child / "chimerakit.json").exists()
        assert not list(child.glob("*.safetensors"))
    assert done == len(plan.segments)
    merged = finish_merge(plan, child)
    assert (merged.jobs_run, merged.jobs_reused) == (0, done)
    assert contents(child) == alone


@pytest.mark.parametrize("kind", [LINKED, SHA256], ids=["linked", "sha256"])
def test_options_hold_for_all_portions(kind: Kind, parents: Path, tmp_path: Path) -> None:
    """Hard links and sha256 are as in one call."""
    plan = kind.plan(parents)
    options: dict[str, Any] = {"link": kind.link, "sha256": kind.sha256}
    merge_parents(plan, tmp_path / "one", **options)
    for portion in THREE:
        merge_portion(plan, tmp_path / "three", portion, **options)
    finish_merge(plan, tmp_path / "three", **options)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    is_linked = {file.name: file.stat().st_nlink > 1 for file in (tmp_path / "one").iterdir()}
    assert {file.name: file.stat().st_nlink > 1 for file in (tmp_path / "three").iterdir()} == is_linked
    assert any(is_linked.values()) == kind.link


def test_a_portion_that_was_interrupted_goes_on(parents: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """What it had done is not done again; nor is anything if it is called once more."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    with pytest.raises(LeftError):
        merge_portion(plan, child, THREE[1], runner=Threads(1), listener=leave_after(3 << 20))
    begun = len(receipts(child))
    assert begun > 0
    assert merge_portion(plan, child, THREE[1]).jobs_reused == begun
    assert merge_portion(plan, child, THREE[1]).jobs_run == 0
    for index in (0, 2):
        merge_portion(plan, child, THREE[index])
    finish_merge(plan, child)
    assert contents(child) == alone


def test_nothing_is_finished_while_jobs_are_missing(parents: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """It is refused with how many and which, and the folder is as it was; a plain merge does the rest."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    for index in (0, 2):
        merge_portion(plan, child, THREE[index])
    before = contents(child)
    with pytest.raises(OutputError, match=r"not every job is done(.|\n)* missing: \d+, \d+"):
        finish_merge(plan, child)
    assert contents(child) == before
    with pytest.raises(OutputError, match="not every job is done"):
        finish_merge(plan, tmp_path / "nothing")
    merge_parents(plan, child)
    assert contents(child) == alone


def test_a_merge_that_was_begun_alone_can_go_on_in_portions(
    parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Also where files have their names already."""
    plan, child = COPY.plan(parents), tmp_path / "child"

    def leave(event: Event) -> None:
        if isinstance(event, FileDone):
            raise LeftError

    with pytest.raises(LeftError):
        merge_parents(plan, child, runner=Threads(1), listener=leave)
    assert list(child.glob("*.safetensors"))
    for portion in THREE:
        merge_portion(plan, child, portion)
    finish_merge(plan, child)
    assert contents(child) == alone


def test_what_is_damaged_is_made_again_when_finishing(parents: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """A byte that flipped after its receipt is found, as all bytes are read."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    for portion in THREE:
        merge_portion(plan, child, portion)
    file = sorted(child.glob("*.part"))[-1]
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))
    assert finish_merge(plan, child).jobs_run == 1
    assert contents(child) == alone


def test_a_finished_child_is_left_as_it_is(parents: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """By a portion that comes late, and by finishing again."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    COPY.merge(parents, child)
    assert merge_portion(plan, child, THREE[0]).jobs_run == 0
    assert finish_merge(plan, child).jobs_run == 0
    assert contents(child) == alone


def test_other_options_or_plans_are_refused(parents: Path, tmp_path: Path) -> None:
    """What others have done is not touched."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    merge_portion(plan, child, THREE[0])
    before = contents(child)
    with pytest.raises(OutputError, match="was begun with other options"):
        merge_portion(plan, child, THREE[1], sha256=True)
    with pytest.raises(OutputError, match="holds an unfinished child of another plan"):
        merge_portion(KINDS["copy"].plan(parents), child, THREE[1])
    assert contents(child) == before


def test_others_wait_while_a_portion_is_worked_on(parents: Path, tmp_path: Path) -> None:
    """Another portion does not; a whole merge and finishing are refused until it has ended."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    merge_portion(plan, child, THREE[0])
    at_work = Child(plan, child, together=True)
    merge_portion(plan, child, THREE[1])
    merge_portion(plan, child, THREE[2])
    for refused in (merge_parents, finish_merge):
        with pytest.raises(OutputError, match="another process is working on this folder"):
            refused(plan, child)
    at_work.close()
    finish_merge(plan, child)
    at_work = Child(COPY.plan(parents), tmp_path / "other")
    with pytest.raises(OutputError, match="another process is working on this folder"):
        merge_portion(plan, tmp_path / "other", THREE[0])
    at_work.close()


# ------------------------------------------------------------------------------------------ too late


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on several machines, whose file system does not pass locks on."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)


class Late(threading.Thread):
    """Somebody who does a job, and stands still at its first report until it is told to go on."""

    def __init__(self, receipts: Receipts, job: Job):
        super().__init__(daemon=True)
        self._receipts, self._job, self._may_go_on = receipts, job, threading.Event()
        self.has_begun = threading.Event()
        self.start()
        assert self.has_begun.wait(10)

    def run(self) -> None:
        with suppress(OutputError):
            do_job(self._receipts, self._job, self._report)
        self.has_begun.set()

    def _report(self, _: int) -> None:
        self.has_begun.set()
        assert self._may_go_on.wait(60)

    def go_on(self) -> None:
        self._may_go_on.set()
        self.join(60)
        assert not self.is_alive()


@pytest.mark.parametrize("is_finished", [False, True], ids=["before the manifest", "after it"])
def test_whoever_comes_late_spoils_nothing(
    is_finished: bool, parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Any job, of somebody who was cut off while others did it, too, goes on when all else is done: the child is the same."""
    plan = COPY.plan(parents)
    for number in range(len(plan.segments)):
        path = tmp_path / str(number)
        child = Child(plan, path)
        jobs = make_jobs(plan, path.resolve())
        child.reopen(jobs)
        late = Late(child.receipts, jobs[number])
        receipts = [do_job(child.receipts, job, lambda _: None) for job in jobs]
        for shard in plan.shards:
            child.finish_shard(shard.name)
        if is_finished:
            child.finish(receipts)
        child.close()
        late.go_on()
        merge_parents(plan, path)
        assert contents(path) == alone
        shutil.rmtree(path)


def test_a_portion_that_is_late_leaves_a_finished_child_alone(
    lockless: None, parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """It looked for receipts while another machine finished, and found none: it is refused before it renames anything."""
    plan, path = COPY.plan(parents), tmp_path / "child"
    for portion in THREE:
        merge_portion(plan, path, portion)
    late = Child(plan, path, together=True)
    finish_merge(plan, path)
    with pytest.raises(OutputError, match="is not the folder in which this child was begun"):
        late.reopen(make_jobs(plan, path.resolve()))
    late.close()
    assert contents(path) == alone


def test_the_second_that_finishes_is_told(
    lockless: None, parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Of two machines that finish a child at once, and both give files their names; nothing is written any more."""
    plan, path = COPY.plan(parents), tmp_path / "child"
    for portion in THREE:
        merge_portion(plan, path, portion)
    jobs = make_jobs(plan, path.resolve())
    first, second = Child(plan, path), Child(plan, path)
    receipts = [first.receipts.find(job, lambda _: None) for job in jobs]
    for child in (first, second):
        for shard in plan.shards:
            child.finish_shard(shard.name)
    first.finish([receipt for receipt in receipts if receipt is not None])
    with pytest.raises(OutputError, match="is not the folder in which this child was begun"):
        second.finish([receipt for receipt in receipts if receipt is not None])
    for child in (first, second):
        child.close()
    assert contents(path) == alone


def test_a_file_that_is_taken_away_is_noticed_in_the_end(parents: Path, tmp_path: Path) -> None:
    """No manifest is written over a child that lacks one."""
    plan, path = COPY.plan(parents), tmp_path / "child"
    for portion in THREE:
        merge_portion(plan, path, portion)
    child = Child(plan, path)
    receipts = [child.receipts.find(job, lambda _: None) for job in make_jobs(plan, path.resolve())]
    with pytest.raises(OutputError, match="was taken away"):
        child.finish([receipt for receipt in receipts if receipt is not None])
    child.close()
    assert not (path / "chimerakit.json").exists()


def test_finishing_needs_no_space_for_links(parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it ask for it."""
    plan, path = LINKED.plan(parents), tmp_path / "child"
    for portion in THREE:
        merge_portion(plan, path, portion, link=True)
    monkeypatch.setattr("chimerakit.output.free_nbytes", lambda _: 17 << 20)
    finish_merge(plan, path, link=True)


# ------------------------------------------------------------------------------------------ at once


PORTION = """
import sys
from pathlib import Path
from typing import Any
from chimerakit.portions import merge_portion, parse_portion
from chimerakit.runners.local import Threads
from tests.durability.kinds import KINDS

parents, child, *portions = sys.argv[1:]
for portion in portions:
    merge_portion(KINDS["fp8 mix"].plan(Path(parents)), child, parse_portion(portion), runner=Threads(1))
"""


def start(parents: Path, child: Path, *portions: str) -> "subprocess.Popen[str]":
    """Portions, one after the other, in a process of their own."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", PORTION, str(parents), str(child), *portions]
    return subprocess.Popen(command, cwd=root, env={"PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "portions", [["0/3", "1/3", "2/3"], ["0/3", "0/3", "1/3", "2/3", "2/3"]], ids=["once", "twice"]
)
def test_portions_at_once_give_the_child_of_one_call(
    portions: list[str], parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Processes that begin at the same moment, some of them the same portion, do not get in each other's way."""
    child = tmp_path / "child"
    for process in [start(parents, child, portion) for portion in portions]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    finish_merge(COPY.plan(parents), child)
    assert contents(child) == alone


@pytest.mark.slow
def test_portions_that_are_killed_at_random_lose_nothing(
    parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Again and again, all three at once, each killed at some moment; then once more to the end."""
    chance = random.Random("portions")
    for number in range(5):
        child = tmp_path / str(number)
        for _ in range(2):
            running = [start(parents, child, f"{index}/3") for index in range(3)]
            for process in running:
                try:
                    process.wait(timeout=chance.uniform(0.2, 1.2))
                except subprocess.TimeoutExpired:
                    process.kill()
            for process in running:
                process.communicate()
        for process in [start(parents, child, f"{index}/3") for index in range(3)]:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
        finish_merge(COPY.plan(parents), child)
        assert contents(child) == alone
        shutil.rmtree(child)
