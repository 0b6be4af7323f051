"""Files on this machine: ranges read, files written so that none looks finished early."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chimerakit.errors import ChangedError, CheckpointError, OutputError
from chimerakit.stores.local import Reader, Readers, list_files, read_file
from chimerakit.stores.part import PartFile, finish_file, free_nbytes, make_folder, write_file

DATA = bytes(range(256)) * 4
LINK = "is a symbolic link; output is never written through one\n  to do:    remove it"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 1024 bytes."""
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes stop after the first hundred bytes of each call's buffer."""
    real, calls = os.pwrite, [0]

    def pwrite(fd: int, data: memoryview, start: int) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:100], start)

    monkeypatch.setattr(os, "pwrite", pwrite)


# --------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("start", "nbytes"), [(0, 0), (0, 1024), (1, 1), (1023, 1), (1024, 0), (300, 500)])
def test_a_range_is_what_a_slice_is(source: Path, start: int, nbytes: int) -> None:
    """Reading a range gives what slicing the whole file gives."""
    reader = Reader(source)
    assert reader.read(start, nbytes) == DATA[start : start + nbytes]
    reader.close()


def test_chunks_are_the_range_in_order(source: Path) -> None:
    """A range comes in pieces of the buffer's size, the last one shorter."""
    reader = Reader(source)
    pieces = [bytes(piece.data or b"") for piece in reader.pieces(10, 1000, memoryview(bytearray(300)))]
    assert [len(piece) for piece in pieces] == [300, 300, 300, 100]
    assert b"".join(pieces) == DATA[10:1010]
    reader.close()


def test_short_reads_go_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that gives fewer bytes than it was asked for is followed by another one."""
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, start: real(fd, [buffers[0][:7]], start))
    reader = Reader(source)
    assert reader.read(5, 500) == DATA[5:505]
    reader.close()


def test_a_file_that_ends_too_early_is_refused(source: Path) -> None:
    """A range beyond the end names the file, the end that was expected and the one that was found."""
    reader = Reader(source)
    with pytest.raises(CheckpointError) as refused:
        reader.read(1000, 100)
    reader.close()
    assert str(refused.value) == f"{source}: ends too early\n  expected: 1100 bytes\n  found:    1024"


def test_a_failing_disk_is_told_with_its_place(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails names the file and the byte where it failed."""
    real, calls = os.preadv, [0]

    def failing(fd: int, buffers: list[memoryview], start: int) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, [buffers[0][:50]], start)

    monkeypatch.setattr(os, "preadv", failing)
    reader = Reader(source)
    with pytest.raises(CheckpointError) as refused:
        reader.read(100, 100)
    reader.close()
    assert str(refused.value) == f"{source}: can't be read at byte 150: Input/output error"


def test_a_changed_file_is_refused(source: Path) -> None:
    """A file of another size or time than planned is refused, with both."""
    found = source.stat()
    Reader(source, (1024, found.st_mtime_ns)).close()
    for size, time in ((1023, found.st_mtime_ns), (1024, found.st_mtime_ns - 1)):
        with pytest.raises(ChangedError) as refused:
            Reader(source, (size, time))
        assert str(refused.value) == (
            f"{source}: has changed since the plan was made\n"
            f"  expected: {size} bytes, modified at {time} ns\n"
            f"  found:    1024 bytes, modified at {found.st_mtime_ns} ns\n"
            "  to do:    plan again; start the child over with --force if the change was meant"
        )


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_regular_files_are_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A folder or a pipe is refused at once, and leaves no open file behind."""
    make(tmp_path / "x")
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - Path.iterdir would look at each
    with pytest.raises(CheckpointError) as refused:
        Reader(tmp_path / "x")
    assert str(refused.value) == f"{tmp_path / 'x'}: is not a regular file"
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that isn't there is refused by its path."""
    with pytest.raises(CheckpointError) as refused:
        Reader(tmp_path / "x")
    assert str(refused.value) == f"{tmp_path / 'x'}: can't be opened: No such file or directory"


def test_a_source_may_be_a_link(source: Path) -> None:
    """Parents are read through symbolic links: the hub's cache is made of them."""
    link = source.with_name("link")
    link.symlink_to(source)
    assert read_file(link, 2000) == DATA


def test_readers_open_each_file_once(source: Path) -> None:
    """The same path gives the same reader, and all are closed together."""
    with Readers() as readers:
        reader = readers.get(source)
        assert readers.get(source) is reader
    with pytest.raises(CheckpointError, match="Bad file descriptor"):
        reader.read(0, 1)


def test_a_small_file_has_a_limit(source: Path) -> None:
    """A file above the limit is refused before it is read."""
    assert read_file(source, 1024) == DATA
    with pytest.raises(CheckpointError) as refused:
        read_file(source, 1023)
    assert str(refused.value) == f"{source}: is too large\n  expected: at most 1023 bytes\n  found:    1024"


def test_files_are_listed_with_their_folders(tmp_path: Path) -> None:
    """All files are listed by name, through links to files, without hidden ones, pipes, dead links or linked folders."""
    for name in ("b", "a.txt", "sub/deep/c", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "dead").symlink_to("nothing")
    (tmp_path / "around").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert list_files(tmp_path) == [("a.txt", 5), ("b", 1), ("link", 1), ("sub/deep/c", 10)]


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A name that is not UTF-8 can't be written into a plan, so it is refused, and shown escaped."""
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.txt")).write_bytes(b"")
    with pytest.raises(CheckpointError) as refused:
        list_files(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: holds a file whose name is not UTF-8\n  found:    \\udcff.txt\n  to do:    rename the file"
    )


