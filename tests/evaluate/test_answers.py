"""Answers on disk: appended as they come, never mixed up, never lost."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from chimerakit.errors import OutputError
from chimerakit.evaluate import Subject, evaluate_models, run
from chimerakit.evaluate.answers import Kept
from chimerakit.evaluate.backends import engine_of, transformers
from chimerakit.evaluate.records import Ask, Generated, Model, Problem, Scorer, Settings, Task
from chimerakit.evaluate.run import asks_of, count_missing
from tests import synthetic

MODEL = Model("m", "w", "t", "transformers")
TASK = Task("t", tuple(Problem(str(n), f"{n}?", str(n)) for n in range(3)), Scorer("numeric"))
ASKS = asks_of(TASK, Settings(), 2)


def fill(path: Path, count: int) -> None:
    """The first answers."""
    kept = Kept(path, MODEL, TASK, Settings())
    for ask in ASKS[:count]:
        kept.keep(ask, Generated(f"{ask.problem}/{ask.sample}", 1, True))
    kept.close()


def again(path: Path, model: Model = MODEL, task: Task = TASK, settings: Settings = Settings()) -> Kept:  # noqa: B008
    """A later call."""
    kept = Kept(path, model, task, settings)
    kept.close()
    return kept


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    """And only the rest is missing."""
    fill(tmp_path / "t.jsonl", 4)
    kept = again(tmp_path / "t.jsonl")
    assert kept.missing(ASKS) == ASKS[4:]
    assert kept.found["1", 1] == Generated("1/1", 1, True)


@pytest.mark.parametrize("scorer", ["exact", "boxed"])
def test_another_scorer_asks_nothing_anew(scorer: str, tmp_path: Path) -> None:
    """What was judged is not kept."""
    fill(tmp_path / "t.jsonl", 4)
    task = msgspec.structs.replace(TASK, scorer=Scorer(scorer))  # type: ignore[arg-type]
    assert again(tmp_path / "t.jsonl", task=task).missing(ASKS) == ASKS[4:]


def test_every_torn_end_loses_one_answer_at_most(tmp_path: Path) -> None:
    """A file that was cut anywhere goes on, and the next answer stands on a line of its own."""
    path = tmp_path / "t.jsonl"
    fill(path, 4)
    whole = path.read_bytes()
    head = whole.index(b"\n", 1) + 1
    for end in range(head, len(whole)):
        path.write_bytes(whole[:end])
        kept = Kept(path, MODEL, TASK, Settings())
        there = len(kept.found)
        assert there >= whole[:end].count(b"}}\n") - 1
        missing = kept.missing(ASKS)
        kept.keep(missing[0], Generated("new", 1, True))
        kept.close()
        assert len(again(path).found) == there + 1


def test_a_changed_question_is_asked_again(tmp_path: Path) -> None:
    """Its old answer is one to another question."""
    fill(tmp_path / "t.jsonl", 6)
    changed = (msgspec.structs.replace(TASK.problems[0], question="other?"), *TASK.problems[1:])
    task = msgspec.structs.replace(TASK, problems=changed)
    assert [ask.problem for ask in again(tmp_path / "t.jsonl", task=task).missing(asks_of(task, Settings(), 2))] == [
        "0",
        "0",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": Model("m", "other", "t", "transformers")}, "weights: 'w', not 'other'"),
        ({"model": Model("m", "w", "t", "llama.cpp")}, "engine: 'transformers', not 'llama.cpp'"),
        ({"settings": Settings(temperature=0.6)}, r"temperature: 0\.0, not 0\.6"),
        ({"settings": Settings(max_tokens=9)}, "max_tokens: 4096, not 9"),
        ({"task": msgspec.structs.replace(TASK, system="Be brief.")}, "questions: another"),
    ],
)
def test_answers_of_somebody_else_are_not_mixed_in(change: dict[str, object], says: str, tmp_path: Path) -> None:
    """Another model, other settings: refused, saying which."""
    fill(tmp_path / "t.jsonl", 1)
    before = (tmp_path / "t.jsonl").read_bytes()
    with pytest.raises(OutputError, match=says):
        again(tmp_path / "t.jsonl", **change)  # type: ignore[arg-type]
    assert (tmp_path / "t.jsonl").read_bytes() == before


def test_answers_of_a_gpu_are_not_gone_on_with_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the other way round: the numbers in which the model computed are others, and so are some answers."""
    checkpoint = synthetic.make(tmp_path / "m", 0, "bf16")

    def evaluate() -> None:
        evaluate_models([Subject("m", checkpoint)], [TASK], tmp_path / "out")

    class Fake:
        def answer(self, asks: Sequence[Ask], settings: Settings) -> Iterator[tuple[Ask, Generated]]:
            return ((ask, Generated(ask.problem, 1, True)) for ask in asks)

        def close(self) -> None:
            pass

    monkeypatch.setattr(run, "load_backend", lambda path, at_once: Fake())
    for there, here in ((True, False), (False, True)):
        monkeypatch.setattr(transformers, "is_on_gpu", lambda there=there: there)
        evaluate()
        evaluate()
        monkeypatch.setattr(transformers, "is_on_gpu", lambda here=here: here)
        with pytest.raises(OutputError, match=r"engine: 'transformers.*', not 'transformers.*'"):
            evaluate()
        shutil.rmtree(tmp_path / "out")


