"""Everything that chimerakit can refuse, one class for each thing that a user can do about it.

    ChimerakitError            the base; the command line prints it and exits with 2
    ├── RecipeError            the recipe's text is wrong: correct the recipe
    ├── PlanError              recipe and parents do not fit each other: every problem is listed, nothing was read
    ├── CheckpointError        a parent or child on disk is damaged, incomplete, or says something untrue
    │   └── ChangedError       a file is not the one that was planned with
    ├── OutputError            the output folder can't be used: occupied, inside a parent, out of space
    ├── NonFiniteError         NaN or infinity in weights that would have to be mixed
    ├── ManifestError          a manifest is missing, damaged, or of another version
    ├── ResultError            a saved result is none, damaged, of another version, or too large to be shown
    │   └── MapError           a difference map is damaged, of another version, or of other checkpoints
    ├── TaskError              a file of problems, or what maps its fields, is wrong
    ├── EndpointError          a server that shall answer is not there, refuses, or answers nonsense
    ├── ClusterError           a cluster that shall do the work is not there, or its machines fail
    └── MissingExtraError      an optional dependency is not installed

A message says what, where (file, tensor), what was expected and found, and what to do. It never holds raw control
characters: names come from files that anybody may have written.
"""

from collections.abc import Callable, Sequence
from typing import Self

_MOST = 1000
"""Characters of a line of a message: more only come from a file that wants to be repeated."""


def printable(text: object) -> str:
    """Text with line ends, control characters and lone surrogates escaped.

    So no file can write to the terminal, nor add a line to a message that looks like ours.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _shortened(line: str) -> str:
    half = _MOST // 2
    return line if len(line) <= _MOST else f"{line[:half]} ... {line[-half:]}"


class ChimerakitError(Exception):
    """The base of all refusals; `str()` is the whole message, ready to be shown."""

    def __init__(self, what: str, *, where: object = None, expected: object = None, found: object = None, do: str = ""):
        lines = [what if where is None else f"{where}: {what}"]
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if found is not None:
            lines.append(f"  found:    {found}")
        if do:
            lines += f"  to do:    {do}".split("\n")  # the one part that may be several lines: our own words
        super().__init__("\n".join(printable(_shortened(line)) for line in lines))

    def on(self, machine: str) -> Self:
        """The same, saying on which machine of several it was raised."""
        self.args = (f"{self}\n  machine:  {printable(_shortened(machine))}",)
        return self

    def __reduce__(self) -> tuple[Callable[..., "ChimerakitError"], tuple[object, ...]]:
        # The constructors take parts, not the message: a worker's error is put together again from what it holds.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[ChimerakitError], args: tuple[str, ...], content: dict[str, object]) -> ChimerakitError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(content)
    return error


class RecipeError(ChimerakitError):
    """The recipe's text is wrong."""


class PlanError(ChimerakitError):
    """Recipe and parents do not fit each other.

    `problems` holds every one of them, each a message in itself.
    """

    def __init__(self, problems: Sequence[str], what: str = "this can't be merged"):
        self.problems = tuple(printable(_shortened(p)) for p in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{what}: {count}")
        self.args = ("\n".join([str(self), *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))]),)


class CheckpointError(ChimerakitError):
    """A checkpoint on disk is damaged, incomplete, or says something untrue."""


class ChangedError(CheckpointError):
    """A file is not the one that was planned with."""


class OutputError(ChimerakitError):
    """The output folder can't be used."""


class NonFiniteError(ChimerakitError):
    """NaN or infinity in weights that would have to be mixed or converted."""


class ManifestError(ChimerakitError):
    """A manifest is missing, damaged, or of another version."""


class ResultError(ChimerakitError):
    """What a verb saved (an explanation, an inspection, a map) is none, damaged, of another version, or can't be shown."""


class MapError(ResultError):
    """A difference map is damaged, of another version, or of other checkpoints."""


class TaskError(ChimerakitError):
    """A file of problems, or what maps its fields, is wrong."""


class EndpointError(ChimerakitError):
    """A server that shall answer is not there, refuses, or answers nonsense."""


class ClusterError(ChimerakitError):
    """A cluster that shall do the work is not there, or its machines fail."""


class MissingExtraError(ChimerakitError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"the package {package!r} is needed for this", do=f"pip install 'chimerakit[{extra}]'")
