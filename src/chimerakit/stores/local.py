"""Files on this machine: ranges read without moving a file position, files written so that none looks finished early.

Parents may be symlinks (the hub's cache is made of them) and are followed. The child never is: every file that is
written is opened with O_NOFOLLOW under a temporary name and renamed when its bytes are on the disk.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from chimerakit.errors import ChangedError, CheckpointError, OutputError

Buffer = bytes | bytearray | memoryview

CHUNK = 4 << 20
"""Bytes moved at a time when nothing else decides."""
PART = ".part"
"""Ends the name of a file that is still being written."""


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

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer with the bytes from `start` on."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], start + done)
                if count == 0:
                    raise CheckpointError(
                        "ends too early", where=self.path, expected=f"{start + len(buffer)} bytes", found=start + done
                    )
                done += count
        except OSError as e:
            raise CheckpointError(f"can't be read at byte {start + done}: {e.strerror}", where=self.path) from e

    def read(self, start: int, nbytes: int) -> bytes:
        """The bytes of a range."""
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def chunks(self, start: int, nbytes: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of a range, a buffer at a time; each piece is overwritten by the next."""
        done = 0
        while done < nbytes:
            piece = buffer[: min(len(buffer), nbytes - done)]
            self.read_into(piece, start + done)
            yield piece
            done += len(piece)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Readers:
    """Files opened when first asked for, closed together."""

    def __init__(self) -> None:
        self._open: dict[Path, Reader] = {}

    def get(self, path: Path, signature: tuple[int, int] | None = None) -> Reader:
        """The reader of a file."""
        if path not in self._open:
            self._open[path] = Reader(path, signature)
        return self._open[path]

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._open.values():
            reader.close()
        self._open.clear()


def same_bytes(a: memoryview, b: memoryview) -> bool:
    """Whether two buffers are equal. Comparing memoryviews goes element by element; bytes are compared at once."""
    return bytes(a) == bytes(b)


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


# --------------------------------------------------------------------------------------------- writing


def _refuse(path: Path, e: OSError) -> OutputError:
    if e.errno == errno.ELOOP:
        return OutputError("is a symbolic link; output is never written through one", where=path, do="remove it")
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("no space left", where=path, do="free some space and run the same command again")
    return OutputError(f"can't be written: {e.strerror}", where=path)


class PartFile:
    """A file of known size under its temporary name, written by ranges from any number of jobs."""

    def __init__(self, path: Path, nbytes: int):
        self.path = path
        self.part = path.with_name(path.name + PART)
        try:
            self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise _refuse(self.part, e) from e
        try:
            if os.fstat(self._fd).st_size != nbytes:
                os.ftruncate(self._fd, nbytes)
        except OSError as e:
            os.close(self._fd)
            raise _refuse(self.part, e) from e

    def write(self, data: Buffer, start: int) -> None:
        """Put bytes at an offset."""
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], start + done)
        except OSError as e:
            raise _refuse(self.part, e) from e

    def sync(self) -> None:
        """Wait until the bytes are on the disk."""
        try:
            os.fsync(self._fd)
        except OSError as e:
            raise _refuse(self.part, e) from e

    def close(self) -> None:
        """Close without renaming."""
        os.close(self._fd)


def finish_file(path: Path) -> None:
    """Give a complete part file its name."""
    part = path.with_name(path.name + PART)
    try:
        part.rename(path)
        sync_folder(path.parent)
    except OSError as e:
        raise _refuse(path, e) from e


def write_file(path: Path, data: bytes) -> None:
    """Write a whole small file: never half, never through a symlink."""
    part = path.with_name(path.name + PART)
    try:
        part.unlink(missing_ok=True)
    except OSError as e:
        raise _refuse(part, e) from e
    file = PartFile(path, len(data))
    try:
        file.write(data, 0)
        file.sync()
    finally:
        file.close()
    finish_file(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; refuses a symlink in its place."""
    if path.is_symlink():
        raise OutputError("is a symbolic link; output is never written through one", where=path, do="remove it")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _refuse(path, e) from e


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_nbytes(path: Path) -> int:
    """Bytes that can still be written at a path that may not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
