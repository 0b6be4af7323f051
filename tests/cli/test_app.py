"""The command line: exit codes, JSON when piped, tables on a terminal, one clear error for a wrong request."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import synthetic
from tests.cli.server import call


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parents")
    return {
        "v3": synthetic.make(root / "v3", 1, "fp8", shards=3),
        "r1": synthetic.make(root / "r1", 2, "fp8", shards=2, shuffle=3),
    }


def run(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """The command with its output piped."""
    return call(*map(str, arguments), cwd=cwd or Path.cwd())


def run_on_terminal(*arguments: object) -> tuple[int, str]:
    """The command on a terminal of 120 columns: exit code, and everything that it shows."""
    main, other = pty.openpty()
    command = [sys.executable, "-m", "chimerakit", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    shown = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    return process.wait(), shown.decode()


def run_until(has_begun: Callable[[], bool], *arguments: object) -> tuple[int, str]:
    """The command, which Ctrl-C stops once it has begun: exit code and error output. Skips where it was too quick."""
    command = [sys.executable, "-m", "chimerakit", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not has_begun():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("this machine was done before the signal came")
    return process.returncode, said


def flags(parents: dict[str, Path]) -> list[str]:
    return [f"--parent={name}={path}" for name, path in parents.items()]


def parse(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_plan_merge_verify_and_table_in_a_pipe_speak_json(tmp_path: Path, parents: dict[str, Path]) -> None:
    """The whole way from a recipe to a proven child, each step exit 0 and one JSON document."""
    recipe = tmp_path / "r1t.yaml"
    recipe.write_text("parents: {v3: , r1: }\nbase: v3\nrules:\n  - take: r1\n    components: routed_experts\n")
    child = tmp_path / "child"
    plan = run("plan", recipe, *flags(parents), "-o", child)
    assert plan.returncode == 0
    assert parse(plan)["rules"][0]["tensors"] == 3 * 4 * 3 * 2  # layers, experts, projections, weight and scale
    assert not child.exists()
    merged = run("merge", recipe, *flags(parents), "-o", child, "--quiet")
    assert (merged.returncode, merged.stderr) == (0, "")
    assert parse(merged)["units"] == {"copied": 99}
    assert parse(run("merge", recipe, *flags(parents), "-o", child, "-q"))["jobs_run"] == 0
    proven = run("verify", child, *flags(parents), "-q")
    assert proven.returncode == 0
    assert parse(proven)["failed"] == []
    table = run("verify", child, "--table", *flags(parents), "-q")
    assert table.returncode == 0
    verdicts = {c["component"]: c["verdicts"] for c in parse(table)["components"]}
    assert verdicts["routed_experts"] == {"= r1": 36}
    assert verdicts["router"] == {"= v3": 6}


def test_a_terminal_gets_tables(tmp_path: Path, parents: dict[str, Path]) -> None:
    """On a terminal there are words and columns, progress goes by, and no JSON."""
    rules = ["--base", "v3", "--take", "r1:routed_experts", "--mix", "r1:shared_experts=0.75"]
    code, shown = run_on_terminal("plan", *flags(parents), *rules)
    assert code == 0
    assert "1. take: r1, components: routed_experts" in shown
    assert "peak memory" in shown
    code, shown = run_on_terminal("merge", *flags(parents), *rules, "-o", tmp_path / "child")
    assert code == 0
    assert "merging" in shown
    assert "90 copied, 9 mixed units" in shown
    code, shown = run_on_terminal("verify", tmp_path / "child", *flags(parents))
    assert "tensors proven against the parents: mixed" in shown
    code, shown = run_on_terminal("verify", tmp_path / "child", "--table", "--detail", *flags(parents))
    assert code == 0
    assert "mixed ~ 0.25 v3 + 0.75 r1" in shown


def test_a_finding_is_exit_1(tmp_path: Path, parents: dict[str, Path]) -> None:
    """A child that is not what it says ends with 1 and names the file."""
    run("merge", *flags(parents), "--base", "v3", "-o", tmp_path / "child", "-q")
    (tmp_path / "child" / "LICENSE").write_text("another")
    done = run("verify", tmp_path / "child", "-q")
    assert done.returncode == 1
    assert parse(done)["failed"][0]["subject"] == "LICENSE"
    code, shown = run_on_terminal("verify", tmp_path / "child", "-q")
    assert code == 1
    assert "FAILED  LICENSE" in shown
    other = synthetic.make(tmp_path / "other", 9, "fp8")
    assert run("verify", other, "--table", *flags(parents), "-q").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml: there is no such recipe"),
        (["plan", "--parent", "v3"], "expected: --parent NAME=PATH"),
        (["plan", "--parent", "v3=/nowhere"], "/nowhere: there is no such file or folder"),
        (["plan", "--parent", "v3=V3", "--parent", "v3=V3"], "is given twice"),
        (["plan", "--parent", "v3=V3", "--parent", "r1=R1"], "which parent is the base?"),
        (["plan", "--parent", "v3=V3", "--base", "v2"], "did you mean 'v3'?"),
        (
            ["plan", "--parent", "v3=V3", "--parent", "r1=R1", "--base", "v3", "--take", "r1"],
            "--take r1:routed_experts",
        ),
        (
            ["plan", "--parent", "v3=V3", "--parent", "r1=R1", "--base", "v3", "--mix", "r1:all=x"],
            "the share is no number",
        ),
        (["plan", "--parent", "v3=V3", "--dtype", "int4"], "unknown dtype 'int4'"),
        (["plan", "r.yaml", "--base", "v3"], "--base can't be used with a recipe"),
        (["merge", "--parent", "v3=V3", "-o", "V3/child"], "lies inside the parent 'v3'"),
        (["merge", "--parent", "v3=V3", "-o", "."], "holds the parent 'v3'"),
        (["merge", "--parent", "v3=V3", "-o", "x", "--digest", "md5"], "unknown digest 'md5'"),
        (["verify", "V3"], "there is no manifest"),
        (["verify", "V3", "--table"], "--table compares with parents"),
        (["verify", "V3", "--codes"], "--codes and --detail belong to --table"),
        (["demo", "--family", "V3"], "the tiny family is not there"),
        (["verify"], "Missing argument"),
    ],
)
def test_a_wrong_request_is_one_error_and_exit_2(
    tmp_path: Path, parents: dict[str, Path], arguments: list[str], message: str
) -> None:
    """What was wrong, on standard error, without a traceback; nothing on standard output."""
    (tmp_path / "V3").symlink_to(parents["v3"])
    (tmp_path / "R1").symlink_to(parents["r1"])
    (tmp_path / "r.yaml").write_text("parents: {v3: V3}\nbase: v3\n")
    if "." in arguments:  # the folder around a parent must be around the real one
        (tmp_path / "V3").unlink()
        synthetic.make(tmp_path / "V3", 1)
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_names_from_files_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Escape codes in tensor names are shown as text."""
    tensors = synthetic.tensors_of(1)
    tensors["\x1b[2Jevil"] = tensors["model.norm.weight"]
    root = synthetic.write_checkpoint(tmp_path / "v3", tensors, synthetic.config_of("bf16"), shards=1)
    code, shown = run_on_terminal("plan", f"--parent=v3={root}")
    assert code == 0
    assert "\x1b[2J" not in shown
    assert r"\x1b[2Jevil" in shown


