"""The roof of the disk: as many bytes as a child has, written past the page cache out of memory. Nothing is read.

python -m benchmarks.direct FOLDER BYTES
"""

import ctypes
import mmap
import os
import sys
import threading
from pathlib import Path

PIECE = 8 << 20
THREADS = 3


def main(folder: Path, nbytes: int) -> None:
    folder.mkdir()
    fd = os.open(folder / "data", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    libc = ctypes.CDLL(None)
    libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes))
    threads = [threading.Thread(target=write, args=(fd, nbytes, number)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync(fd)


def write(fd: int, nbytes: int, number: int) -> None:
    """Every third piece of the file."""
    memory = mmap.mmap(-1, PIECE)
    memory[:] = os.urandom(PIECE)
    for start in range(number * PIECE, nbytes - PIECE + 1, THREADS * PIECE):
        os.pwrite(fd, memory, start)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
