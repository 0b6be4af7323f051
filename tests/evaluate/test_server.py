"""Servers: what they give is read, what they do wrong is borne with, and nobody is asked twice for what is there."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chimerakit.cli.app import app
from chimerakit.errors import EndpointError
from chimerakit.evaluate import Options, Subject, evaluate_models
from chimerakit.evaluate.backends import llama_cpp
from chimerakit.evaluate.backends import server as servers
from chimerakit.evaluate.backends.chat import GarbageError, generated_of
from chimerakit.evaluate.records import Ask, Evaluation, Problem, Scorer, Settings, Task
from tests.effort import examples
from tests.evaluate.chat_server import ChatServer, Handler, naughty, serving

TASK = Task("t", tuple(Problem(str(n), f"{n}+{n % 10}", str(n % 10)) for n in range(40)), Scorer("numeric"))
QUICK = Options(at_once=8, timeout=0.3, retries=6)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server, and clients that are impatient."""
    monkeypatch.setattr(servers, "_FIRST_PAUSE", 0.01)
    with serving() as found:
        yield found


def evaluated(server: ChatServer, output: Path, options: Options = QUICK, **more: Any) -> Evaluation:
    """What the server's model does on the task."""
    return evaluate_models([Subject("m", address=server.address)], [TASK], output, options=options, **more)


def kept(file: Path) -> list[str]:
    """The problems that a file has answers to, in their order."""
    found = []
    for line in file.read_text().split("\n") if file.exists() else ():
        try:
            found.append(json.loads(line)["problem"])
        except (ValueError, KeyError):  # the head, torn lines
            continue
    return found


def test_a_server_is_asked_once_for_each_problem(server: ChatServer, tmp_path: Path) -> None:
    """And a second call asks nothing."""
    found = evaluated(server, tmp_path)
    (measured,) = found.measurements
    assert (measured.accuracy.value, measured.trace_rate.value) == (1, 1)
    assert (measured.model.engine, measured.model.weights) == (server.address, "tiny")
    assert server.asked == dict.fromkeys((p.question for p in TASK.problems), 1)
    assert evaluated(server, tmp_path) == found
    assert sum(server.asked.values()) == 40


def test_what_is_asked_is_what_was_said(server: ChatServer, tmp_path: Path) -> None:
    """Settings, system prompt, model; sampled answers have seeds of their own."""
    task = Task("t", TASK.problems[:2], Scorer("numeric"), system="Be brief.")
    settings = Settings(temperature=0.6, top_p=0.95, max_tokens=77, seed=3)
    subject = Subject("m", address=server.address, served="other")
    evaluate_models([subject], [task], tmp_path, settings=settings, samples=2)
    for body in server.bodies:
        assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("other", 77, 0.6, 0.95)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 1 << 31 for seed in seeds)


