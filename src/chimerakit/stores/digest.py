"""Digests of stored bytes: xxh3-128 always (finds accidents, not forgers), sha256 on request (finds both)."""

import hashlib
from collections.abc import Callable

import xxhash

from chimerakit.stores.local import CHUNK, Buffer, Reader


class Hasher:
    """Digests bytes as they pass by."""

    def __init__(self, *, sha256: bool = False):
        self._xxh3 = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if sha256 else None

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._xxh3.update(data)
        if self._sha256:
            self._sha256.update(data)

    @property
    def xxh3(self) -> str:
        """xxh3-128 so far, 32 hexadecimal digits."""
        return str(self._xxh3.hexdigest())

    @property
    def sha256(self) -> str | None:
        """sha256 so far, if it was asked for."""
        return self._sha256.hexdigest() if self._sha256 else None


def digest_range(
    reader: Reader, start: int, nbytes: int, *, sha256: bool = False, report: Callable[[int], None] | None = None
) -> Hasher:
    """The digests of a range of a file; `report` is told the bytes as they are read."""
    hasher, buffer = Hasher(sha256=sha256), memoryview(bytearray(min(CHUNK, nbytes)))
    for piece in reader.chunks(start, nbytes, buffer):
        hasher.update(piece)
        if report is not None:
            report(len(piece))
    return hasher


def digest_of(data: bytes) -> str:
    """xxh3-128 of some bytes."""
    return str(xxhash.xxh3_128_hexdigest(data))