def test_version_and_help_are_there() -> None:
    """`--version` says the package's version; every verb explains itself."""
    assert run("--version").stdout.startswith("chimerakit 0.")
    for verb in ("plan", "merge", "verify", "demo"):
        assert "Usage: " in run(verb, "--help").stdout


def test_ctrl_c_stops_soon_and_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT in the middle ends with 130 and one line; the next call finishes the child."""
    big = {f"model.layers.0.tensor.{i}": np.zeros((1024, 4096), np.float32) for i in range(24)}
    root = synthetic.write_checkpoint(tmp_path / "v3", big, synthetic.config_of("bf16"), shards=1)
    child = tmp_path / "child"
    command = ["merge", f"--parent=v3={root}", "-o", child, "--threads=1"]
    stopped = run_until((child / "model.safetensors.part").exists, *command)
    assert stopped == (130, "stopped; run the same command again to go on\n")
    assert not (child / "chimerakit.json").exists()
    assert run(*command, "-q").returncode == 0
    assert (child / "chimerakit.json").exists()


def test_closed_streams_are_no_traceback(tmp_path: Path, parents: dict[str, Path]) -> None:
    """With standard output closed the exit code still says what came of it."""
    command = f"{sys.executable} -m chimerakit plan --parent=v3={parents['v3']} --json >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_plan_looks_into_a_finished_child(tmp_path: Path, parents: dict[str, Path]) -> None:
    """`plan -o` says what `merge -o` would: a child of a sister checkpoint is not this one."""
    rules = ["--base", "v3", "--take", "r1:routed_experts"]
    run("merge", *flags(parents), *rules, "-o", tmp_path / "child", "-q")
    assert run("plan", *flags(parents), *rules, "-o", tmp_path / "child").returncode == 0
    sister = {**parents, "r1": synthetic.make(tmp_path / "sister", 5, "fp8", shards=2, shuffle=3)}
    done = run("plan", *flags(sister), *rules, "-o", tmp_path / "child")
    assert done.returncode == 2
    assert "parents with the same headers and other weights" in done.stderr


# ------------------------------------------------------------------------------------- many machines


def test_shards_and_a_finish_make_the_child(parents: dict[str, Path], tmp_path: Path) -> None:
    """Each says what it did and what comes then; the end is the child of one command."""
    words = ["merge", *flags(parents), "--base=v3", "--take=r1:routed_experts", "-o"]
    child, alone = tmp_path / "child", tmp_path / "alone"
    assert run(*words, alone).returncode == 0
    for index in (1, 0):
        done = run(*words, child, f"--shard={index}/2")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["jobs_run"] + said["jobs_reused"] <= said["jobs_in_all"]
    code, shown = run_on_terminal(*words, child, "--shard=0/2", "--quiet")
    assert code == 0
    assert "had been done before" in shown or "0 of 1 jobs are done" in shown
    assert "the same command with --finish in place of --shard" in shown
    assert run(*words, child, "--finish").returncode == 0
    assert {f.name: f.read_bytes() for f in child.iterdir()} == {f.name: f.read_bytes() for f in alone.iterdir()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shard=2/2"], "error: --shard 2/2: can't be read"),
        (["--shard=0/2", "--finish"], "error: --shard, --finish, --force: can't be used together"),
        (["--finish", "--force"], "error: --shard, --finish, --force: can't be used together"),
        (["--finish"], "not every job is done"),
        (["--runner=slurm"], "error: --runner slurm: is no runner"),
        (["--runner=ray", "--threads=2"], "error: --threads: belongs to threads"),
        (["--runner=ray:ray://host:10001"], "error: ray://host:10001: jobs are given out by a machine of the cluster"),
    ],
)
def test_wrong_requests_of_many_machines_are_refused(
    words: list[str], says: str, parents: dict[str, Path], tmp_path: Path
) -> None:
    """With one error, and before anything is made."""
    made = run("merge", *flags(parents), "--base=v3", "--take=r1:routed_experts", "-o", tmp_path / "child", *words)
    assert made.returncode == 2
    assert says in made.stderr
    assert made.stderr.count("error: ") == 1
    assert not (tmp_path / "child").exists()