def test_the_key_is_sent_and_written_nowhere(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    evaluated(server, tmp_path)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    assert not any("sk-secret" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("address", ["localhost:8000", "http://me:secret@host/v1", "http://host/v1?key=secret"])
def test_an_address_with_a_secret_is_refused(address: str, tmp_path: Path) -> None:
    """It would be written into results; so is what is none."""
    with pytest.raises(EndpointError) as refused:
        evaluate_models([Subject("m", address=address)], [TASK], tmp_path)
    assert "secret" not in str(refused.value)
    assert not any(tmp_path.iterdir())


def test_a_server_that_does_everything_wrong_is_borne_with(server: ChatServer, tmp_path: Path) -> None:
    """Errors, limits, garbage, cut connections, silence: every answer comes in the end, and is kept once."""
    server.manner = naughty(seconds=1.0)
    (measured,) = evaluated(server, tmp_path).measurements
    assert measured.accuracy.value == 1
    assert sorted(kept(tmp_path / "m" / "t.jsonl")) == sorted(p.id for p in TASK.problems)


@pytest.mark.parametrize(
    ("status", "data", "says"),
    [
        (401, {"error": "no key"}, r"the server refuses\n.*401 .*no key"),
        (404, b"not found", r"the server refuses\n.*404 not found"),
        (500, {"error": "oh"}, r"the server does not answer\n.*500 Internal Server Error, 3 times"),
        (200, b"<html>", r"the server does not answer\n.*an answer that is no JSON, 3 times"),
        (200, {"choices": [{"message": {"content": "x"}}]}, "the server's answers are none"),
    ],
)
def test_what_will_not_pass_ends_in_one_error(
    server: ChatServer, status: int, data: Any, says: str, tmp_path: Path
) -> None:
    """Answers that came before are kept, and only the others are asked for by the next call."""

    def manner(handler: Handler, question: str) -> bool:
        if sum(server.answered.values()) < 10:
            return False
        handler.send(status, data)
        return True

    server.manner = manner
    with pytest.raises(EndpointError, match=says):
        evaluated(server, tmp_path, Options(at_once=2, timeout=0.3, retries=2))
    there = kept(tmp_path / "m" / "t.jsonl")
    assert len(there) >= 10
    server.manner = None
    server.asked.clear()
    (measured,) = evaluated(server, tmp_path).measurements
    assert measured.accuracy.value == 1
    questions = {p.id: p.question for p in TASK.problems}
    assert not {questions[problem] for problem in there} & set(server.asked)


def test_a_server_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    """Said with its address."""
    with serving() as server:
        address = server.address
    with pytest.raises(EndpointError, match="the server does not answer"):
        evaluate_models([Subject("m", address=address)], [TASK], tmp_path, options=Options(retries=0))


def test_a_server_with_several_models_is_asked_which(server: ChatServer, tmp_path: Path) -> None:
    """By ADDRESS#MODEL."""
    server.models = ["a", "b"]
    with pytest.raises(EndpointError, match=r"which of the server's models\?\n.*a, b"):
        evaluated(server, tmp_path)


@pytest.mark.parametrize(
    ("message", "usage", "expected"),
    [
        ({"content": "9"}, {"completion_tokens": 2}, ("9", None, 0)),
        ({"content": "9", "reasoning_content": "abcdefgh"}, {"completion_tokens": 30}, ("9", "abcdefgh", 28)),
        ({"content": "9", "reasoning": "x"}, {"completion_tokens": 9}, ("9", "x", 8)),
        (
            {"content": "9", "reasoning_content": "x"},
            {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 5}},
            ("9", "x", 5),
        ),
        ({"content": None, "reasoning_content": "x" * 60}, {"completion_tokens": 60}, ("", "x" * 60, 59)),
        ({"content": "<think>x</think>9"}, {"completion_tokens": 17}, ("<think>x</think>9", None, 15)),
        ({"content": "<think>x"}, {"completion_tokens": 4}, ("<think>x", None, 3)),
    ],
)
def test_reasoning_is_what_the_server_says_or_the_tags(
    message: dict[str, Any], usage: dict[str, Any], expected: tuple[str, str | None, int]
) -> None:
    """Its tokens as the server counts them, else by the share of characters."""
    data = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    said = generated_of(data, Settings(), 1.0, lambda _: None)
    assert (said.text, said.reasoning, said.reasoning_tokens) == expected


@pytest.mark.parametrize(
    ("said", "is_opened"),
    [
        ({"prompt": "<user>?<assistant><think>"}, True),
        ({"prompt": "<user>?<assistant><think>\n"}, True),
        ({"prompt": "<user><think>?<assistant>"}, False),
        ({"prompt": None}, None),
        ({"error": "no template"}, None),
        (["<think>"], None),
        (None, None),
    ],
)
def test_whether_a_template_opens_the_trace_is_seen_in_a_prompt_of_llama_cpps(
    server: ChatServer, said: Any, is_opened: bool | None
) -> None:
    """At its end; nobody knows where there is none."""
    server.template = said
    http = servers.Http(server.address, retries=0)
    assert llama_cpp._is_opened(http, [Ask("1", 0, 0, "Be brief.", "?")], Settings()) is is_opened
    assert llama_cpp._is_opened(http, [], Settings()) is None
    http.close()


def test_traces_that_a_template_opens_are_known_when_they_are_cut_off(server: ChatServer, tmp_path: Path) -> None:
    """By the closing tags of other answers, though the server neither shows its prompts nor cuts traces out."""

    def manner(handler: Handler, question: str) -> bool:
        is_cut = question.startswith("3")  # 11 of the 40
        message = {"content": "3+3=" if is_cut else f"so</think>{question[-1]}"}
        choice = {"message": message, "finish_reason": "length" if is_cut else "stop"}
        handler.send(200, {"choices": [choice], "usage": {"completion_tokens": 8}})
        return True

    server.manner = manner
    (measured,) = evaluated(server, tmp_path).measurements
    assert (measured.trace_rate.value, measured.closed) == (1, 29 / 40)
    assert (measured.truncated, measured.closed_only) == (11 / 40, 29 / 40)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"choices": [{}]},
        {"choices": [{"message": {"content": 5}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}},
    ],
)
def test_garbage_is_no_answer(data: Any) -> None:
    """Of any shape."""
    with pytest.raises(GarbageError):
        generated_of(data, Settings(), 1.0, lambda _: None)


