"""Codecs: lossless, bounded, and honest about what they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, InternalError, InvalidInput, Unsupported
from fwstore.codec.registry import (
    RAW,
    ZSTD_1,
    ZSTD_3,
    Codec,
    codec_of_name,
    codec_of_number,
    encode_verified,
)
from fwstore.format.blocks import RAW_CODEC
from support.damage import flips, refuses, truncations

RAW_BYTES = bytes(range(7)) * 100


@given(st.binary(max_size=40), st.integers(1, 60), st.sampled_from([RAW, ZSTD_1, ZSTD_3]))
def test_what_is_encoded_is_decoded(pattern: bytes, times: int, codec: Codec) -> None:
    raw = memoryview(pattern * times)
    stored = codec.encode(raw)
    if stored is not None:
        assert len(stored) <= raw.nbytes - raw.nbytes // 16
        assert codec.decode(memoryview(stored), raw.nbytes) == raw
        assert codec_of_number(codec.number).decode(memoryview(stored), raw.nbytes) == raw


def test_what_does_not_pay_is_stored_raw() -> None:
    assert RAW.encode(memoryview(bytes(1000))) is None
    assert ZSTD_1.encode(memoryview(bytes(range(256)))) is None
    assert ZSTD_1.encode(memoryview(b"")) is None
    assert ZSTD_1.encode(memoryview(bytes(1000))) is not None


def test_names_and_numbers_are_fixed() -> None:
    assert RAW.number == RAW_CODEC == 0
    assert ZSTD_1.number == ZSTD_3.number == 1
    assert codec_of_name("zstd") is codec_of_name("zstd-1") is ZSTD_1
    assert codec_of_name("zstd-3") is ZSTD_3
    assert codec_of_number(1).name == "zstd-1"
    with pytest.raises(InvalidInput, match="zstd-3 or auto"):
        codec_of_name("lz4")
    with pytest.raises(Unsupported, match="codec 9"):
        codec_of_number(9)


def test_stored_bytes_of_another_length_are_corrupt() -> None:
    stored = ZSTD_3.encode(memoryview(RAW_BYTES))
    assert stored is not None
    for bad in [bad for _, bad in truncations(stored)] + [stored + b"\0"]:
        with pytest.raises(Corrupt):
            ZSTD_3.decode(memoryview(bad), len(RAW_BYTES))
    for length in (0, len(RAW_BYTES) - 1, len(RAW_BYTES) + 1, 2**63):
        with pytest.raises(Corrupt):
            ZSTD_3.decode(memoryview(stored), length)
        with pytest.raises(Corrupt):
            RAW.decode(memoryview(RAW_BYTES), length)


def test_flips_raise_only_corrupt() -> None:
    # XXH3 of the stored bytes finds a flip before the decoder sees it.
    stored = ZSTD_1.encode(memoryview(RAW_BYTES))
    assert stored is not None
    for _, bad in flips(stored):
        if not refuses(lambda found: ZSTD_1.decode(memoryview(found), len(RAW_BYTES)), bad):
            assert len(ZSTD_1.decode(memoryview(bad), len(RAW_BYTES))) == len(RAW_BYTES)


def test_buffers_of_any_element_type_are_verified_by_their_bytes() -> None:
    numbers = np.zeros((4, 32), np.float32)
    numbers[1] = np.nan
    stored = encode_verified(ZSTD_1, numbers.data)
    assert stored is not None
    assert ZSTD_1.decode(memoryview(stored), numbers.nbytes) == numbers.tobytes()


@dataclass(frozen=True)
class Forgetful:
    """A codec that loses the last byte."""

    name: str = "forgetful"
    number: int = 200

    def encode(self, raw: memoryview) -> bytes | None:
        return bytes(raw[:-1])

    def decode(self, stored: memoryview, raw_length: int) -> bytes | memoryview:
        return bytes(stored) + bytes(raw_length - len(stored))


def test_a_codec_that_lies_is_found_before_anything_is_stored() -> None:
    with pytest.raises(InternalError, match="forgetful"):
        encode_verified(Forgetful(), memoryview(RAW_BYTES))
    assert encode_verified(Forgetful(), memoryview(RAW_BYTES + b"\0")) == RAW_BYTES
    assert encode_verified(RAW, memoryview(RAW_BYTES)) is None
    assert encode_verified(ZSTD_1, memoryview(RAW_BYTES)) == ZSTD_1.encode(memoryview(RAW_BYTES))