# --------------------------------------------------------------------------------------------- writing


def test_a_part_file_is_filled_in_any_order(tmp_path: Path) -> None:
    """Ranges written in any order, by several openings of the file, make the whole; only then it gets its name."""
    path = tmp_path / "out"
    for start in (600, 0, 300, 900):
        part = PartFile(path, 1024)
        part.write(memoryview(DATA)[start : start + 300], start)
        part.sync()
        part.close()
        assert not path.exists()
        assert (tmp_path / "out.part").stat().st_size == 1024
    finish_file(path)
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_any_buffer_of_bytes_is_written(tmp_path: Path) -> None:
    """A buffer of wider elements is written as its bytes."""
    part = PartFile(tmp_path / "out", 8)
    part.write(memoryview(bytearray(range(8))).cast("I"), 0)
    part.close()
    assert (tmp_path / "out.part").read_bytes() == bytes(range(8))


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that takes fewer bytes than it was given is followed by another one."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, start: real(fd, data[:7], start))
    write_file(tmp_path / "out", DATA)
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("stale", [b"", b"x" * 5000])
def test_a_part_of_another_size_gets_the_right_one(tmp_path: Path, stale: bytes) -> None:
    """What is left of an earlier child does not make a file longer or shorter."""
    (tmp_path / "out.part").write_bytes(stale)
    PartFile(tmp_path / "out", 100).close()
    assert (tmp_path / "out.part").stat().st_size == 100


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    """A shorter text over a longer one, with a stale part beside it, is the shorter text."""
    (tmp_path / "out").write_bytes(b"x" * 5000)
    (tmp_path / "out.part").write_bytes(b"y" * 9000)
    write_file(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_part_is_never_written_through_a_link(tmp_path: Path) -> None:
    """A link in place of a part file is refused, and what it leads to is untouched."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out.part").symlink_to("precious")
    with pytest.raises(OutputError) as refused:
        PartFile(tmp_path / "out", 3)
    assert str(refused.value) == f"{tmp_path / 'out.part'}: {LINK}"
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_dangling_link_makes_no_file(tmp_path: Path) -> None:
    """A link to nothing in place of a part file is refused, and nothing comes to be."""
    (tmp_path / "out.part").symlink_to("elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link"):
        PartFile(tmp_path / "out", 3)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["out", "out.part"])
def test_small_files_replace_links(tmp_path: Path, name: str) -> None:
    """A link in the way of a small file, or of its part, is replaced, not followed."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / name).symlink_to("precious")
    write_file(tmp_path / "out", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "out").read_bytes() == b"new"
    assert not (tmp_path / "out").is_symlink()


def test_a_finished_file_replaces_a_link(tmp_path: Path) -> None:
    """Renaming a part over a link replaces the link, not what it leads to."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out").symlink_to("precious")
    (tmp_path / "out.part").write_bytes(b"new")
    finish_file(tmp_path / "out")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.parametrize("is_dangling", [True, False])
def test_a_folder_is_never_made_through_a_link(tmp_path: Path, is_dangling: bool) -> None:
    """A link in place of an output folder is refused, whether it leads somewhere or not."""
    (tmp_path / "out").symlink_to("nowhere" if is_dangling else tmp_path)
    with pytest.raises(OutputError) as refused:
        make_folder(tmp_path / "out")
    assert str(refused.value) == f"{tmp_path / 'out'}: {LINK}"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_with_the_way_on(tmp_path: Path) -> None:
    """A disk that fills up in the middle of a write is said so, and that the work can go on."""
    with pytest.raises(OutputError) as refused:
        write_file(tmp_path / "out", DATA)
    assert str(refused.value) == (
        f"{tmp_path / 'out.part'}: no space left\n  to do:    free some space and run the same command again"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        ("pwrite", errno.ENOSPC, "no space left"),
        ("pwrite", errno.EDQUOT, "no space left"),
        ("pwrite", errno.EIO, "can't be written: Input/output error"),
        ("fsync", errno.ENOSPC, "no space left"),
        ("fsync", errno.EIO, "can't be written: Input/output error"),
        ("ftruncate", errno.EFBIG, "can't be written: File too large"),
    ],
)
def test_every_failing_call_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, says: str
) -> None:
    """Whichever system call fails while writing, the part file is named, the target is not there, no file stays open."""

    def failing(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OutputError) as refused:
        write_file(tmp_path / "out", DATA)
    assert str(refused.value).startswith(f"{tmp_path / 'out.part'}: {says}")
    assert not (tmp_path / "out").exists()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    """A folder in place of a file, its part, or a file in place of the folder: refused by name."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b.part").mkdir()
    (tmp_path / "c").write_bytes(b"")
    said = []
    for name in ("a", "b", "c/d"):
        with pytest.raises(OutputError) as refused:
            write_file(tmp_path / name, DATA)
        said.append(str(refused.value))
    assert said == [
        f"{tmp_path / 'a'}: can't be written: Is a directory",
        f"{tmp_path / 'b.part'}: can't be written: Is a directory",
        f"{tmp_path / 'c/d.part'}: can't be written: Not a directory",
    ]
    with pytest.raises(OutputError) as refused:
        make_folder(tmp_path / "c")
    assert str(refused.value) == f"{tmp_path / 'c'}: can't be written: File exists"


def test_free_space_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    """The free space of a folder to come is that of the disk on which it will be."""
    found = os.statvfs(tmp_path)
    assert abs(free_nbytes(tmp_path / "a" / "b") - found.f_bavail * found.f_frsize) < 1 << 30
