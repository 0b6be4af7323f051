"""Progress: lines where nobody watches, a bar where somebody does."""

import pytest

from chimerakit.cli import progress
from chimerakit.events import Advanced, Finished, Said, Started


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet events go nowhere."""
    with progress.watching(quiet=True) as listener:
        listener(Said("hello"))
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then a line says how far the work is; nothing goes to standard output."""
    monkeypatch.setattr(progress, "_EVERY", -1.0)
    with progress.watching(quiet=False) as listener:
        listener(Started("merging", 2000))
        listener(Advanced(500))
        listener(Said("a\x1bline"))
        listener(Finished("merging"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "merging: 500 of 2,000 bytes (25%)\na\\x1bline\n"
