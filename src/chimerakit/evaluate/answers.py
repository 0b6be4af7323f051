"""Answers on disk: a file of JSON lines for each model and task, to which each answer is appended as it arrives.

The first line says whose answers they are, to what, and how they were decoded; the others are what the engine gave back.
Nothing judged is kept, so that answers can be scored anew. A later call asks only what is missing.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from chimerakit.errors import OutputError
from chimerakit.evaluate.records import Ask, Generated, Model, Settings, Task
from chimerakit.stores.digest import Hasher
from chimerakit.stores.journal import Journal
from chimerakit.stores.local import read_file

FORMAT = 1
_MAX_FILE = 1 << 32


class Head(Struct, frozen=True):
    """Whose answers, to what, decoded how."""

    answers: int
    """The version of this format."""
    model: Model
    task: str
    questions: str
    """xxh3-128 of the system prompt."""
    settings: Settings


class Line(Struct, frozen=True):
    """One answer as it came."""

    problem: str
    sample: int
    asked: str
    """xxh3-128 of the question, so that a problem that was changed is asked again."""
    said: Generated


Said = dict[tuple[str, int], Generated]
"""Answers by problem and sample."""


class Kept:
    """The answers of one model to one task. For one process at a time."""

    def __init__(self, path: Path, model: Model, task: Task, settings: Settings):
        self._head = _head_of(model, task, settings)
        self.found: Said = {}
        """By problem and sample; only what is asked now."""
        self._journal = Journal(path)
        try:
            self._read(task)
        except BaseException:
            self._journal.close()
            raise

    def _read(self, task: Task) -> None:
        found = _read_own(self._journal.lines(), self._head, task, self._journal.path)
        if found is None:
            self._journal.append(msgspec.json.encode(self._head))
        else:
            self.found = found

    def keep(self, ask: Ask, said: Generated) -> None:
        """Append an answer."""
        self.found[ask.problem, ask.sample] = said
        self._journal.append(msgspec.json.encode(Line(ask.problem, ask.sample, _digest(ask.question), said)))

    def missing(self, asks: Iterable[Ask]) -> list[Ask]:
        """Those that have no answer yet."""
        return [ask for ask in asks if (ask.problem, ask.sample) not in self.found]

    def close(self) -> None:
        """Let others work on the file."""
        self._journal.close()


def count_missing_in(path: Path, model: Model, task: Task, settings: Settings, asks: Iterable[Ask]) -> int:
    """How many answers are not there yet; the file is only read, and may not exist. Raises what `Kept` does."""
    found: Said | None = None
    if path.is_file():
        lines = read_file(path, _MAX_FILE).split(b"\n")
        found = _read_own(lines, _head_of(model, task, settings), task, path)
    return sum((ask.problem, ask.sample) not in (found or {}) for ask in asks)


def _head_of(model: Model, task: Task, settings: Settings) -> Head:
    return Head(FORMAT, model, task.name, _digest(task.system), settings)


def _read_own(lines: Iterable[bytes], head: Head, task: Task, path: Path) -> Said | None:
    """The answers in a file that has this head; None if it has none yet. Raises OutputError for another one's."""
    lines, whole = [line for line in lines if line], msgspec.json.encode(head)
    if lines and _is_torn(lines[0], whole):
        del lines[0]
    if not lines:
        return None
    _check_head(lines[0], head, path)
    return _answers_in(lines[1:], task)


def _check_head(text: bytes, wanted: Head, path: Path) -> None:
    try:
        head = msgspec.json.decode(text, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise OutputError(
            "holds something else than answers", where=path, do="choose another folder, or move it away"
        ) from e
    mine, theirs = (msgspec.to_builtins(each) for each in (wanted, head))
    unlike = [
        f"{name}: {theirs[part][name]!r}, not {value!r}"
        for part in ("model", "settings")
        for name, value in mine[part].items()
        if theirs[part].get(name) != value
    ]
    unlike += [f"{name}: another" for name in ("answers", "task", "questions") if mine[name] != theirs[name]]
    if unlike:
        raise OutputError(
            "holds answers of another model, or asked for otherwise",
            where=path,
            found="; ".join(unlike),
            do="choose another folder, or move it away",
        )


def _is_torn(line: bytes, head: bytes) -> bool:
    """Whether a line is the beginning of a head, or zeros in its place: of a process that ended, or a disk that lost power."""
    return line != head and (head.startswith(line) or not line.strip(b"\0"))


def read_answers(path: Path, task: Task) -> Said:
    """The answers to a task in a file, whoever's they are."""
    return _answers_in(read_file(path, _MAX_FILE).split(b"\n"), task)


def _answers_in(lines: Iterable[bytes], task: Task) -> Said:
    """The answers to questions as they are now."""
    found: Said = {}
    asked = {problem.id: _digest(problem.question) for problem in task.problems}
    for text in lines:
        try:
            line = msgspec.json.decode(text, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a head, or torn when a process ended
            continue
        if asked.get(line.problem) == line.asked:
            found[line.problem, line.sample] = line.said
    return found


def _digest(text: str) -> str:
    hasher = Hasher()
    hasher.update(text.encode("utf-8", "surrogatepass"))
    return hasher.xxh3
