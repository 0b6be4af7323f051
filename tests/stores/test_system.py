"""Calls that Python has no name for: held against the slow way of doing the same."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.stores.system import clone_range, first_unlike, is_cached, reserve, same_bytes


@given(st.binary(max_size=300), st.binary(max_size=300), st.booleans())
def test_buffers_are_compared_as_bytes_are(a: bytes, b: bytes, is_readonly: bool) -> None:
    """Two buffers are the same when their bytes are, whether they can be written or not."""
    views = [memoryview(x if is_readonly else bytearray(x)) for x in (a, b)]
    assert same_bytes(views[0], views[1]) == (a == b)
    assert same_bytes(memoryview(bytearray(a)), memoryview(a))


@given(st.binary(min_size=1, max_size=300), st.data())
def test_the_first_byte_that_differs_is_found(a: bytes, data: st.DataObject) -> None:
    """The place is the one that going byte by byte finds; None where there is none."""
    b = bytearray(a)
    for at in data.draw(st.lists(st.integers(0, len(a) - 1), max_size=3)):
        b[at] ^= data.draw(st.integers(0, 255))
    slow = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
    assert first_unlike(memoryview(bytearray(a)), memoryview(b)) == slow


def test_reserved_space_is_taken(tmp_path: Path) -> None:
    """A reserved range counts as used space, and reads as zeros."""
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(1 << 20)
        if not reserve(file.fileno(), 0, 1 << 20):
            pytest.skip("this file system can't reserve space")
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
        assert file.read() == bytes(1 << 20)


def test_what_goes_wrong_is_raised(tmp_path: Path) -> None:
    """An error that does not mean `not here` is the caller's: a descriptor that is none."""
    with pytest.raises(OSError, match="Bad file descriptor") as refused:
        reserve(10_000, 0, 1)
    assert refused.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        clone_range(10_000, 0, 4096, 10_001, 0)


def test_a_clone_between_file_systems_is_not_there(tmp_path: Path) -> None:
    """A clone that can't be is answered, not raised: /proc has no blocks to share."""
    with Path("/proc/self/maps").open("rb") as source, (tmp_path / "out").open("wb") as target:
        assert not clone_range(source.fileno(), 0, 4096, target.fileno(), 0)


def test_what_the_page_cache_holds_is_known(tmp_path: Path) -> None:
    """Bytes just written are there; once they are put out, they are not, but for a page that was read again."""
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    fd = os.open(file, os.O_RDWR)
    try:
        assert is_cached(fd, 5000, 100_000)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        if is_cached(fd, 5000, 100_000):
            pytest.skip("this file system lives in memory")
        os.pread(fd, 1, 8192)
        assert is_cached(fd, 8192, 4096)
        assert not is_cached(fd, 8191, 4096)
        assert not is_cached(fd, 8192, 4097)
    finally:
        os.close(fd)
    assert is_cached(fd, 0, 4096)  # nothing can be told, so nothing is done past the cache
