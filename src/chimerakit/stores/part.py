"""Files on this machine, written: none looks finished early, large ones go past the page cache.

Every file is opened with O_NOFOLLOW under a temporary name, so that nothing is ever written through a symlink, and
renamed when its bytes are on the disk.

Weights are gathered in a *stage* and written in large pieces. Whole pages go to the disk directly (O_DIRECT): a child
as large as a disk would push everything else out of the page cache, and would be written back at the kernel's pace
rather than the disk's. The ends of a piece that fill no page, small pieces, and file systems without direct writing go
through the page cache.
"""

import errno
import mmap
import os
import shutil
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

from chimerakit.errors import OutputError
from chimerakit.stores.local import PART, ZEROS, Buffer, Reader
from chimerakit.stores.system import clone_range, reserve

PAGE = 4096
"""Bytes; what direct writes are aligned to, in the file and in memory."""
STAGE = 8 << 20
"""Bytes of a stage. A multiple of PAGE."""
_DIRECT = 1 << 20
"""Smaller pieces are not worth waiting for the disk."""
_STRAY = 64 << 10
"""Smaller pieces that do not follow the last one are written at once, and the stage is left as it is."""


def _refuse(path: Path, e: OSError) -> OutputError:
    if e.errno == errno.ELOOP:
        return OutputError("is a symbolic link; output is never written through one", where=path, do="remove it")
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("no space left", where=path, do="free some space and run the same command again")
    do = "look after the disk and run the same command again" if e.errno == errno.EIO else ""
    return OutputError(f"can't be written: {e.strerror}", where=path, do=do)


