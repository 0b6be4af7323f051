"""Files on this machine, read once: the same bytes and errors as through the page cache, and what is in it is used."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.errors import CheckpointError
from chimerakit.stores import direct
from chimerakit.stores.direct import DirectReader
from chimerakit.stores.local import CHUNK

DATA = np.random.default_rng(0).bytes(2 * CHUNK + 5000)
MANY = 200_000
"""Bytes that are worth reading directly."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of more than two chunks, its last page not full."""
    path = tmp_path_factory.mktemp("direct") / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache is taken to hold nothing."""
    monkeypatch.setattr(direct, "is_cached", lambda *_: False)


@pytest.fixture
def reader(source: Path) -> Iterator[DirectReader]:
    found = DirectReader(source)
    yield found
    found.close()


class Calls:
    """What is read by which way, with what it asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 1 << 40, failing: int = 0):
        self.direct: list[tuple[int, int]] = []
        self.cached: list[tuple[int, int]] = []
        real = os.preadv

        def preadv(fd: int, buffers: list[memoryview], start: int) -> int:
            is_direct = bool(os.O_DIRECT & int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8))
            (self.direct if is_direct else self.cached).append((start, len(buffers[0])))
            if is_direct and failing:
                raise OSError(failing, os.strerror(failing))
            return real(fd, [buffers[0][:most]], start)

        monkeypatch.setattr(os, "preadv", preadv)


@given(
    start=st.one_of(st.integers(0, len(DATA)), st.sampled_from([0, 4096, len(DATA) - MANY])),
    nbytes=st.one_of(st.integers(0, len(DATA)), st.sampled_from([MANY, CHUNK, CHUNK + 1])),
)
def test_a_range_is_what_a_slice_is(source: Path, start: int, nbytes: int) -> None:
    """Any range, however it lies to pages and chunks, is what slicing the whole file gives."""
    found = DirectReader(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "is_cached", lambda *_: False)
        nbytes = min(nbytes, len(DATA) - start)
        assert found.read(start, nbytes) == DATA[start : start + nbytes]
    found.close()


@pytest.mark.usefixtures("uncached")
def test_large_ranges_are_read_in_whole_pages_past_the_cache(
    reader: DirectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not cached is asked for once, from the page before it to the page behind it."""
    calls = Calls(monkeypatch)
    assert reader.read(5000, MANY) == DATA[5000 : 5000 + MANY]
    assert calls.direct == [(4096, 204_800)]
    assert calls.cached == []


def test_what_is_cached_is_taken_from_there(reader: DirectReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that somebody has just read is not read from the disk again."""
    monkeypatch.setattr(direct, "is_cached", lambda _, start, nbytes: start + nbytes <= MANY)
    calls = Calls(monkeypatch)
    assert reader.read(0, MANY) == DATA[:MANY]
    assert (calls.direct, calls.cached) == ([], [(0, MANY)])
    assert reader.read(1, MANY) == DATA[1 : 1 + MANY]
    assert calls.direct == [(0, 200_704)]


@pytest.mark.usefixtures("uncached")
def test_little_is_read_through_the_cache(reader: DirectReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale or a norm is often beside another one."""
    calls = Calls(monkeypatch)
    assert reader.read(7, 5000) == DATA[7:5007]
    assert (calls.direct, calls.cached) == ([], [(7, 5000)])


@pytest.mark.usefixtures("uncached")
def test_short_reads_go_on(reader: DirectReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bytes than asked for, even fewer than lie before the range in its page, end nothing."""
    for most, times in ((1 << 16, 4), (4096, 50), (512, 1)):
        with monkeypatch.context() as patch:
            calls = Calls(patch, most)
            assert reader.read(5000, MANY) == DATA[5000 : 5000 + MANY]
        assert len(calls.direct) == times


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_direct_read_that_fails_is_read_through_the_cache(
    number: int, reader: DirectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and then everything: some file systems take the flag and refuse to read."""
    calls = Calls(monkeypatch, failing=number)
    for start in (5000, 6000):
        assert reader.read(start, MANY) == DATA[start : start + MANY]
    assert len(calls.direct) == 1
    assert calls.cached == [(5000, MANY), (6000, MANY)]


@pytest.mark.usefixtures("uncached")
def test_a_file_system_without_direct_reads_is_read_through_the_cache(
    reader: DirectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses to open."""
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert reader.read(5000, MANY) == DATA[5000 : 5000 + MANY]


@pytest.mark.usefixtures("uncached")
def test_a_failing_disk_is_told_with_its_place(
    source: Path, reader: DirectReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that fails either way names the file and the byte."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError) as refused:
        reader.read(5000, MANY)
    assert str(refused.value).startswith(f"{source}: can't be read at byte 5000: Input/output error\n")


@pytest.mark.usefixtures("uncached")
def test_a_file_that_ends_too_early_is_refused(source: Path, reader: DirectReader) -> None:
    """A range beyond the end names the end that was expected and the one that was found."""
    with pytest.raises(CheckpointError) as refused:
        reader.read(len(DATA) - MANY, MANY + 10)
    assert str(refused.value) == (
        f"{source}: ends too early\n  expected: {len(DATA) + 10} bytes\n  found:    {len(DATA)}\n"
        "  to do:    get the file again"
    )


@pytest.mark.usefixtures("uncached")
def test_another_file_in_its_place_is_not_read(tmp_path: Path) -> None:
    """What was opened is read, also when the path leads to another file before the first direct read."""
    (tmp_path / "file").write_bytes(DATA)
    found = DirectReader(tmp_path / "file")
    (tmp_path / "new").write_bytes(bytes(len(DATA)))
    (tmp_path / "new").replace(tmp_path / "file")
    assert found.read(0, MANY) == DATA[:MANY]
    found.close()


@pytest.mark.usefixtures("uncached")
def test_bytes_that_are_not_on_the_disk_yet_are_read(tmp_path: Path) -> None:
    """What somebody writes through the cache is seen past it."""
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(MANY))
        found = DirectReader(tmp_path / "file")
        assert found.read(0, MANY) == bytes(MANY)
        file.seek(0)
        file.write(DATA[:MANY])
        assert found.read(0, MANY) == DATA[:MANY]
    found.close()


@pytest.mark.usefixtures("uncached")
def test_threads_share_a_reader(source: Path) -> None:
    """Each gets its own bytes, and one second descriptor serves all; both are closed."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir would look at each
    found = DirectReader(source)
    starts = range(0, len(DATA) - MANY, 77_777)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda start: found.read(start, MANY), starts))
    assert read == [DATA[start : start + MANY] for start in starts]
    assert len(os.listdir("/proc/self/fd")) == before + 2  # noqa: PTH208
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
