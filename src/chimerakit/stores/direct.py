"""Files on this machine, read once: past the page cache (O_DIRECT), but for what lies in it already.

Reading terabytes through the page cache pushes everything else out of it, and finding memory for bytes that nobody asks
for again costs more than moving them. Small reads go through the cache, which reads ahead; so does whatever a disk or file
system does not give otherwise, and errors are told by that way.
"""

import mmap
import os
import threading
from pathlib import Path

from chimerakit.stores.local import CHUNK, Reader
from chimerakit.stores.system import is_cached

_ALIGNED = 4096
"""Bytes; what direct reads are aligned to, in the file and in memory."""
_FROM = 128 << 10
"""Bytes of the smallest read that goes past the cache."""


class DirectReader(Reader):
    """A Reader for bytes that are needed once; safe to share between threads."""

    def __init__(self, path: Path, signature: tuple[int, int] | None = None):
        super().__init__(path, signature)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # what is read ahead would be read again, past the cache
        self._lock = threading.Lock()
        self._direct: int | None = None
        self._is_direct = True  # until the file system says no

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer with the bytes from `start` on."""
        done = 0
        if len(buffer) >= _FROM and self._is_direct and not is_cached(self._fd, start, len(buffer)):
            done = self._read_directly(buffer, start)
        if done < len(buffer):
            super().read_into(buffer[done:], start + done)

    def _read_directly(self, buffer: memoryview, start: int) -> int:
        """Read whole pages past the cache and take from them what was asked for; returns how many bytes that gave."""
        done, memory = 0, _memory()
        try:
            fd = self._open_directly()
            while done < len(buffer):
                at = start + done
                before = at % _ALIGNED
                nbytes = min(-(-(before + len(buffer) - done) // _ALIGNED) * _ALIGNED, len(memory))
                count = os.preadv(fd, [memory[:nbytes]], at - before) - before
                if count <= 0:
                    break
                found = memory[before : before + min(count, len(buffer) - done)]
                buffer[done : done + len(found)] = found
                done += len(found)
        except OSError:
            self._is_direct = False
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_NORMAL)
        return done

    def _open_directly(self) -> int:
        """A second descriptor of the very same file, whatever its path leads to by now."""
        with self._lock:
            if self._direct is None:
                self._direct = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            return self._direct

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._direct is not None:
            os.close(self._direct)


_threads = threading.local()


def _memory() -> memoryview:
    """Aligned memory of this thread, for one piece: fresh memory costs a page fault for every page."""
    if not hasattr(_threads, "memory"):
        _threads.memory = memoryview(mmap.mmap(-1, CHUNK + 2 * _ALIGNED))
    found: memoryview = _threads.memory
    return found
