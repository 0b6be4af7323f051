"""A Ray cluster: what is a runner's promise holds there, too; and memory, backpressure, errors, machines that die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from chimerakit.errors import CheckpointError, ClusterError, MissingExtraError, PlanError
from chimerakit.events import Event, JobDone, Report, Started
from chimerakit.merge import merge_parents
from chimerakit.plan.memory import Needs
from chimerakit.runners.local import Threads
from chimerakit.runners.ray import Ray
from tests.durability.kinds import make_parents
from tests.merging import contents, receipts
from tests.runners.engines import MIX, Slowed, Weighed, everything

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of sockets and processes that it leaves to the collector
]
NEEDS = Needs(process=100 << 20, records=0, job=10 << 20)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    make_parents(root, "fp8")
    return root


@pytest.fixture(scope="module")
def alone(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The child that one thread makes."""
    child = tmp_path_factory.mktemp("alone") / "child"
    merge_parents(MIX.plan(parents), child, runner=Threads(1))
    return contents(child)


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """Ray on this machine, with so little memory that it shows."""
    import ray

    ray.init(num_cpus=4, _memory=1 << 30, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Number(Struct, frozen=True):
    """A job."""

    value: int
    folder: Path
    nbytes: int = 1


def numbers(count: int, folder: Path) -> list[Number]:
    return [Number(value, folder) for value in range(count)]


def begin_and_end(job: Number, report: Report) -> int:
    """Leaves a mark for as long as it runs; returns how many marks it saw."""
    mark = job.folder / str(job.value)
    mark.touch()
    time.sleep(0.2)
    seen = len(list(job.folder.iterdir()))
    mark.unlink()
    report(job.value)
    return seen


# ------------------------------------------------------------------------------------------ one machine


def test_ray_gives_what_one_thread_gives(machine: None, parents: Path, tmp_path: Path) -> None:
    """Children byte for byte, and whatever is found out about them."""
    for name in ("one", "ray"):
        (tmp_path / name).mkdir()
    expected, found = everything(parents, tmp_path / "one", Threads(1)), everything(parents, tmp_path / "ray", Ray())
    for what, right in expected.items():
        assert found[what] == right, what


def test_what_jobs_report_is_told(machine: None, tmp_path: Path) -> None:
    """All bytes that all jobs report arrive here."""
    told = list[int]()
    list(Ray().workers(NEEDS).run(begin_and_end, numbers(6, tmp_path), told.append))
    assert sorted(told) == list(range(6))


def test_memory_decides_how_many_jobs_run(machine: None, tmp_path: Path) -> None:
    """A machine of four cores and a GiB runs one job at a time that takes 590 MiB, and two that take 410."""
    large = Needs(process=100 << 20, records=0, job=190 << 20)
    for needs, most in ((large, 1), (NEEDS, 2)):
        workers = Ray().workers(needs)
        assert workers.count == most
        seen = list(workers.run(begin_and_end, numbers(9, tmp_path), lambda _: None))
        assert max(seen) == most


def test_no_process_takes_more_than_its_job_asks_for(machine: None, parents: Path, tmp_path: Path) -> None:
    """Whatever the verb, Ray's own part included: what is asked of Ray is what the machine needs."""
    weights = tmp_path / "weights"
    weights.mkdir()
    everything(parents, tmp_path, Weighed(Ray(), weights))
    found = [[int(part) for part in file.name.split("-")] for file in weights.iterdir()]
    assert len(found) > 30
    assert all(50 << 20 < peak <= asked for peak, asked, _ in found), max(found)


def test_a_job_that_no_machine_has_memory_for_is_refused(machine: None) -> None:
    """Before anything is handed out, with both numbers; and so is one that is larger than what is allowed."""
    with pytest.raises(PlanError, match=r"takes up to 2\d{3} MB; 1074 MB are allowed"):
        Ray(max_memory=1 << 40).workers(Needs(process=0, records=0, job=2 << 30))
    with pytest.raises(PlanError, match="MB; 210 MB are allowed"):
        Ray(max_memory=200 << 20).workers(NEEDS)


def test_no_more_is_handed_out_than_can_soon_begin(
    machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand jobs only twice as many as can run are with Ray at a time; the others are not even sent."""
    import ray

    most, wait = 0, ray.wait

    def watched(refs: list[Any], **options: Any) -> Any:
        nonlocal most
        most = max(most, len(refs))
        return wait(refs, **options)

    monkeypatch.setattr(ray, "wait", watched)
    workers = Ray().workers(NEEDS)
    results = workers.run(begin_and_end, numbers(1000, tmp_path), lambda _: None)
    for _ in range(5):
        next(results)
    results.close()  # type: ignore[attr-defined]
    assert most == 2 * workers.count
    time.sleep(1)
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == begun  # nothing begins after the caller has left


def raise_checkpoint_error(job: Number, report: Report) -> None:
    if job.value == 3:
        raise CheckpointError("can't be read", where="some/file", expected="bytes", found="none")


def raise_zero_division(job: Number, report: Report) -> float:
    return 1 / (job.value - 3)


def test_an_error_is_the_same_with_the_name_of_the_machine(machine: None, tmp_path: Path) -> None:
    """The class and every line of the message are those that a thread raises; one line is added."""
    with pytest.raises(CheckpointError) as here:
        list(Threads(1).workers(NEEDS).run(raise_checkpoint_error, numbers(9, tmp_path), lambda _: None))
    with pytest.raises(CheckpointError) as there:
        list(Ray().workers(NEEDS).run(raise_checkpoint_error, numbers(9, tmp_path), lambda _: None))
    host = os.uname().nodename
    assert str(there.value).startswith(f"{here.value}\n  machine:  {host} (")


def test_an_unexpected_error_says_where_it_was_raised(machine: None, tmp_path: Path) -> None:
    """Its class stays, and its notes hold the machine and the trace from there."""
    with pytest.raises(ZeroDivisionError) as found:
        list(Ray().workers(NEEDS).run(raise_zero_division, numbers(9, tmp_path), lambda _: None))
    assert "in raise_zero_division" in found.value.__notes__[0]
    assert found.value.__notes__[0].startswith(f"on {os.uname().nodename} (")


def kill_its_process_once(job: Number, report: Report) -> int:
    mark = job.folder / f"killed-{job.value}"
    if job.value == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job.value


def test_a_job_whose_process_dies_runs_again(machine: None, tmp_path: Path) -> None:
    """As by the kernel, out of memory: the job comes again, and all results are there."""
    found = list(Ray().workers(NEEDS).run(kill_its_process_once, numbers(5, tmp_path), lambda _: None))
    assert sorted(found) == list(range(5))
    assert (tmp_path / "killed-2").exists()


@pytest.mark.parametrize("damage", ["a parent that is lost", "a place that others do not see"])
def test_nothing_half_built_looks_finished(
    damage: str, machine: None, parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """An error on a machine leaves an unfinished child; once it is mended the next call ends in the same bytes."""
    child, plan = tmp_path / "child", MIX.plan(parents)

    def spoil(event: Event) -> None:
        if isinstance(event, Started) and event.work == "merging":
            spoiled.rename(spoiled.with_name("elsewhere"))

    files = sorted((parents / "r1 fp8").glob("*.safetensors"))
    spoiled = files[-1] if "parent" in damage else child / ".chimerakit/plan.json"
    with pytest.raises(Exception, match="machine: ") as refused:
        merge_parents(plan, child, runner=Ray(), listener=spoil)
    assert str(spoiled if "parent" in damage else child) in str(refused.value)
    assert not (child / "chimerakit.json").exists()
    assert not (child / "config.json").exists()
    spoiled.with_name("elsewhere").rename(spoiled)
    merge_parents(plan, child, runner=Ray())
    assert contents(child) == alone


# ------------------------------------------------------------------------------------------ many machines


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three machines of one core each, as Ray's own tests have them."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_machine_that_dies_in_the_middle_changes_nothing(
    cluster: Any, parents: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Three machines merge; one is killed while it works: its jobs run elsewhere, and the child is the same."""
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    marks = tmp_path / "marks"
    marks.mkdir()
    lost = machines[0].node_id
    killed = 0

    def kill(event: Event) -> None:
        nonlocal killed
        works = {mark.name.split("-", 1)[1] for mark in marks.glob("begun-*")} - {
            mark.name.split("-", 1)[1] for mark in marks.glob("ended-*")
        }
        if isinstance(event, JobDone) and not killed and any(mark.startswith(lost) for mark in works):
            killed = sum(mark.startswith(lost) for mark in works)
            cluster.remove_node(machines[0], allow_graceful=False)

    runner = Slowed(Ray(cluster.address), marks, 0.3)
    merge_parents(MIX.plan(parents), tmp_path / "child", runner=runner, listener=kill)
    assert killed > 0
    assert contents(tmp_path / "child") == alone
    assert len({mark.name.split("-")[1] for mark in marks.glob("ended-*")}) >= 2  # not all was done by one of them


def test_no_cluster_is_a_clear_error() -> None:
    """An address where nobody answers is said at once, with what to do; one that is none of a cluster's, too."""
    import ray

    ray.shutdown()
    with pytest.raises(ClusterError, match=r"127.0.0.1:1: no cluster answers"):
        Ray("127.0.0.1:1").workers(NEEDS)
    with pytest.raises(ClusterError, match="run this command there"):
        Ray("ray://127.0.0.1:10001").room(NEEDS)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner can't even be made, so nothing has begun."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"chimerakit\[ray\]"):
        Ray()


INTERRUPTED = """
import sys
from pathlib import Path
from chimerakit.cli.progress import watching
from chimerakit.cli.stop import stop_on_signals
from chimerakit.events import JobDone
from chimerakit.merge import merge_parents
from chimerakit.runners.ray import Ray
from tests.runners.engines import MIX, Slowed

def tell(event):
    if isinstance(event, JobDone):
        print("done", event.job, flush=True)

stop_on_signals()
parents, child, marks = map(Path, sys.argv[1:])
with watching(quiet=True):
    merge_parents(MIX.plan(parents), child, runner=Slowed(Ray(), marks, 0.5), listener=tell)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_cluster_too(number: int, parents: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """The command ends within seconds, no job begins or ends after it, and the next call goes on."""
    marks, child = tmp_path / "marks", tmp_path / "child"
    marks.mkdir()
    command = [sys.executable, "-c", INTERRUPTED, str(parents), str(child), str(marks)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("done")
        process.send_signal(number)
        began = time.monotonic()
        process.wait(timeout=60)
        seconds = time.monotonic() - began
        _, errors = process.communicate(timeout=60)  # Ray's own processes hold these pipes a little longer
    assert seconds < 30  # of which Ray takes some to end what it started
    assert process.returncode == 128 + number
    assert "stopped; run the same command again to go on" in errors
    time.sleep(1)
    before = sorted(marks.iterdir())
    time.sleep(1.5)
    assert sorted(marks.iterdir()) == before
    assert len(receipts(child)) < len(MIX.plan(parents).segments)
    merge_parents(MIX.plan(parents), child, runner=Threads(2))
    assert contents(child) == alone
