"""The roof of the disk, past the page cache: as many bytes as a child has, written out of memory; or all files of some
folders read once, and thrown away.

python -m benchmarks.direct write FOLDER BYTES
python -m benchmarks.direct read FOLDER...
"""

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

PIECE = 8 << 20
THREADS = 3


def write_folder(folder: Path, nbytes: int) -> None:
    folder.mkdir()
    fd = os.open(folder / "data", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    libc = ctypes.CDLL(None)
    libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes))
    in_threads(lambda number: write(fd, nbytes, number))
    os.fsync(fd)


def in_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write(fd: int, nbytes: int, number: int) -> None:
    """Every third piece of the file."""
    memory = mmap.mmap(-1, PIECE)
    memory[:] = os.urandom(PIECE)
    for start in range(number * PIECE, nbytes - PIECE + 1, THREADS * PIECE):
        os.pwrite(fd, memory, start)


def read_folders(folders: Sequence[Path]) -> None:
    for path in sorted(path for folder in folders for path in folder.glob("*.safetensors")):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        nbytes = os.fstat(fd).st_size
        in_threads(lambda number, fd=fd, nbytes=nbytes: read(fd, nbytes, number))  # type: ignore[misc]
        os.close(fd)


def read(fd: int, nbytes: int, number: int) -> None:
    """Every third piece of the file."""
    memory = mmap.mmap(-1, PIECE)
    for start in range(number * PIECE, nbytes, THREADS * PIECE):
        os.preadv(fd, [memory], start)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "write":
        write_folder(Path(words[0]), int(words[1]))
    else:
        read_folders([Path(word) for word in words])
