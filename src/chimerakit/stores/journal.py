"""Lines that long work appends to a file as it goes on, so that a later call need not do them again."""

import errno
import fcntl
import os
import stat
from pathlib import Path

from chimerakit.errors import OutputError

_MOST = 1 << 30
"""Bytes that are read of what an earlier call left."""


class Journal:
    """A file of lines, for one process at a time; made if it is not there, never opened through a symlink.

    A line that was being written when its process ended stays in the file, torn; whoever reads has to tell.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._fd = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except OSError as e:
            what = "is a symbolic link" if e.errno == errno.ELOOP else f"can't be opened: {e.strerror}"
            raise OutputError(what, where=path) from e
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OutputError("is not a regular file", where=path)  # noqa: TRY301 - closes what it opened
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._fd)
            raise OutputError("another process is working on this", where=path) from e
        except BaseException:
            os.close(self._fd)
            raise

    def lines(self) -> list[bytes]:
        """Everything that is there, line by line."""
        nbytes, data = os.fstat(self._fd).st_size, b""
        if nbytes > _MOST:
            raise OutputError("is too large", where=self.path, expected=f"at most {_MOST} bytes", found=nbytes)
        while piece := os.pread(self._fd, nbytes, len(data)):
            data += piece
        return data.split(b"\n")

    def append(self, line: bytes) -> None:
        """Add a line, on one of its own even behind a torn one."""
        data = memoryview(b"\n" + line + b"\n")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as e:
            raise OutputError(f"can't be written: {e.strerror}", where=self.path) from e

    def close(self) -> None:
        """Let others work on the file."""
        os.close(self._fd)
