"""One codec for every table on the store: pack footers, leaves, pack tables, rank descriptors.

Invariant: for any input `parse_table` returns a table that obeys the schema or raises `Corrupt` or
`Unsupported`, and what it allocates is bounded by `TABLE_BYTES_MAX` and the input, never by a number
that it read. Layout: section "Tables" of docs/spec/format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, InternalError, InvalidInput, LimitExceeded
from fwstore.base.units import MIB
from fwstore.format.envelope import check_envelope, magic
from fwstore.format.frames import compress_frame, decompress_frame

ROWS_MAX = 1 << 20
TABLE_BYTES_MAX = 24 * MIB

Values = NDArray[Any] | Sequence[bytes]
U64 = NDArray[np.uint64]

HEADER = struct.Struct("<8sIHH")
ENTRY = struct.Struct("<BBHIII")
_META_BYTES_MAX = 4096
RAW, ZSTD = 0, 1
_ZSTD_LEVEL = 3
_ZSTD_BYTES_MIN = 128
_BYTES_OBJECT = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a table's directory: what a column claims about itself."""

    kind: int
    compression: int
    width: int
    count: int
    raw_length: int
    stored_length: int


class Column(Protocol):
    """The type of a column: how its values become bytes and back."""

    @property
    def kind(self) -> int:
        """Number of this kind of column on the store."""
        ...

    def encode(self, values: Values) -> tuple[int, bytes]:
        """Return the width of a value and the raw bytes of all."""
        ...

    def decode(self, entry: Entry, raw: bytes) -> Values:
        """Return the values; `memory` has been called before."""
        ...

    def memory(self, entry: Entry) -> int:
        """Return the bytes that decoding takes, after checking that the entry agrees with itself."""
        ...


Schema = Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class IntegerColumn:
    """Whole numbers as byte planes, least significant first; with `delta`, zigzag differences."""

    dtype: type[np.uint8 | np.uint32 | np.uint64 | np.int64]
    delta: bool = False

    @property
    def kind(self) -> int:
        """Number of this kind of column on the store."""
        return 2 if self.delta else 1

    def encode(self, values: Values) -> tuple[int, bytes]:
        """Return the width of a value and the raw bytes of all."""
        array = np.asarray(values)
        whole = array.dtype.kind in "ui" or array.size == 0
        if array.ndim != 1 or not whole or (array.size and int(array.min()) < 0):
            raise InvalidInput(
                "an integer column needs whole numbers, none negative, in one dimension"
            )
        if array.size and int(array.max()) > np.iinfo(self.dtype).max:
            raise InvalidInput(f"a value is too large for a column of {self.dtype.__name__}")
        unsigned = array.astype("<u8")
        return _to_planes(_zigzag(unsigned) if self.delta else unsigned)

    def decode(self, entry: Entry, raw: bytes) -> Values:
        """Return the values; `memory` has been called before."""
        values = _from_planes(raw, entry.count, entry.width)
        if self.delta:
            values = _unzigzag(values)
        if values.size and int(values.max()) > np.iinfo(self.dtype).max:
            raise Corrupt(f"a stored number does not fit {self.dtype.__name__}")
        return values.astype(self.dtype, copy=False)

    def memory(self, entry: Entry) -> int:
        """Return the bytes that decoding takes, after checking that the entry agrees with itself."""
        if entry.width > 8 or entry.raw_length != entry.count * entry.width:
            raise Corrupt("a column of numbers has a length that its rows do not explain")
        return entry.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class FixedColumn:
    """Byte strings of one length, as an array of shape (rows, width)."""

    width: int

    @property
    def kind(self) -> int:
        """Number of this kind of column on the store."""
        return 3

    def encode(self, values: Values) -> tuple[int, bytes]:
        """Return the width of a value and the raw bytes of all."""
        array = np.asarray(values)
        if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != self.width:
            raise InvalidInput(f"a fixed column needs uint8 values of shape (rows, {self.width})")
        return self.width, array.tobytes()

    def decode(self, entry: Entry, raw: bytes) -> Values:
        """Return the values; `memory` has been called before."""
        return np.frombuffer(raw, np.uint8).reshape(entry.count, self.width)

    def memory(self, entry: Entry) -> int:
        """Return the bytes that decoding takes, after checking that the entry agrees with itself."""
        if entry.width != self.width or entry.raw_length != entry.count * self.width:
            raise Corrupt("a fixed column has a length that its rows do not explain")
        return entry.raw_length


