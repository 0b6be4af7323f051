"""Digests of stored bytes: xxh3-128 always (finds accidents, not forgers), sha256 on request (finds both)."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import xxhash

from chimerakit.records import Tensor
from chimerakit.stores.local import CHUNK, ZEROS, Buffer, Reader


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

    def update_zeros(self, nbytes: int) -> None:
        """Take so many zeros, as a hole in a file holds them."""
        for start in range(0, nbytes, len(ZEROS)):
            self.update(ZEROS[: nbytes - start])

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
    hasher = Hasher(sha256=sha256)
    for piece in reader.pieces(start, nbytes, memoryview(bytearray(min(CHUNK, nbytes)))):
        if piece.nbytes == nbytes and piece.data is None:
            hasher = digest_zeros(nbytes, sha256=sha256)
        elif piece.data is None:
            hasher.update_zeros(piece.nbytes)
        else:
            hasher.update(piece.data)
        if report is not None:
            report(piece.nbytes)
    return hasher


@lru_cache(maxsize=256)
def digest_zeros(nbytes: int, *, sha256: bool) -> Hasher:
    """The digests of nothing but zeros; not to be updated. A sparse checkpoint's tensors have a dozen sizes in all."""
    hasher = Hasher(sha256=sha256)
    hasher.update_zeros(nbytes)
    return hasher


def digest_file(path: Path, nbytes: int | None = None, *, sha256: bool = False) -> Hasher:
    """The digests of a file, or of its first bytes."""
    reader = Reader(path)
    try:
        return digest_range(reader, 0, reader.nbytes if nbytes is None else nbytes, sha256=sha256)
    finally:
        reader.close()


class TensorDigests:
    """Digests of tensors whose bytes pass by in pieces; one whose pieces came in another order is read again."""

    def __init__(self, *, sha256: bool):
        self._sha256 = sha256
        self._begun: dict[str, tuple[int, Hasher]] = {}

    def update(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Take bytes of a tensor, from `start` on within it."""
        done, hasher = self._begun.setdefault(tensor.name, (0, Hasher(sha256=self._sha256)))
        if done == start:
            hasher.update(data)
            self._begun[tensor.name] = (done + memoryview(data).nbytes, hasher)

    def update_zeros(self, tensor: Tensor, start: int, nbytes: int) -> None:
        """Take zeros of a tensor, from `start` on within it."""
        if nbytes == tensor.nbytes:
            self._begun[tensor.name] = (nbytes, digest_zeros(nbytes, sha256=self._sha256))
            return
        done, hasher = self._begun.setdefault(tensor.name, (0, Hasher(sha256=self._sha256)))
        if done == start:
            hasher.update_zeros(nbytes)
            self._begun[tensor.name] = (done + nbytes, hasher)

    def is_complete(self, tensor: Tensor) -> bool:
        """Whether all bytes of a tensor passed by in order."""
        return self._begun.get(tensor.name, (0, None))[0] == tensor.nbytes

    def take(self, tensor: Tensor, file: Path) -> Hasher:
        """The digests of a tensor that lies in `file` by now; they are forgotten here."""
        done, hasher = self._begun.pop(tensor.name, (0, Hasher(sha256=self._sha256)))
        if done == tensor.nbytes:
            return hasher
        reader = Reader(file)
        try:
            return digest_range(reader, tensor.start, tensor.nbytes, sha256=self._sha256)
        finally:
            reader.close()


def digest_of(data: bytes) -> str:
    """xxh3-128 of some bytes."""
    return str(xxhash.xxh3_128_hexdigest(data))
