"""Digests, beside the libraries that define them."""

import hashlib
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.records import Tensor
from chimerakit.stores.digest import Hasher, TensorDigests, digest_file, digest_of


@given(st.lists(st.binary(max_size=600), max_size=5))
def test_pieces_give_the_digest_of_the_whole(pieces: list[bytes]) -> None:
    """However bytes are cut, xxh3-128 and sha256 are those of all of them."""
    hasher, whole = Hasher(sha256=True), b"".join(pieces)
    for piece in pieces:
        hasher.update(memoryview(bytearray(piece)))
    assert hasher.xxh3 == xxhash.xxh3_128(whole).hexdigest() == digest_of(whole)
    assert hasher.sha256 == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize(
    ("data", "digest"),
    [(b"", "99aa06d3014798d86001c324468d497f"), (b"a", "a96faf705af16834e6c632b61e964e1f")],
)
def test_a_digest_is_the_published_one(data: bytes, digest: str) -> None:
    """xxh3-128 with seed 0, big-endian, as the xxhsum command prints it."""
    assert digest_of(data) == digest


def test_sha256_costs_nothing_unless_asked_for() -> None:
    """Without the wish for it there is no sha256."""
    assert Hasher().sha256 is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2), (0, 0, 1, 2), ()])
def test_a_tensor_is_digested_whole_in_whatever_order_it_came(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Pieces that did not come from first to last are read again from the file; the digests are the same."""
    data = bytes(range(90))
    (tmp_path / "file").write_bytes(b"head" + data + b"tail")
    digests, tensor = TensorDigests(sha256=True), Tensor("t", "U8", (90,), "file", 4, 90)
    for piece in order:
        digests.update(tensor, piece * 30, memoryview(data)[piece * 30 : piece * 30 + 30])
    found = digests.take(tensor, tmp_path / "file")
    assert (found.xxh3, found.sha256) == (xxhash.xxh3_128(data).hexdigest(), hashlib.sha256(data).hexdigest())


def test_a_file_is_digested_whole_or_up_to_a_byte(tmp_path: Path) -> None:
    """Without a number of bytes all of a file counts."""
    (tmp_path / "file").write_bytes(b"weights")
    assert digest_file(tmp_path / "file").xxh3 == digest_of(b"weights")
    assert digest_file(tmp_path / "file", 3).xxh3 == digest_of(b"wei")