class PartFile:
    """A file of known size under its temporary name, written by ranges from any number of jobs.

    is_new: whether it is made if it is not there.
    """

    def __init__(self, path: Path, nbytes: int, *, is_new: bool = True):
        self.path = path
        self.part = path.with_name(path.name + PART)
        self._direct: int | None = None
        self._is_direct = self._is_cloneable = True  # until the file system says no
        self._fd = self._open(os.O_RDWR | (os.O_CREAT if is_new else 0))
        try:
            if os.fstat(self._fd).st_size != nbytes:
                os.ftruncate(self._fd, nbytes)
        except OSError as e:
            os.close(self._fd)
            raise _refuse(self.part, e) from e

    def _open(self, flags: int) -> int:
        try:
            return os.open(self.part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise _refuse(self.part, e) from e

    def write(self, data: Buffer, start: int) -> None:
        """Put bytes at an offset."""
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], start + done)
        except OSError as e:
            raise _refuse(self.part, e) from e

    def write_aligned(self, data: memoryview, start: int) -> None:
        """Put bytes at an offset that lies as far behind a page's beginning as they do in memory; whole pages directly."""
        head = min(-start % PAGE, len(data))
        tail = len(data) - (len(data) - head) % PAGE
        if tail - head < _DIRECT or not self._write_directly(data[head:tail], start + head):
            head = tail = len(data)
        self.write(data[:head], start)
        self.write(data[tail:], start + tail)

    def _write_directly(self, data: memoryview, start: int) -> bool:
        """Write past the page cache; False where the file system does not do that."""
        if self._is_direct and self._direct is None:
            try:
                self._direct = os.open(self.part, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                self._is_direct = False
        if self._direct is None:
            return False
        try:
            done = os.pwrite(self._direct, data, start)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise _refuse(self.part, e) from e
            os.close(self._direct)
            self._direct, self._is_direct = None, False
            return False
        self.write(data[done:], start + done)
        return True

    def reserve(self, start: int, nbytes: int) -> None:
        """Take the space of a range before it is written, where that can be done."""
        try:
            reserve(self._fd, start, nbytes)
        except OSError as e:
            raise _refuse(self.part, e) from e

    def clone(self, source: Reader, source_start: int, nbytes: int, start: int) -> bool:
        """Share whole pages with another file (reflink); False where that can't be done."""
        try:
            self._is_cloneable = self._is_cloneable and clone_range(
                source.fileno(), source_start, nbytes, self._fd, start
            )
        except OSError as e:
            raise _refuse(self.part, e) from e
        return self._is_cloneable

    def skip(self, start: int, nbytes: int) -> None:
        """Leave zeros in a range: as a hole, but for what an earlier call may have left there."""
        end = start + nbytes
        try:
            while start < end and (start := os.lseek(self._fd, start, os.SEEK_DATA)) < end:
                piece = min(len(ZEROS), end - start)
                self.write(ZEROS[:piece], start)
                start += piece
        except OSError as e:
            if e.errno != errno.ENXIO:  # no data up to the end of the file
                raise _refuse(self.part, e) from e

    def sync(self) -> None:
        """Wait until the bytes are on the disk."""
        try:
            os.fsync(self._fd)
        except OSError as e:
            raise _refuse(self.part, e) from e

    def close(self) -> None:
        """Close without renaming."""
        for fd in (self._fd, self._direct):
            if fd is not None:
                os.close(fd)


class Stage:
    """Memory in which bytes that follow each other in a file are gathered, to be written together."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, STAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a direct write pins its pages; where huge ones exist, there are 512 times fewer
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(memory)
        self._part: PartFile | None = None
        self._start = self._end = 0

    def room(self, part: PartFile, start: int, nbytes: int) -> memoryview:
        """Memory for some of the bytes that belong at `start`, at most `nbytes` of them; what is put there counts."""
        if part is not self._part or start != self._end or self._end - self._first_page() == STAGE:
            self.flush()
            self._part, self._start, self._end = part, start, start
        used = self._end - self._first_page()
        found = self._memory[used : min(used + nbytes, STAGE)]
        self._end += len(found)
        return found

    def write(self, part: PartFile, start: int, data: memoryview) -> None:
        """Take bytes of a file."""
        if len(data) < _STRAY and (part is not self._part or start != self._end):
            part.write(data, start)
            return
        done = 0
        while done < len(data):
            room = self.room(part, start + done, len(data) - done)
            room[:] = data[done : done + len(room)]
            done += len(room)

    def flush(self) -> None:
        """Write what is gathered."""
        if self._part is not None and self._end > self._start:
            first = self._first_page()
            self._part.write_aligned(self._memory[self._start - first : self._end - first], self._start)
        self._start = self._end

    def _first_page(self) -> int:
        return self._start - self._start % PAGE


def finish_file(path: Path, part: Path | None = None) -> None:
    """Give a complete part file, which has the usual temporary name unless it is said, its name."""
    part = part or path.with_name(path.name + PART)
    try:
        part.rename(path)
        sync_folder(path.parent)
    except OSError as e:
        raise _refuse(path, e) from e


def new_part(path: Path, nbytes: int, *, below: Path | None = None) -> PartFile:
    """A part file that begins empty, whatever an earlier call left; its folder is made where `below` is given."""
    if below is not None:
        make_folder(path.parent, below)
    part = path.with_name(path.name + PART)
    try:
        part.unlink(missing_ok=True)
    except OSError as e:
        raise _refuse(part, e) from e
    return PartFile(path, nbytes)


def write_file(path: Path, data: bytes, *, below: Path | None = None) -> None:
    """Write a whole small file: never half, never through a symlink."""
    with closing(new_part(path, len(data), below=below)) as file:
        file.write(data, 0)
        file.sync()
    finish_file(path)


def write_file_too(path: Path, data: bytes, *, beside: Path | None = None) -> None:
    """The same where others may write this file at the same moment, perhaps on other machines: one of them is the last.

    beside: a folder for what is unfinished, if it shall not lie in the file's own.
    """
    with closing(PartFile((beside or path.parent) / f"{path.name}.{uuid4().hex}", len(data))) as file:
        file.write(data, 0)
        file.sync()
    finish_file(path, file.part)


def make_folder(path: Path, below: Path | None = None) -> None:
    """Make a folder and those above it; refuses a symlink in its place, or between it and the folder `below`."""
    above = () if below is None else [p for p in path.parents if below in p.parents]
    for folder in (path, *above):
        if folder.is_symlink():
            raise OutputError("is a symbolic link; output is never written through one", where=folder, do="remove it")
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            with suppress(PermissionError):  # a folder that may be entered but not listed can't be synced
                sync_folder(folder.parent)
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


def allocated_nbytes(path: Path) -> int:
    """Bytes that a file takes on its disk; fewer than it has where there are holes in it."""
    return path.stat().st_blocks * 512


def has_links(folder: Path) -> bool:
    """Whether files in a folder can have second names: tried with an empty one."""
    one = folder / f".empty-{os.getpid()}"
    try:
        os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return can_link(one, folder)
    except OSError:
        return False
    finally:
        one.unlink(missing_ok=True)


def can_link(source: Path, folder: Path) -> bool:
    """Whether a file can get a second name in a folder that is there: tried, and taken away again."""
    name = folder / f".link-{os.getpid()}"
    try:
        name.hardlink_to(source)
        name.unlink()
    except OSError:
        return False
    return True


def can_share(source: Path, folder: Path) -> bool:
    """Whether files in a folder, which may not exist yet, can share blocks with a file: tried in one without a name."""
    while not folder.exists():
        folder = folder.parent
    reader = Reader(source)
    try:
        target = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            return reader.nbytes >= PAGE and clone_range(reader.fileno(), 0, PAGE, target, 0)
        finally:
            os.close(target)
    except OSError:
        return False
    finally:
        reader.close()
