"""Problems with one right answer each, as JSON lines: {"id": ..., "question": ..., "answer": ...}."""

from pathlib import Path

import msgspec
from msgspec import Struct

from chimerakit.errors import RecipeError
from chimerakit.stores.local import read_file

_MAX_FILE = 256 << 20


class Problem(Struct, frozen=True):
    """One problem."""

    id: str
    question: str
    answer: str


def load_problems(path: Path, count: int | None = None) -> list[Problem]:
    """The first `count` problems of a file, or all."""
    problems: list[Problem] = []
    for number, line in enumerate(read_file(path, _MAX_FILE).splitlines(), 1):
        if count is not None and len(problems) == count:
            break
        try:
            problems.append(msgspec.json.decode(line, type=Problem))
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise RecipeError(f"is no problem: {e}", where=f"{path}, line {number}") from e
    return problems
