"""The columnar codec: round trips, strictness, bounds."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded, Unsupported
from fwstore.format.columnar import (
    ROWS_MAX,
    TABLE_BYTES_MAX,
    BytesColumn,
    FixedColumn,
    IntegerColumn,
    Schema,
    encode_table,
    parse_table,
)
from support.damage import flips, refuses, truncations

SCHEMA: Schema = {
    "plain": IntegerColumn(np.uint64),
    "delta": IntegerColumn(np.uint64, delta=True),
    "small": IntegerColumn(np.uint32, delta=True),
    "signed": IntegerColumn(np.int64),
    "byte": IntegerColumn(np.uint8),
    "fixed": FixedColumn(3),
    "texts": BytesColumn(),
}
HEADER, ENTRY = struct.Struct("<8sIHH"), struct.Struct("<BBHIII")


def rows(top: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, top) | st.integers(0, min(top, 300)), max_size=40)


@given(
    numbers=st.fixed_dictionaries(
        {
            "plain": rows(2**64 - 1),
            "delta": rows(2**64 - 1),
            "small": rows(2**32 - 1),
            "signed": rows(2**63 - 1),
            "byte": rows(255),
        }
    ),
    fixed=st.lists(st.binary(min_size=3, max_size=3), max_size=60),
    texts=st.lists(st.binary(max_size=50), max_size=40),
    meta=st.binary(max_size=100),
)
def test_what_is_encoded_is_parsed(
    numbers: dict[str, list[int]], fixed: list[bytes], texts: list[bytes], meta: bytes
) -> None:
    dtypes = {"plain": "u8", "delta": "u8", "small": "u4", "signed": "i8", "byte": "u1"}
    columns: dict[str, NDArray[Any]] = {
        name: np.array(numbers[name], dtype) for name, dtype in dtypes.items()
    }
    columns["fixed"] = np.frombuffer(b"".join(fixed), np.uint8).reshape(-1, 3)
    stored = encode_table("test", SCHEMA, {**columns, "texts": texts}, meta)
    table = parse_table("test", SCHEMA, stored)
    assert table.meta == meta
    assert table.strings("texts") == texts
    for name, values in columns.items():
        found = table.array(name)
        assert found.dtype == values.dtype
        assert found.tolist() == values.tolist()


def sample(rows: int = 60) -> bytes:
    ramp = np.arange(rows)
    columns: dict[str, Any] = {
        "plain": ramp * 1000,
        "delta": ramp * 65536,
        "small": ramp % 7,
        "signed": ramp,
        "byte": ramp % 200,
        "fixed": np.zeros((rows, 3), np.uint8),
        "texts": [b"x" * (number % 5) for number in range(rows)],
    }
    return encode_table("test", SCHEMA, columns, b"meta")


def test_every_flip_is_refused_or_harmless() -> None:
    # The referrer of a table holds its digest, so a flip that still parses is found there.
    stored = sample()
    assert sum(refuses(lambda s: parse_table("test", SCHEMA, s), bad) for _, bad in flips(stored))


def test_every_truncation_and_extension_is_refused() -> None:
    stored = sample()
    for length, bad in truncations(stored):
        assert refuses(lambda s: parse_table("test", SCHEMA, s), bad), length
    assert refuses(lambda s: parse_table("test", SCHEMA, s), stored + b"\0")


@given(st.binary(max_size=300))
def test_noise_after_a_good_header_is_refused(noise: bytes) -> None:
    one: Schema = {"texts": BytesColumn()}
    header = HEADER.pack(b"fw1test\n", 0, 1, 0)
    for start in (header, header + ENTRY.pack(4, 0, 0, 3, len(noise), len(noise))):
        refuses(lambda stored: parse_table("test", one, stored), start + noise)


def one_column(
    kind: int, compression: int, width: int, count: int, raw: int, stored: bytes
) -> bytes:
    entry = ENTRY.pack(kind, compression, width, count, raw, len(stored))
    return HEADER.pack(b"fw1test\n", 0, 1, 0) + entry + stored


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        (IntegerColumn(np.uint64), one_column(1, 0, 9, 1, 9, bytes(9))),
        (IntegerColumn(np.uint64), one_column(1, 0, 8, 2, 8, bytes(8))),
        (IntegerColumn(np.uint64), one_column(1, 0, 0, ROWS_MAX + 1, 0, b"")),
        (IntegerColumn(np.uint32), one_column(1, 0, 5, 1, 5, b"\0\0\0\0\1")),
        (IntegerColumn(np.int64), one_column(1, 0, 8, 1, 8, b"\0" * 7 + b"\x80")),
        (IntegerColumn(np.uint64, delta=True), one_column(1, 0, 1, 1, 1, b"\1")),
        (FixedColumn(4), one_column(3, 0, 5, 1, 5, bytes(5))),
        (FixedColumn(4), one_column(3, 2, 4, 1, 4, bytes(4))),
        (FixedColumn(4), one_column(3, 0, 4, 1, 4, bytes(3))),
        (BytesColumn(), one_column(4, 0, 0, 2, 4, bytes(4))),
        (BytesColumn(), one_column(4, 0, 0, 1, 5, b"\2\0\0\0x")),
        (BytesColumn(), one_column(4, 0, 0, 0, 1, b"x")),
        (BytesColumn(), one_column(4, 0, 0, 1, 6, b"\1\0\0\0xy")),
    ],
)
def test_columns_that_contradict_themselves_are_corrupt(column: Any, stored: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_table("test", {"only": column}, stored)


def test_numbers_that_wrap_are_kept() -> None:
    values = np.array([2**64 - 1, 0, 2**63, 1], np.uint64)
    schema: Schema = {"only": IntegerColumn(np.uint64, delta=True)}
    assert (
        parse_table("test", schema, encode_table("test", schema, {"only": values}))
        .array("only")
        .tolist()
        == values.tolist()
    )


def frame(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(raw)


@pytest.mark.parametrize(
    "stored",
    [
        one_column(3, 1, 4, 1000, 4000, frame(bytes(3999))),
        one_column(3, 1, 4, 1000, 4000, frame(bytes(4001))),
        one_column(3, 1, 4, 1000, 4000, frame(bytes(4000)) + frame(b"")),
        one_column(3, 1, 4, 1000, 4000, frame(bytes(2000)) + frame(bytes(2000))),
        one_column(3, 1, 4, 1000, 4000, frame(bytes(4000))[:-1]),
        one_column(
            3,
            1,
            4,
            1000,
            4000,
            zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4000)),
        ),
        one_column(3, 1, 4, 1000, 4000, b"\x50\x2a\x4d\x18\xa0\x0f\0\0" + bytes(4000)),
        one_column(3, 1, 4, 1000, 4000, b""),
    ],
)
def test_frames_of_another_length_are_corrupt(stored: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_table("test", {"only": FixedColumn(4)}, stored)


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        (FixedColumn(60000), one_column(3, 1, 60000, 60000, 3_600_000_000, frame(bytes(10**6)))),
        (FixedColumn(4), one_column(3, 1, 4, 250_000, 10**6, frame(bytes(10**8)))),
        (IntegerColumn(np.uint64), one_column(1, 1, 8, 2**32 - 1, 2**32 - 8, frame(bytes(10**6)))),
        (BytesColumn(), one_column(4, 1, 0, ROWS_MAX, 4 * ROWS_MAX, frame(bytes(4 * ROWS_MAX)))),
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(column: Any, stored: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            parse_table("test", {"only": column}, stored)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_encoder_makes_nothing_that_the_parser_refuses() -> None:
    schema: Schema = {"fixed": FixedColumn(64)}
    rows = TABLE_BYTES_MAX // 64 + 1
    with pytest.raises(LimitExceeded, match="split it"):
        encode_table("test", schema, {"fixed": np.zeros((rows, 64), np.uint8)})
    with pytest.raises(LimitExceeded):
        encode_table(
            "test", {"n": IntegerColumn(np.uint8)}, {"n": np.zeros(ROWS_MAX + 1, np.uint8)}
        )


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (IntegerColumn(np.uint32), np.array([2**32])),
        (IntegerColumn(np.uint32), np.array([-1])),
        (IntegerColumn(np.uint32), np.array([1.5])),
        (IntegerColumn(np.uint32), np.zeros((2, 2), np.uint32)),
        (FixedColumn(3), np.zeros((2, 4), np.uint8)),
        (FixedColumn(3), np.zeros((2, 3), np.int8)),
    ],
)
def test_values_that_do_not_fit_are_invalid(column: Any, values: Any) -> None:
    with pytest.raises(InvalidInput):
        encode_table("test", {"only": column}, {"only": values})


def test_a_column_too_few_is_invalid() -> None:
    with pytest.raises(InvalidInput, match="plain, delta"):
        encode_table("test", SCHEMA, {})


def test_later_versions_and_unknown_features_are_named() -> None:
    stored = sample()
    with pytest.raises(Unsupported, match="version 2"):
        parse_table("test", SCHEMA, b"fw2" + stored[3:])
    with pytest.raises(Unsupported, match="features 3, 31"):
        parse_table(
            "test", SCHEMA, stored[:8] + (1 << 3 | 1 << 31).to_bytes(4, "little") + stored[12:]
        )
    with pytest.raises(Corrupt, match="othr"):
        parse_table("othr", SCHEMA, stored)


def test_a_million_rows_take_a_byte_each() -> None:
    rows = ROWS_MAX
    counts = np.random.default_rng(7).integers(1, 40, rows).astype(np.uint64)
    schema: Schema = {
        "tensor": IntegerColumn(np.uint32, delta=True),
        "count": IntegerColumn(np.uint64),
        "pack": IntegerColumn(np.uint32, delta=True),
        "chunk": IntegerColumn(np.uint32, delta=True),
    }
    columns = {
        "tensor": np.arange(rows) // 1024,
        "count": counts,
        "pack": np.arange(rows) % 1024,
        "chunk": np.arange(rows) // 1024 * 32,
    }
    stored = encode_table("test", schema, columns)
    assert len(stored) < rows
    table = parse_table("test", schema, stored)
    assert all(np.array_equal(table.array(name), columns[name]) for name in columns)
