"""Journals: lines that outlive whoever wrote them."""

import os
from pathlib import Path

import pytest

from chimerakit.errors import OutputError
from chimerakit.stores.journal import Journal


def whole(journal: Journal) -> list[bytes]:
    return [line for line in journal.lines() if line]


def test_lines_are_read_by_a_later_one(tmp_path: Path) -> None:
    """In the order in which they were written, also by the one that wrote them."""
    journal = Journal(tmp_path / "j")
    assert whole(journal) == []
    for line in (b"one", b"two"):
        journal.append(line)
    assert whole(journal) == [b"one", b"two"]
    journal.close()
    again = Journal(tmp_path / "j")
    again.append(b"three")
    assert whole(again) == [b"one", b"two", b"three"]
    again.close()


@pytest.mark.parametrize("torn", [b"\none\ntw", b"tw", b"\none\n"])
def test_a_line_behind_a_torn_one_is_whole(tmp_path: Path, torn: bytes) -> None:
    """What was there is kept, and what is added stands on a line of its own."""
    (tmp_path / "j").write_bytes(torn)
    journal = Journal(tmp_path / "j")
    journal.append(b"three")
    assert whole(journal) == [*torn.split(), b"three"]
    journal.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Until the first one closes it."""
    journal = Journal(tmp_path / "j")
    with pytest.raises(OutputError, match="another process is working on this"):
        Journal(tmp_path / "j")
    journal.close()
    Journal(tmp_path / "j").close()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A link, a folder, a pipe, a place that is not there; nothing stays open."""
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for name, says in {
        "link": "is a symbolic link",
        "folder": "can't be opened",
        "pipe": "is not a regular file",
        "no/where": "can't be opened: No such file or directory",
    }.items():
        with pytest.raises(OutputError, match=says):
            Journal(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not (tmp_path / "precious").exists()


def test_a_journal_too_large_to_be_ours_is_not_read(tmp_path: Path) -> None:
    """A sparse file of gigabytes takes no memory."""
    with (tmp_path / "j").open("wb") as file:
        file.truncate(4 << 30)
    journal = Journal(tmp_path / "j")
    with pytest.raises(OutputError, match="is too large"):
        journal.lines()
    journal.close()


def test_a_full_disk_is_an_error_with_the_file() -> None:
    """As the device that is always full shows."""
    journal = Journal.__new__(Journal)
    journal.path, journal._fd = Path("/dev/full"), os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OutputError, match="/dev/full: can't be written: No space left on device"):
        journal.append(b"line")
    journal.close()
