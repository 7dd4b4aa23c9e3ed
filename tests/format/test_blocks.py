"""The 64-byte blocks of a pack."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, InvalidInput, Unsupported
from fwstore.format.blocks import (
    BLOCK_BYTES,
    CHUNKS_MAX,
    FOOTER_BYTES_MAX,
    ChunkHeader,
    PackIdentity,
    Trailer,
    encode_chunk_header,
    encode_header,
    encode_trailer,
    parse_chunk_header,
    parse_header,
    parse_trailer,
)
from fwstore.format.tensor import CELL_BYTES_MAX
from support.damage import flips, refuses, truncations
from support.samples import IDENTITY

CHUNK = ChunkHeader(1, 4096, 700, bytes(range(16)), bytes(range(16, 32)))
TRAILER = Trailer(64 * 100, 777, bytes(range(32)), 42)
SIZE = 64 * 100 + 777 + BLOCK_BYTES

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(st.binary(min_size=16, max_size=16), U64, U64, U32, U32, st.binary(min_size=8, max_size=8))
def test_headers_come_back(
    lineage: bytes, term: int, save: int, rank: int, number: int, token: bytes
) -> None:
    identity = PackIdentity(
        lineage=lineage.hex(), term=term, save=save, rank=rank, number=number, token=token.hex()
    )
    header = encode_header(identity)
    assert len(header) == BLOCK_BYTES
    assert parse_header(header) == identity


@given(st.integers(1, CELL_BYTES_MAX), st.data())
def test_chunk_headers_come_back(raw_length: int, data: st.DataObject) -> None:
    codec = data.draw(st.integers(0, 255 if raw_length > 1 else 0))
    stored = raw_length if codec == 0 else data.draw(st.integers(1, raw_length - 1))
    half = st.binary(min_size=16, max_size=16)
    chunk = ChunkHeader(codec, raw_length, stored, data.draw(half), data.draw(half))
    header = encode_chunk_header(chunk)
    assert len(header) == BLOCK_BYTES
    assert parse_chunk_header(header) == chunk


def test_trailers_come_back() -> None:
    stored = encode_trailer(TRAILER)
    assert len(stored) == BLOCK_BYTES
    assert parse_trailer(stored, SIZE) == TRAILER


def test_every_flip_and_truncation_of_every_block_is_refused() -> None:
    for stored, parse in (
        (encode_header(IDENTITY), parse_header),
        (encode_chunk_header(CHUNK), parse_chunk_header),
        (encode_trailer(TRAILER), lambda block: parse_trailer(block, SIZE)),
    ):
        assert all(refuses(parse, bad) for _, bad in flips(stored))
        assert all(refuses(parse, bad) for _, bad in truncations(stored))
        assert refuses(parse, stored + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        {"raw_length": 0, "stored_length": 0},
        {"stored_length": 0},
        {"stored_length": 4096},
        {"codec": 0},
        {"raw_length": CELL_BYTES_MAX + 1},
        {"raw_length": 2**64 - 1},
    ],
)
def test_chunks_of_impossible_lengths_are_corrupt(change: dict[str, int]) -> None:
    with pytest.raises(Corrupt, match="lengths"):
        parse_chunk_header(encode_chunk_header(dataclasses.replace(CHUNK, **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trailer", "size"),
    [
        (TRAILER, SIZE + 1),
        (TRAILER, 0),
        (dataclasses.replace(TRAILER, footer_offset=6401, footer_length=776), SIZE),
        (dataclasses.replace(TRAILER, footer_offset=0, footer_length=SIZE - 64), SIZE),
        (dataclasses.replace(TRAILER, footer_offset=2**64 - 64), SIZE),
        (dataclasses.replace(TRAILER, chunks=CHUNKS_MAX + 1), SIZE),
        (Trailer(64, FOOTER_BYTES_MAX + 1, bytes(32), 1), 64 + FOOTER_BYTES_MAX + 1 + 64),
    ],
)
def test_trailers_that_point_elsewhere_are_corrupt(trailer: Trailer, size: int) -> None:
    with pytest.raises(Corrupt):
        parse_trailer(encode_trailer(trailer), size)


@pytest.mark.parametrize(
    "change", [{"lineage": "00"}, {"token": "xx"}, {"term": -1}, {"rank": 2**32}, {"save": 2**64}]
)
def test_identities_that_do_not_fit_are_invalid(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        encode_header(dataclasses.replace(IDENTITY, **change))  # type: ignore[arg-type]


def test_later_versions_are_named() -> None:
    with pytest.raises(Unsupported, match="version 9"):
        parse_header(b"fw9" + encode_header(IDENTITY)[3:])
    with pytest.raises(Unsupported, match="features 0"):
        parse_header(encode_header(IDENTITY)[:8] + b"\1" + encode_header(IDENTITY)[9:])
