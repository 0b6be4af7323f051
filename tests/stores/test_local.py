"""Files on this machine, read: ranges, holes, and everything that may be wrong with a file."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.errors import ChangedError, CheckpointError
from chimerakit.stores.local import Reader, Readers, list_files, read_file

DATA = bytes(range(256)) * 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 1024 bytes."""
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


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
    assert (
        str(refused.value)
        == f"{source}: ends too early\n  expected: 1100 bytes\n  found:    1024\n  to do:    get the file again"
    )


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
    assert str(refused.value) == (
        f"{source}: can't be read at byte 150: Input/output error\n"
        "  to do:    check the disk, get the file again, and run the same command again"
    )


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


# ----------------------------------------------------------------------------------------------- holes

BLOCK = 4096


def sparse(path: Path, blocks: list[bool]) -> bytes:
    """A file whose blocks are random bytes or, for False, holes; returns what it holds."""
    data = b"".join(
        np.random.default_rng(i).bytes(BLOCK) if is_data else bytes(BLOCK) for i, is_data in enumerate(blocks)
    )
    with path.open("wb") as file:
        file.truncate(len(data))
        for number, is_data in enumerate(blocks):
            if is_data:
                file.seek(number * BLOCK)
                file.write(data[number * BLOCK : (number + 1) * BLOCK])
    return data


@given(data=st.data(), blocks=st.lists(st.booleans(), min_size=1, max_size=12), size=st.integers(1, 3 * BLOCK))
def test_a_range_with_holes_is_what_a_slice_is(
    data: st.DataObject, blocks: list[bool], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The pieces of any range of a sparse file follow each other and are its bytes; what is no data is zeros."""
    path = tmp_path_factory.mktemp("sparse") / "file"
    whole = sparse(path, blocks)
    start = data.draw(st.integers(0, len(whole)))
    nbytes = data.draw(st.integers(0, len(whole) - start))
    reader = Reader(path)
    at, found = 0, b""
    for piece in reader.pieces(start, nbytes, memoryview(bytearray(size))):
        assert piece.start == at
        assert piece.nbytes > 0
        at += piece.nbytes
        found += bytes(piece.nbytes) if piece.data is None else bytes(piece.data)
    reader.close()
    assert found == whole[start : start + nbytes]


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte of hole around a page of data costs one read."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x" * BLOCK)
    real, reads = os.preadv, list[int]()

    def preadv(fd: int, buffers: list[memoryview], start: int) -> int:
        reads.append(start)
        return real(fd, buffers, start)

    monkeypatch.setattr(os, "preadv", preadv)
    reader = Reader(path)
    pieces = [(p.nbytes, p.data is None) for p in reader.pieces(0, 1 << 40, memoryview(bytearray(1 << 20)))]
    reader.close()
    assert pieces == [(1 << 39, True), (BLOCK, False), ((1 << 39) - BLOCK, True)]
    assert reads == [1 << 39]


def test_a_hole_is_not_taken_for_the_end(tmp_path: Path) -> None:
    """A range that goes on behind the end of a sparse file is refused, not filled up with zeros."""
    sparse(tmp_path / "file", [True, False])
    reader = Reader(tmp_path / "file")
    with pytest.raises(CheckpointError, match="ends too early\n  expected: 8193 bytes\n  found:    8192"):
        list(reader.pieces(0, 8193, memoryview(bytearray(100))))
    reader.close()


def test_a_file_that_is_written_to_while_it_is_read_is_noticed(source: Path) -> None:
    """Size and time are those of the opening until the end, or the file is named."""
    with Readers() as readers:
        readers.get(source)
        readers.check_unchanged()
        os.utime(source, ns=(0, 0))
        with pytest.raises(ChangedError, match=f"^{source}: was changed while it was read"):
            readers.check_unchanged()