def test_the_engine_on_a_cpu_has_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So have committed results; whether there is a GPU is torch's word."""
    checkpoint = synthetic.make(tmp_path / "m", 0, "bf16")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(transformers, "version", lambda package: "2.13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_of(checkpoint) == "transformers"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_of(checkpoint) == "transformers, as stored, on a GPU"
    monkeypatch.setattr(transformers, "version", lambda package: "2.13.0+cpu")
    assert engine_of(checkpoint) == "transformers"


@pytest.mark.parametrize("text", ["notes of mine\n", '{"a": 1}\n'])
def test_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    """A file that holds no answers."""
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(OutputError, match="holds something else than answers"):
        again(tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text() == text


def test_counting_writes_nothing(tmp_path: Path) -> None:
    """No folder, no head, no lock; what is torn or somebody else's is told from what is there."""
    assert count_missing(MODEL, [TASK], tmp_path / "out", Settings(), 2) == 6
    assert not (tmp_path / "out").exists()
    path = tmp_path / "out" / "m" / "t.jsonl"
    path.parent.mkdir(parents=True)
    fill(path, 4)
    whole = path.read_bytes()
    head = whole.index(b"\n", 1) + 1
    for data, missing in ((whole, 2), (whole[:-2], 3), (whole[:head], 6), (whole[: head // 2], 6), (b"", 6)):
        path.write_bytes(data)
        assert count_missing(MODEL, [TASK], tmp_path / "out", Settings(), 2) == missing
        assert path.read_bytes() == data
    path.write_bytes(whole)
    kept = Kept(path, MODEL, TASK, Settings())
    assert count_missing(MODEL, [TASK], tmp_path / "out", Settings(), 2) == 2
    kept.close()
    with pytest.raises(OutputError, match=r"temperature: 0\.0, not 0\.6"):
        count_missing(MODEL, [TASK], tmp_path / "out", Settings(temperature=0.6), 2)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused."""
    kept = Kept(tmp_path / "t.jsonl", MODEL, TASK, Settings())
    with pytest.raises(OutputError, match="another process is working on this"):
        Kept(tmp_path / "t.jsonl", MODEL, TASK, Settings())
    kept.close()


def test_lines_are_for_everybody(tmp_path: Path) -> None:
    """Plain JSON: the head says whose answers they are."""
    fill(tmp_path / "t.jsonl", 2)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().split("\n") if line]
    assert lines[0]["model"]["weights"] == "w"
    assert [(line["problem"], line["sample"], line["said"]["text"]) for line in lines[1:]] == [
        ("0", 0, "0/0"),
        ("0", 1, "0/1"),
    ]
