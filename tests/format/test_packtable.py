"""The pack table."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded
from fwstore.format.columnar import encode_table
from fwstore.format.keys import LineageKeys, parse_pack_key
from fwstore.format.packtable import (
    KIND,
    PACK_SCHEMA,
    PACKS_PER_PART,
    PackInfo,
    encode_pack_table,
    pack_columns,
    parse_pack_table,
)
from support.damage import flips, refuses, truncations
from support.samples import sample_packs

U63 = st.integers(0, 2**63 - 1)


def packs() -> st.SearchStrategy[PackInfo]:
    return st.builds(
        PackInfo,
        lineage=st.integers(0, 5),
        spread=st.integers(0, 255),
        term=U63,
        save=U63,
        rank=U63,
        number=U63,
        token=st.binary(min_size=8, max_size=8).map(bytes.hex),
        incarnation=U63,
        size=st.integers(1 << 20, 2**63 - 1),
        footer_length=st.integers(0, 1 << 19),
        footer_digest=st.binary(min_size=32, max_size=32),
        chunks=U63,
    )


@settings(max_examples=50)
@given(st.integers(0, 2**64 - 1), st.lists(packs(), max_size=10))
def test_a_part_comes_back(first: int, rows: list[PackInfo]) -> None:
    assert parse_pack_table(encode_pack_table(first, rows)) == (first, tuple(rows))


def test_a_row_names_its_pack() -> None:
    own, other = sample_packs()
    lineages = [LineageKeys("gpt/large", 2), LineageKeys("base", 1)]
    assert own.key(lineages) == "packs/gpt/large@2/2a/t3-s41-r000005-1-0123456789abcdef"
    assert other.key(lineages) == "packs/base@1/ff/t1-s0-r123456-7-fedcba9876543210.2"
    assert parse_pack_key(other.key(lineages)).incarnation == 2
    assert other.footer_offset == 4096 - 512 - 64
    with pytest.raises(Corrupt, match="lineage 1"):
        other.key(lineages[:1])


def test_a_full_part_takes_little_more_than_its_digests() -> None:
    own, _ = sample_packs()
    rows = [
        dataclasses.replace(own, rank=rank, token=f"{rank * 0x9E3779B97F4A7C15 % 2**64:016x}")
        for rank in range(PACKS_PER_PART)
    ]
    stored = encode_pack_table(0, rows)
    assert len(stored) < 16 * PACKS_PER_PART
    assert parse_pack_table(stored)[1] == tuple(rows)
    with pytest.raises(LimitExceeded):
        encode_pack_table(0, [*rows, own])


def test_every_truncation_is_refused_and_no_flip_escapes_as_another_error() -> None:
    # The root holds the digest of a part, so a flip that still parses never reaches the parser.
    stored = encode_pack_table(7, sample_packs())
    assert all(refuses(parse_pack_table, bad) for _, bad in truncations(stored))
    assert any(refuses(parse_pack_table, bad) for _, bad in flips(stored))


@pytest.mark.parametrize(
    "change",
    [
        {"spread": 256},
        {"term": -1},
        {"token": "00"},
        {"footer_digest": b""},
        {"footer_length": 4096},
        {"size": 127, "footer_length": 0},
    ],
)
def test_impossible_packs_are_refused(change: dict[str, object]) -> None:
    bad = dataclasses.replace(sample_packs()[1], **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        encode_pack_table(0, [bad])


def test_impossible_parts_are_corrupt() -> None:
    columns = pack_columns(sample_packs())
    for bad in (
        columns | {"pack_size": columns["pack_size"][:1]},
        columns | {"pack_spread": columns["pack_size"]},
        columns | {"pack_footer_length": columns["pack_size"]},
    ):
        with pytest.raises(Corrupt):
            parse_pack_table(encode_table(KIND, PACK_SCHEMA, bad, bytes(8)))
    with pytest.raises(Corrupt, match="first pack"):
        parse_pack_table(encode_table(KIND, PACK_SCHEMA, columns, b""))