@dataclass(frozen=True, slots=True)
class BytesColumn:
    """Byte strings of any length: their lengths as four byte planes, then their concatenation."""

    @property
    def kind(self) -> int:
        """Number of this kind of column on the store."""
        return 4

    def encode(self, values: Values) -> tuple[int, bytes]:
        """Return the width of a value and the raw bytes of all."""
        strings = [bytes(value) for value in values]
        lengths = np.array([len(string) for string in strings], "<u4")
        planes = np.ascontiguousarray(lengths.view(np.uint8).reshape(-1, 4).T)
        return 0, planes.tobytes() + b"".join(strings)

    def decode(self, entry: Entry, raw: bytes) -> Values:
        """Return the values; `memory` has been called before."""
        start = 4 * entry.count
        ends = np.cumsum(_from_planes(raw[:start], entry.count, 4), dtype=np.uint64) + np.uint64(
            start
        )
        if (int(ends[-1]) if entry.count else start) != len(raw):
            raise Corrupt("the strings of a column do not add up to its length")
        strings = []
        for end in ends.tolist():
            strings.append(raw[start:end])
            start = end
        return strings

    def memory(self, entry: Entry) -> int:
        """Return the bytes that decoding takes, after checking that the entry agrees with itself."""
        if entry.width or entry.raw_length < 4 * entry.count:
            raise Corrupt("a column of strings is shorter than its own lengths")
        return entry.raw_length + _BYTES_OBJECT * entry.count


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of a parsed table by name, and its meta bytes."""

    columns: Mapping[str, Values]
    meta: bytes

    def array(self, name: str) -> NDArray[Any]:
        """Return a column of numbers or of fixed strings."""
        values = self.columns[name]
        if not isinstance(values, np.ndarray):
            raise InternalError(f"column {name} holds strings")
        return values

    def strings(self, name: str) -> list[bytes]:
        """Return a column of byte strings."""
        values = self.columns[name]
        if not isinstance(values, list):
            raise InternalError(f"column {name} holds numbers")
        return values


def encode_table(
    kind: str, schema: Schema, columns: Mapping[str, Values], meta: bytes = b""
) -> bytes:
    """Return the stored form of a table.

    Args:
        kind: Four letters that name the kind of object.
        schema: The columns in the order in which they are stored.
        columns: The values of exactly those columns; they need not be equally long.
        meta: A few bytes of the caller's.

    Raises:
        InvalidInput: The values do not fit the schema.
        LimitExceeded: The table would be too large to be read back.
    """
    if columns.keys() != schema.keys() or len(meta) > _META_BYTES_MAX:
        raise InvalidInput(
            f"a {kind!r} table needs the columns {', '.join(schema)} and a short meta"
        )
    entries, payloads = [], []
    for name, column in schema.items():
        entry, payload = _encode_column(column, columns[name])
        entries.append(entry)
        payloads.append(payload)
    memory = sum(
        column.memory(entry) for column, entry in zip(schema.values(), entries, strict=True)
    )
    rows = max((entry.count for entry in entries), default=0)
    if memory > TABLE_BYTES_MAX or rows > ROWS_MAX:
        raise LimitExceeded(
            f"a {kind!r} table of {rows} rows and {memory} bytes is larger than {ROWS_MAX} rows or "
            f"{TABLE_BYTES_MAX} bytes; split it"
        )
    directory = b"".join(
        ENTRY.pack(e.kind, e.compression, e.width, e.count, e.raw_length, e.stored_length)
        for e in entries
    )
    return b"".join(
        [HEADER.pack(magic(kind), 0, len(entries), len(meta)), directory, meta, *payloads]
    )


def parse_table(kind: str, schema: Schema, stored: bytes) -> Table:
    """Return the table that `encode_table` wrote.

    Raises:
        Corrupt: The bytes are not a table of this kind and schema.
        Unsupported: The table is of another format version or needs an unknown feature.
    """
    check_envelope(stored, kind)
    if len(stored) < HEADER.size:
        raise Corrupt(f"this {kind!r} table is cut short")
    _, _, count, meta_length = HEADER.unpack_from(stored)
    payload_start = HEADER.size + count * ENTRY.size + meta_length
    if count != len(schema) or meta_length > _META_BYTES_MAX or len(stored) < payload_start:
        raise Corrupt(
            f"this {kind!r} table is cut short or has {count} columns instead of {len(schema)}"
        )
    entries = [
        Entry(*ENTRY.unpack_from(stored, HEADER.size + i * ENTRY.size)) for i in range(count)
    ]
    _check_entries(kind, schema, entries, len(stored) - payload_start)
    columns: dict[str, Values] = {}
    start = payload_start
    for (name, column), entry in zip(schema.items(), entries, strict=True):
        payload = stored[start : start + entry.stored_length]
        raw = decompress_frame(payload, entry.raw_length) if entry.compression == ZSTD else payload
        columns[name] = column.decode(entry, raw)
        start += entry.stored_length
    return Table(columns, stored[payload_start - meta_length : payload_start])


def _encode_column(column: Column, values: Values) -> tuple[Entry, bytes]:
    width, raw = column.encode(values)
    compression, payload = RAW, raw
    if len(raw) >= _ZSTD_BYTES_MIN:
        frame = compress_frame(raw, _ZSTD_LEVEL)
        if len(frame) <= len(raw) - len(raw) // 16:
            compression, payload = ZSTD, frame
    return Entry(column.kind, compression, width, len(values), len(raw), len(payload)), payload


def _check_entries(kind: str, schema: Schema, entries: Sequence[Entry], payload_bytes: int) -> None:
    memory = 0
    for column, entry in zip(schema.values(), entries, strict=True):
        if entry.kind != column.kind or entry.compression not in (RAW, ZSTD):
            raise Corrupt(f"a column of this {kind!r} table is of an unexpected kind")
        if entry.count > ROWS_MAX:
            raise Corrupt(
                f"a column of this {kind!r} table claims {entry.count} rows; {ROWS_MAX} are allowed"
            )
        if entry.compression == RAW and entry.stored_length != entry.raw_length:
            raise Corrupt(f"an uncompressed column of this {kind!r} table has two lengths")
        memory += column.memory(entry)
    if memory > TABLE_BYTES_MAX:
        raise Corrupt(f"this {kind!r} table claims {memory} bytes; {TABLE_BYTES_MAX} are allowed")
    stored = sum(entry.stored_length for entry in entries)
    if stored != payload_bytes:
        raise Corrupt(
            f"this {kind!r} table holds {payload_bytes} bytes of columns; {stored} were expected"
        )


def _to_planes(values: U64) -> tuple[int, bytes]:
    top = int(values.max()) if values.size else 0
    width = (top.bit_length() + 7) // 8
    planes = values.view(np.uint8).reshape(-1, 8)[:, :width].T
    return width, planes.tobytes()


def _from_planes(raw: bytes, count: int, width: int) -> U64:
    values = np.zeros((count, 8), np.uint8)
    values[:, :width] = np.frombuffer(raw, np.uint8).reshape(width, count).T
    return values.view("<u8")[:, 0]


def _zigzag(values: U64) -> U64:
    differences = np.diff(values, prepend=np.uint64(0)).view(np.int64)
    return ((differences << 1) ^ (differences >> 63)).view(np.uint64)


def _unzigzag(values: U64) -> U64:
    one = np.uint64(1)
    return np.cumsum((values >> one) ^ -(values & one), dtype=np.uint64)
