"""Files on this machine, written: whole or not at all, in large pieces past the page cache where that can be done."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.errors import OutputError
from chimerakit.stores import part as store
from chimerakit.stores.local import Reader
from chimerakit.stores.part import (
    PAGE,
    STAGE,
    PartFile,
    Stage,
    allocated_nbytes,
    finish_file,
    free_nbytes,
    make_folder,
    write_file,
)

DATA = bytes(range(256)) * 4
LINK = "is a symbolic link; output is never written through one\n  to do:    remove it"


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


# ------------------------------------------------------------------------------------- stage, direct writes

MIB = 1 << 20
SIZE = 3 * MIB + 777


@pytest.fixture
def small_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of 16 pages, and direct writes of a single one."""
    monkeypatch.setattr(store, "STAGE", 16 * PAGE)
    monkeypatch.setattr(store, "_DIRECT", PAGE)
    monkeypatch.setattr(store, "_STRAY", 100)


@pytest.fixture(params=["direct", "not at opening", "not at writing", "half"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, int]]]:
    """File systems with and without direct writes; gives (address, start, bytes) of each direct write."""
    real_open, real_pwrite = os.open, os.pwrite
    direct, seen = set[int](), list[tuple[int, int, int]]()

    def opening(path: Any, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_DIRECT:
            return real_open(path, flags, mode)
        if request.param == "not at opening":
            raise OSError(errno.EINVAL, "Invalid argument")
        fd = real_open(path, flags & ~os.O_DIRECT, mode)  # a memory file system under the tests may have none
        direct.add(fd)
        return fd

    def writing(fd: int, data: memoryview, start: int) -> int:
        if fd in direct:
            if request.param == "not at writing":
                raise OSError(errno.EINVAL, "Invalid argument")
            seen.append((np.frombuffer(data, np.uint8).ctypes.data, start, len(data)))
            if request.param == "half":
                data = data[: len(data) // 2]
        return real_pwrite(fd, data, start)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "pwrite", writing)
    yield seen
    assert bool(seen) == (request.param in ("direct", "half"))


@pytest.mark.usefixtures("small_stage")
@given(
    pieces=st.lists(st.integers(1, 30 * PAGE), min_size=1, max_size=12),
    begin=st.integers(0, 2 * PAGE),
    order=st.randoms(use_true_random=False),
    is_shuffled=st.booleans(),
)
def test_what_goes_through_a_stage_is_what_was_written(
    pieces: list[int], begin: int, order: Any, is_shuffled: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pieces of any size, in order or not, into two files in turn, leave each byte where a plain write puts it."""
    root = tmp_path_factory.mktemp("stage")
    data = np.random.default_rng(len(pieces)).bytes(begin + sum(pieces))
    ends = [begin + sum(pieces[: i + 1]) for i in range(len(pieces))]
    moves = list(zip([begin, *ends], ends, strict=False))
    if is_shuffled:
        order.shuffle(moves)
    files, stage = [PartFile(root / name, len(data)) for name in "ab"], Stage()
    for number, (first, last) in enumerate(moves):
        stage.write(files[number % 3 == 0], first, memoryview(data)[first:last])
    stage.flush()
    found = []
    for file in files:
        file.sync()
        file.close()
        found.append(file.part.read_bytes())
    for number, (first, last) in enumerate(moves):
        assert found[number % 3 == 0][first:last] == data[first:last]
        assert found[number % 3 != 0][first:last] == bytes(last - first)


def test_large_pieces_are_written_directly_in_whole_pages(tmp_path: Path, disk: list[tuple[int, int, int]]) -> None:
    """Address, offset and size of a direct write are whole pages; the ends, and file systems without it, go the other way."""
    data = np.random.default_rng(1).bytes(SIZE)
    file, stage = PartFile(tmp_path / "out", SIZE), Stage()
    stage.write(file, 0, memoryview(data)[:100])
    stage.write(file, 100, memoryview(data)[100:SIZE])
    stage.flush()
    file.close()
    assert (tmp_path / "out.part").read_bytes() == data
    assert all(number % PAGE == 0 for write in disk for number in write)


def test_a_stage_is_filled_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces that follow each other reach the disk in pieces of a stage that end with a page."""
    real, seen = os.pwrite, list[tuple[int, int]]()

    def pwrite(fd: int, data: memoryview, start: int) -> int:
        if len(data):
            seen.append((start, start + len(data)))
        return real(fd, data, start)

    monkeypatch.setattr(os, "pwrite", pwrite)
    begin, nbytes = 12_345, 2 * STAGE + 100_000
    file, stage = PartFile(tmp_path / "out", begin + nbytes), Stage()
    stage.write(file, begin, memoryview(bytes(70_000)))
    for start in range(begin + 70_000, begin + nbytes, 1000):
        stage.write(file, start, memoryview(bytes(min(1000, begin + nbytes - start))))
    stage.flush()
    file.close()
    page = begin - begin % PAGE
    assert sorted(seen) == [
        (begin, page + PAGE),
        (page + PAGE, page + STAGE),
        (page + STAGE, page + 2 * STAGE),
        (page + 2 * STAGE, begin + nbytes),
    ]


def test_a_disk_that_fills_up_during_a_direct_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a refusal to write directly is answered by writing otherwise; any other error is the user's to see."""
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
    file, stage = PartFile(tmp_path / "out", 4 * MIB), Stage()
    stage.write(file, 0, memoryview(bytes(4 * MIB)))
    with pytest.raises(OutputError, match=r"out\.part: no space left"):
        stage.flush()
    file.close()


# ------------------------------------------------------------------------------------ holes, space, clones


def test_a_skipped_range_stays_a_hole(tmp_path: Path) -> None:
    """Zeros that nobody wrote take no space."""
    file = PartFile(tmp_path / "out", 64 * MIB)
    file.skip(1000, 60 * MIB)
    file.sync()
    file.close()
    assert allocated_nbytes(tmp_path / "out.part") < MIB
    assert (tmp_path / "out.part").stat().st_size == 64 * MIB


@pytest.mark.parametrize(("start", "nbytes"), [(0, 0), (0, 10_000), (1, 9998), (5000, 5000), (9999, 1)])
def test_a_skipped_range_is_zeros_whatever_stood_there(tmp_path: Path, start: int, nbytes: int) -> None:
    """What an earlier call left in a range that shall be a hole does not stay."""
    (tmp_path / "out.part").write_bytes(b"x" * 10_000)
    file = PartFile(tmp_path / "out", 10_000)
    file.skip(start, nbytes)
    file.close()
    expected = b"x" * start + bytes(nbytes) + b"x" * (10_000 - start - nbytes)
    assert (tmp_path / "out.part").read_bytes() == expected


def test_reserving_space_changes_no_byte(tmp_path: Path) -> None:
    """A range that is reserved keeps what was written there, and the file its size."""
    (tmp_path / "out.part").write_bytes(DATA)
    file = PartFile(tmp_path / "out", len(DATA))
    file.reserve(0, len(DATA))
    file.close()
    assert (tmp_path / "out.part").read_bytes() == DATA


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_space_that_is_not_there_is_told_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A disk too full for a range is told when the range is reserved."""

    def refuse(*_: int) -> bool:
        raise OSError(code, "")

    monkeypatch.setattr(store, "reserve", refuse)
    file = PartFile(tmp_path / "out", 100)
    with pytest.raises(OutputError, match=r"out\.part: no space left"):
        file.reserve(0, 100)
    file.close()


def test_a_file_system_without_clones_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ranges can't be shared, the caller is told to copy, and the file system is not asked again."""
    asked = list[tuple[int, ...]]()

    def refuse(*numbers: int) -> bool:
        asked.append(numbers)
        return False

    monkeypatch.setattr(store, "clone_range", refuse)
    (tmp_path / "source").write_bytes(bytes(PAGE))
    reader, file = Reader(tmp_path / "source"), PartFile(tmp_path / "out", PAGE)
    assert [file.clone(reader, 0, PAGE, 0) for _ in range(3)] == [False] * 3
    assert len(asked) == 1
    file.close()
    reader.close()


def test_a_kernel_without_huge_pages_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for huge pages is a wish: where there are none, a stage is made and written all the same."""

    class Memory(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Memory)
    file, stage = PartFile(tmp_path / "out", 100), Stage()
    stage.write(file, 0, memoryview(bytes(range(100))))
    stage.flush()
    file.close()
    assert (tmp_path / "out.part").read_bytes() == bytes(range(100))


def test_no_folder_is_made_through_a_link_further_up(tmp_path: Path) -> None:
    """A link between a child's folder and the one that is made is refused; one above the child is the user's own."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "child").mkdir()
    (tmp_path / "child" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError) as refused:
        write_file(tmp_path / "child" / "a" / "b" / "c.json", b"{}", below=tmp_path / "child")
    assert str(refused.value) == f"{tmp_path / 'child' / 'a'}: {LINK}"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    write_file(tmp_path / "link" / "child" / "b" / "c.json", b"{}", below=tmp_path / "link" / "child")
    assert (tmp_path / "elsewhere" / "child" / "b" / "c.json").read_bytes() == b"{}"