# ------------------------------------------------------------------------------------------ counted


def traces(output: Path) -> list[int]:
    """The tokens of each trace, as they are kept."""
    lines = (output / "m" / "t.jsonl").read_text().splitlines()
    return [json.loads(line)["said"]["reasoning_tokens"] for line in lines if '"said"' in line]


@pytest.mark.parametrize(
    "fail",
    [
        lambda handler: handler.send(503, b""),
        lambda handler: handler.send(429, b"", {"Retry-After": "0"}),
        lambda handler: handler.send(200, b"<html>a proxy's page</html>"),
        lambda handler: handler.cut(),
    ],
)
def test_a_count_that_fails_once_is_asked_for_again(
    server: ChatServer, fail: Callable[[Handler], None], tmp_path: Path
) -> None:
    """And counting goes on: no trace's tokens are estimated."""
    failed: list[str] = []

    def tokenize(handler: Handler, text: str) -> None:
        if len(failed) < 3:
            failed.append(text)
            fail(handler)
        else:
            handler.send(200, {"tokens": [1, 2]})

    server.tokenize = tokenize
    evaluated(server, tmp_path, Options(at_once=2, timeout=0.3))
    assert len(failed) == 3
    assert traces(tmp_path) == [2] * 40


@pytest.mark.parametrize(
    ("status", "data"), [(404, b"no"), (405, b"no"), (501, b"no"), (200, {"error": "no such path"}), (200, [])]
)
def test_a_server_that_does_not_count_is_asked_once(server: ChatServer, status: int, data: Any, tmp_path: Path) -> None:
    """It says so; tokens are estimated."""
    asked: list[str] = []

    def tokenize(handler: Handler, text: str) -> None:
        asked.append(text)
        handler.send(status, data)

    server.tokenize = tokenize
    evaluated(server, tmp_path, Options(at_once=1, timeout=0.3))
    assert len(asked) == 1
    assert min(traces(tmp_path)) > 2


def test_a_text_that_a_server_refuses_to_count_is_estimated_alone(server: ChatServer, tmp_path: Path) -> None:
    """Others are counted."""

    def tokenize(handler: Handler, text: str) -> None:
        handler.send(400, b"too long") if "7+7" in text else handler.send(200, {"count": 2})

    server.tokenize = tokenize
    evaluated(server, tmp_path)
    assert sorted(traces(tmp_path))[:36] == [2] * 36
    assert min(sorted(traces(tmp_path))[36:]) > 2


