"""Files on this machine, read: ranges without a file position, holes without reading them.

Parents may be symlinks (the hub's cache is made of them) and are followed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chimerakit.errors import ChangedError, CheckpointError

Buffer = bytes | bytearray | memoryview

CHUNK = 4 << 20
"""Bytes moved at a time when nothing else decides."""
PART = ".part"
"""Ends the name of a file that is still being written."""
ZEROS = bytes(1 << 20)


class Piece(NamedTuple):
    """Some bytes of a range that is read from its beginning to its end."""

    start: int
    """Where they begin, from the beginning of the range."""
    nbytes: int
    data: memoryview | None
    """The bytes, overwritten by the next piece; None in a hole, where all are zeros and nothing is read."""


# --------------------------------------------------------------------------------------------- reading


class Reader:
    """An open file that is read by ranges; safe to share between threads."""

    def __init__(self, path: Path, signature: tuple[int, int] | None = None):
        self.path = path
        try:
            # O_NONBLOCK: a pipe in a file's place is refused below, not waited for.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise CheckpointError(f"can't be opened: {e.strerror}", where=path) from e
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError("is not a regular file", where=path)  # noqa: TRY301 - closes what it opened
            if signature is not None and (found.st_size, found.st_mtime_ns) != signature:
                raise ChangedError(  # noqa: TRY301
                    "has changed since the plan was made",
                    where=path,
                    expected=f"{signature[0]} bytes, modified at {signature[1]} ns",
                    found=f"{found.st_size} bytes, modified at {found.st_mtime_ns} ns",
                    do="plan again; start the child over with --force if the change was meant",
                )
        except BaseException:
            os.close(self._fd)
            raise
        self.nbytes = found.st_size
        self.mtime_ns = found.st_mtime_ns
        self.is_sparse = found.st_blocks * 512 < found.st_size
        """Whether there may be holes in it."""

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer with the bytes from `start` on."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], start + done)
                if count == 0:
                    raise self._too_short(start + len(buffer), start + done)
                done += count
        except OSError as e:
            raise self._unreadable(start + done, e) from e

    def _too_short(self, expected: int, found: int) -> CheckpointError:
        return CheckpointError(
            "ends too early", where=self.path, expected=f"{expected} bytes", found=found, do="get the file again"
        )

    def _unreadable(self, at: int, e: OSError) -> CheckpointError:
        return CheckpointError(
            f"can't be read at byte {at}: {e.strerror}",
            where=self.path,
            do="check the disk, get the file again, and run the same command again",
        )

    def read(self, start: int, nbytes: int) -> bytes:
        """The bytes of a range."""
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def pieces(self, start: int, nbytes: int, buffer: memoryview) -> Iterator[Piece]:
        """All bytes of a range in order, a buffer at a time; holes at once, however large."""
        for first, last, is_data in self.extents(start, nbytes):
            if not is_data:
                yield Piece(first - start, last - first, None)
                continue
            for at in range(first, last, len(buffer)):
                data = buffer[: min(len(buffer), last - at)]
                self.read_into(data, at)
                yield Piece(at - start, len(data), data)

    def extents(self, start: int, nbytes: int) -> Iterator[tuple[int, int, bool]]:
        """(from, to, whether it is data) of a range, in order; what is no data is a hole of zeros."""
        end = start + nbytes
        if end > self.nbytes:
            raise self._too_short(end, self.nbytes)
        while start < end:
            data = self._seek(start, os.SEEK_DATA, end) if self.is_sparse else start
            if data > start:
                yield start, data, False
            start = data
            if data < end:
                start = self._seek(data, os.SEEK_HOLE, end) if self.is_sparse else end
                yield data, start, True

    def is_hole(self, start: int, nbytes: int) -> bool:
        """Whether all bytes of a range are zeros that are stored nowhere."""
        return self.is_sparse and not any(is_data for *_, is_data in self.extents(start, nbytes))

    def _seek(self, start: int, whence: int, end: int) -> int:
        """Where data, or the next hole, begins; the file position that moves is used by nobody."""
        try:
            return min(os.lseek(self._fd, start, whence), end)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data up to the end of the file
                return end
            raise self._unreadable(start, e) from e

    def check_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened: its bytes may be of two versions."""
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.nbytes, self.mtime_ns):
            raise ChangedError(
                "was changed while it was read",
                where=self.path,
                do="plan again; start the child over with --force if the change was meant",
            )

    def fileno(self) -> int:
        """The descriptor, for calls that take one."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Readers:
    """Files opened when first asked for, closed together. kind: how they are read."""

    def __init__(self, kind: type[Reader] = Reader) -> None:
        self._kind = kind
        self._open: dict[Path, Reader] = {}

    def get(self, path: Path, signature: tuple[int, int] | None = None) -> Reader:
        """The reader of a file."""
        if path not in self._open:
            self._open[path] = self._kind(path, signature)
        return self._open[path]

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def check_unchanged(self) -> None:
        """Refuse if any of the files was written to since it was opened."""
        for reader in self._open.values():
            reader.check_unchanged()


def read_file(path: Path, limit: int) -> bytes:
    """A whole small file; `limit` keeps a hostile one from filling memory."""
    reader = Reader(path)
    try:
        if reader.nbytes > limit:
            raise CheckpointError("is too large", where=path, expected=f"at most {limit} bytes", found=reader.nbytes)
        return reader.read(0, reader.nbytes)
    finally:
        reader.close()


def list_files(root: Path) -> list[tuple[str, int]]:
    """Names (with folders, relative) and sizes of all regular files under a folder but hidden ones, sorted.

    A name that is no text is refused: it could not be written down in a plan or manifest.
    """

    def refuse(e: OSError) -> None:
        raise CheckpointError(f"can't be listed: {e.strerror}", where=e.filename or root)

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                found.append((path.relative_to(root).as_posix(), path.stat().st_size))
    for name, _ in found:
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise CheckpointError("holds a file whose name is not UTF-8", where=root, found=name, do="rename the file")
    return sorted(found)


def list_links(root: Path) -> tuple[list[str], list[str]]:
    """Symbolic links under a folder that `list_files` passes by: those that lead nowhere, and those to folders."""
    broken: list[str] = []
    folders: list[str] = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(f for f in below if not f.startswith("."))
        for name in (*below, *names):
            path = Path(folder, name)
            if path.is_symlink() and not name.startswith("."):
                kind = folders if path.is_dir() else broken
                if kind is folders or not path.exists():
                    kind.append(path.relative_to(root).as_posix())
    return sorted(broken), sorted(folders)
