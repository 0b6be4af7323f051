"""Digests, beside the libraries that define them."""

import hashlib

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.stores.digest import Hasher, digest_of


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
