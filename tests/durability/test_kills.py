"""SIGKILL at any moment of any kind of merge: the next call ends in the same bytes."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from chimerakit.output import is_finished
from chimerakit.plan import make_jobs
from tests.durability.kinds import KINDS, Kind, make_parents
from tests.effort import examples
from tests.merging import contents, receipts

pytestmark = pytest.mark.usefixtures("impatient")

ROOT = Path(__file__).parents[2]
DRAWN = examples(quick=2, ci=4, prove=30)
"""Kills of each kind of merge, drawn over bytes, calls and time."""
LAST = {"model.safetensors.index.json", "config.json", "chimerakit.json"}
OTHERS = 400_000
"""Bytes of receipts, manifest and other files, at most: less than half a job."""
TURNS = [
    ("os.mkdir", ".chimerakit"),
    ("os.rename", "plan.json"),
    ("os.rename", "1.json"),
    ("os.rename", "{shard}"),
    ("os.rename", "tokenizer.json"),
    ("os.rename", "README.md"),
    ("os.rename", "config.json"),
    ("os.rename", "chimerakit.json"),
    ("os.remove", "plan.json"),
    ("os.rmdir", ".chimerakit"),
]
"""Where a child changes its state."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parents")


@pytest.fixture
def parents(name: str, made: Path) -> Path:
    """The folder of all parents; those of this kind are in it."""
    if not (made / f"r1 {KINDS[name].storage}").exists():
        make_parents(made, KINDS[name].storage)
    return made


def kill(kind: str, parents: Path, output: Path, moments: list[list[list[object]]]) -> None:
    """Leave one dead child for each list of moments; see killer.py."""
    command = [sys.executable, "-m", "tests.durability.killer", kind, str(parents), str(output), json.dumps(moments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr


def drawn_moments(seed: str, number: int) -> list[list[list[object]]]:
    """In turn by calls, bytes and time; every fourth child is killed once more when it goes on."""
    chance, found = random.Random(seed), []
    for turn in range(number):
        how = ("call", "bytes", "time")[turn % 3]
        moments: list[list[object]] = [[how, chance.random()]]
        if turn % 4 == 3:
            moments.append(["call", chance.random()])
        found.append(moments)
    return found


def written_nbytes() -> int:
    """What this process has written so far, by the kernel's count."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def assert_goes_on(kind: Kind, parents: Path, child: Path, whole: dict[str, bytes]) -> None:
    """Nothing half-written looks finished; the next call writes only what has no receipt, and ends in the same bytes."""
    named = {n: d for n, d in contents(child).items() if not n.endswith(".part") and not n.startswith(".chimerakit/")}
    assert [name for name, data in named.items() if data != whole[name]] == []
    if named.keys() & LAST:  # a loader would take it for a model
        assert named.keys() | LAST >= whole.keys()
    plan = kind.plan(parents)
    jobs = make_jobs(plan, child)
    left = [] if is_finished(child) else [job for job in jobs if job.id not in receipts(child)]
    before = written_nbytes()
    merged = kind.merge(parents, child)
    assert merged.jobs_run == len(left)
    assert merged.jobs_reused == len(jobs) - len(left)
    assert merged.nbytes_written == sum(job.nbytes for job in left)
    assert written_nbytes() - before <= merged.nbytes_written + OTHERS
    assert contents(child) == whole


QUICK = "fp8 mix"


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
def test_a_killed_merge_goes_on_to_the_same_bytes(name: str, parents: Path, tmp_path: Path) -> None:
    """Kills drawn over bytes written, calls to the operating system, and time, some of them twice."""
    moments = drawn_moments(name, DRAWN)
    kill(name, parents, tmp_path, moments)
    whole = contents(tmp_path / "whole")
    for number in range(len(moments)):
        assert_goes_on(KINDS[name], parents, tmp_path / str(number), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS if DRAWN > 4 else ["copy, by rule", "fp8 mix"])
def test_a_merge_killed_where_its_state_changes_goes_on(name: str, parents: Path, tmp_path: Path) -> None:
    """Right before and right after each rename and removal by which a child gets on."""
    shard = KINDS[name].plan(parents).shards[1].name
    moments: list[list[list[object]]] = [
        [[when, event, place.format(shard=shard)]] for event, place in TURNS for when in ("before", "after")
    ]
    kill(name, parents, tmp_path, moments)
    whole = contents(tmp_path / "whole")
    for number in range(len(moments)):
        assert_goes_on(KINDS[name], parents, tmp_path / str(number), whole)
