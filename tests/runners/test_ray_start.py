"""Two machines as people start them: `ray start` twice, in folders of their own, and the command line beside them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from chimerakit.merge import merge_parents
from chimerakit.runners.local import Threads
from tests.durability.kinds import make_parents
from tests.merging import contents, run_python
from tests.runners.engines import MIX

pytestmark = pytest.mark.slow
RULE = "--mix=r1:routed_experts=0.75"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}
"""What machines of one cluster know each other by."""
SCRIPT = """
import sys
from pathlib import Path
from chimerakit.merge import merge_parents
from chimerakit.runners.ray import Ray
from tests.runners.engines import MIX, Slowed

address, parents, child, marks = sys.argv[1:]
merge_parents(MIX.plan(Path(parents)), child, runner=Slowed(Ray(address), Path(marks), 0.2))
"""


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    make_parents(root, "fp8")
    return root


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the first of two machines of one core listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    short = Path(tempfile.mkdtemp(prefix="ray-"))  # names of sockets are short
    first = [*ray, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={short}"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, short, ignore_errors=True)
        for number, command in enumerate((first, [*ray, f"--address=127.0.0.1:{port}"])):
            folder = tmp_path_factory.mktemp(f"machine{number}")
            environment = os.environ | TOKEN | {"PYTHONPATH": str(Path(__file__).parents[2])}
            log = stack.enter_context((folder / "log").open("w"))
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.wait, timeout=60)
            stack.callback(process.terminate)
            until = time.monotonic() + 60
            while "Ray runtime started" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"


def chimerakit(folder: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    """The command in a folder of its own."""
    command = [sys.executable, "-m", "chimerakit", *map(str, words)]
    environment = os.environ | TOKEN
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_both_machines_work_and_the_child_is_the_same(address: str, parents: Path, tmp_path: Path) -> None:
    """Each of them does jobs, and every file is the one that a thread makes."""
    marks, child = tmp_path / "marks", tmp_path / "child"
    marks.mkdir()
    done = run_python(SCRIPT, address, parents, child, marks, **TOKEN)
    assert done.returncode == 0, done.stderr
    assert len({mark.name.split("-")[1] for mark in marks.glob("ended-*")}) == 2
    merge_parents(MIX.plan(parents), tmp_path / "alone", runner=Threads(1))
    assert contents(child) == contents(tmp_path / "alone")


def test_every_verb_takes_the_cluster(address: str, parents: Path, tmp_path: Path) -> None:
    """merge, verify, explain, compare and sweep with --runner, from a folder that is nobody's."""
    pair = [f"--parent={name}={parents / f'{name} fp8'}" for name in ("v3", "r1")]
    who, child = f"--runner=ray:{address}", tmp_path / "child"
    made = chimerakit(tmp_path, "merge", *pair, "--base=v3", RULE, "-o", child, who)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["jobs_run"] > 0
    alone = chimerakit(tmp_path, "merge", *pair, "--base=v3", RULE, "-o", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    assert contents(child) == contents(tmp_path / "alone")
    assert json.loads(chimerakit(tmp_path, "verify", child, *pair, who).stdout)["ok"]
    explained = json.loads(chimerakit(tmp_path, "explain", child, *pair, who).stdout)
    assert explained["recipe"]["rules"] == [{"mix": {"r1": 0.75}, "components": "routed_experts"}]
    sides = [parents / f"{name} fp8" for name in ("v3", "r1")]
    here, there = (json.loads(chimerakit(tmp_path, "compare", *sides, *more).stdout) for more in ((), (who,)))
    assert here == there
    recipe = tmp_path / "zoo.yaml"
    recipe.write_text(
        "parents: {v3: , r1: }\nbase: v3\nrules: [{mix: {r1: {sweep: [0.25, 0.75]}}, components: routed_experts}]\n"
    )
    swept = chimerakit(tmp_path, "sweep", recipe, *pair, "-o", tmp_path / "zoo", who)
    assert swept.returncode == 0, swept.stderr
    assert chimerakit(tmp_path, "verify", tmp_path / "zoo/children/r1-0.25", *pair).returncode == 0


def test_an_error_names_the_machine_and_ends_with_2(address: str, parents: Path, tmp_path: Path) -> None:
    """Like any other error of the command, with one more line; the child looks unfinished."""
    spoiled = tmp_path / "r1"
    shutil.copytree(parents / "r1 fp8", spoiled)
    file = sorted(spoiled.glob("*.safetensors"))[-1]
    with file.open("r+b") as opened:  # NaN in a scale, which only reading tells
        opened.seek(-4, 2)
        opened.write(b"\xff\xff\xff\xff")
    pair = [f"--parent=v3={parents / 'v3 fp8'}", f"--parent=r1={spoiled}"]
    made = chimerakit(
        tmp_path, "merge", *pair, "--base=v3", "--mix=r1:all=0.5", "-o", tmp_path / "c", f"--runner=ray:{address}"
    )
    assert made.returncode == 2
    assert made.stderr.count("error: ") == 1
    assert f"\n  machine:  {os.uname().nodename} (" in made.stderr
    assert "Traceback" not in made.stderr
    assert not (tmp_path / "c" / "chimerakit.json").exists()