def test_counts_that_never_come_end_the_call(server: ChatServer, tmp_path: Path) -> None:
    """An estimate among counts would be seen by nobody; the next call asks for what is missing."""
    server.tokenize = lambda handler, text: handler.send(503, b"")
    with pytest.raises(
        EndpointError, match=r"/tokenize: the server does not answer\n.*503 Service Unavailable, 2 times"
    ):
        evaluated(server, tmp_path, Options(at_once=2, timeout=0.3, retries=1))
    server.tokenize = lambda handler, text: handler.send(200, {"count": 2})
    evaluated(server, tmp_path)
    assert traces(tmp_path) == [2] * 40


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("1800", 1800),
        ("86400", 3600),
        ("inf", 3600),
        ("Mon, 23 Nov 2026 12:10:00 GMT", 600),
        ("Sun, 22 Nov 2026 12:00:00 GMT", 0),
        ("Mon, 23 Nov 2037 12:00:00 GMT", 3600),
    ],
)
def test_a_server_is_left_alone_as_long_as_it_asks(
    server: ChatServer, said: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By seconds or by a date, an hour at most; what can't be read is no time."""
    slept: list[float] = []
    clock = SimpleNamespace(sleep=slept.append, time=lambda: 1795435200.0)  # 2026-11-23 12:00 UTC
    monkeypatch.setattr(servers, "time", clock)

    def manner(handler: Handler, question: str) -> bool:
        handler.send(429, b"", {"Retry-After": said})
        return True

    server.manner = manner
    http = servers.Http(server.address, retries=1)
    with pytest.raises(EndpointError, match="429 Too Many Requests, 2 times"):
        http.post("/chat/completions", {"messages": [{"content": "?"}]})
    http.close()
    assert slept == [seconds]


# ------------------------------------------------------------------------------------------- killed


def start(server: ChatServer, folder: Path) -> "subprocess.Popen[bytes]":
    """The command in a process of its own."""
    command = [
        *(sys.executable, "-m", "chimerakit", "evaluate", f"m={server.address}", "--task", str(folder / "t.jsonl")),
        *("--scorer", "numeric", "--at-once", "4", "--timeout", "1", "-o", str(folder / "out"), "--quiet"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM][: examples(quick=1, ci=2, prove=2)])
def test_killed_at_any_moment_nothing_is_lost_and_nothing_asked_twice(
    server: ChatServer, stop: signal.Signals, tmp_path: Path
) -> None:
    """What stands in the file is never asked for again; in the end every answer is there once."""
    lines = [{"id": p.id, "question": p.question, "answer": p.answer} for p in TASK.problems]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = random.Random(stop)
    bad = naughty(seconds=0.05)

    def manner(handler: Handler, question: str) -> bool:
        time.sleep(0.02)
        return question.startswith("1") and bad(handler, question)

    server.manner = manner
    file = tmp_path / "out" / "m" / "t.jsonl"
    questions = {p.id: p.question for p in TASK.problems}
    for _ in range(examples(quick=3, ci=8, prove=40)):
        there = kept(file)
        server.asked.clear()
        process = start(server, tmp_path)
        begun = time.monotonic()
        while not server.asked and process.poll() is None and time.monotonic() - begun < 60:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(stop)
        process.communicate()
        assert not {questions[problem] for problem in there} & set(server.asked)
        assert set(there) <= set(kept(file))
    process = start(server, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    assert sorted(kept(file)) == sorted(questions)
    assert json.loads(out)["measurements"][0]["accuracy"]["value"] == 1


def test_the_command_asks_for_as_many_tokens_as_the_library(server: ChatServer, tmp_path: Path) -> None:
    """So that the one goes on with the other's answers."""
    lines = [{"id": p.id, "question": p.question, "answer": p.answer} for p in TASK.problems]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluated(server, tmp_path / "out")
    arguments = ["evaluate", f"m={server.address}", "--task", str(tmp_path / "t.jsonl"), "--scorer", "numeric"]
    app([*arguments, "-o", str(tmp_path / "out"), "--quiet"], standalone_mode=False)
    assert sum(server.asked.values()) == 40


def test_the_command_says_what_was_measured(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON where nobody watches; models are named by their addresses if not otherwise."""
    (tmp_path / "t.jsonl").write_text('{"id": "1", "question": "1+2", "answer": "2"}\n')
    arguments = ["evaluate", f"{server.address}#tiny", "--task", str(tmp_path / "t.jsonl"), "--scorer", "numeric"]
    app([*arguments, "-o", str(tmp_path / "out"), "--quiet"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["measurements"][0]["model"]["name"] == "tiny"
    assert Path(found["saved"]).is_file()
