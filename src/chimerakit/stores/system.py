"""What Linux and its C library offer for whole ranges of bytes, and Python has no name for.

Every call says whether it was done: a file system that lacks one says so, and the caller goes on without it.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTTY, errno.EPERM, errno.ETXTBSY)
_FICLONERANGE = 0x4020940D
"""ioctl_ficlonerange(2): the destination shares the source's blocks until one of both is written to."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.mmap.restype = ctypes.c_void_p
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


def reserve(fd: int, start: int, nbytes: int) -> bool:
    """Take the blocks of a range, so that writing it can't fail for space nor scatter it.

    fallocate(2), not posix_fallocate(3), which writes into every block where the file system can't do it.
    Raises OSError, for example for a full disk.
    """
    while _libc.fallocate(fd, 0, start, nbytes) != 0:
        if (number := ctypes.get_errno()) != errno.EINTR:  # a signal, such as Ctrl-Z, on a memory file system
            return _is_done(number)
    return True


def clone_range(source: int, source_start: int, nbytes: int, target: int, target_start: int) -> bool:
    """Let a range of one file share the blocks of another's. All numbers must be whole blocks. Raises OSError."""
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, source_start, nbytes, target_start))
    except OSError as e:
        return _is_done(e.errno or 0)
    return True


def _is_done(number: int) -> bool:
    """False for what can't be done here; raises for what went wrong."""
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number))


def is_cached(fd: int, start: int, nbytes: int) -> bool:
    """Whether the page cache holds all of a range of a file. True where that can't be told, as of others' files that this
    process may not write.

    mincore(2), as asking by RWF_NOWAIT would begin to read ahead. The mapping is never touched, only asked about.
    """
    first = start - start % mmap.PAGESIZE
    length = start + nbytes - first
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, first)
    if address == _MAP_FAILED:
        return True
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    is_told = _libc.mincore(address, length, pages) == 0
    _libc.munmap(address, length)
    return not is_told or 0 not in bytes(pages)


def same_bytes(a: memoryview, b: memoryview) -> bool:
    """Whether two buffers of bytes are equal, at the speed of memory and without the interpreter lock."""
    if len(a) != len(b):
        return False
    if a.readonly or b.readonly:
        return bytes(a) == bytes(b)
    return len(a) == 0 or _libc.memcmp(_address(a), _address(b), len(a)) == 0


def first_unlike(a: memoryview, b: memoryview) -> int | None:
    """Where two buffers of the same length first differ; None if they are equal."""
    if same_bytes(a, b):
        return None
    low, high = 0, len(a)
    while high - low > 1:
        middle = (low + high) // 2
        if same_bytes(a[low:middle], b[low:middle]):
            low = middle
        else:
            high = middle
    return low


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
