"""Digests against their published values, and keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import InvalidInput
from fwstore.codec.hashing import ContentHash, xxh3_128


def test_digests_are_the_published_ones() -> None:
    # The vectors of the BLAKE3 repository for input lengths 0 and 3, and XXH3-128 of nothing.
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert ContentHash().digest(b"").hex() == empty
    three = "e1be4d7a8ab5560aa4199eea339849ba8e293d55ca0a81006726d184519e647f"
    assert ContentHash().digest(bytes([0, 1, 2])).hex() == three
    keyed = ContentHash(b"whats the Elvish word for friend").digest(b"")
    assert keyed.hex() == "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"
    assert xxh3_128(b"").hex() == "99aa06d3014798d86001c324468d497f"


@given(
    st.lists(st.binary(max_size=100), max_size=5), st.none() | st.binary(min_size=32, max_size=32)
)
def test_buffers_are_hashed_one_after_another(buffers: list[bytes], key: bytes | None) -> None:
    content_hash = ContentHash(key)
    views = [memoryview(bytearray(buffer)) for buffer in buffers]
    assert content_hash.digest(*views) == content_hash.digest(b"".join(buffers))


def test_a_key_changes_every_digest_and_is_not_shown() -> None:
    one, two = ContentHash(bytes(32)), ContentHash(bytes([1] * 32))
    assert len({ContentHash().digest(b"x"), one.digest(b"x"), two.digest(b"x")}) == 3
    assert one.key_id != two.key_id
    assert ContentHash().key_id is None
    assert len(one.key_id or "") == 32
    assert "\\x00" not in repr(one)
    assert one.key is not None
    assert one.key.hex() not in repr(one)


def test_a_key_of_another_length_is_invalid() -> None:
    with pytest.raises(InvalidInput, match="32"):
        ContentHash(b"short")
