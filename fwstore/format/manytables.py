"""Many small tables of one schema, read at once: what a hundred thousand ranks send to one leader.

Invariant: the result is that of `parse_table` for every table, and so are the errors. Tables are taken by
columns only when all of them are beyond doubt; whatever is odd is left to `parse_table`, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwstore.format.columnar import (
    ENTRY,
    HEADER,
    RAW,
    ROWS_MAX,
    TABLE_BYTES_MAX,
    ZSTD,
    FixedColumn,
    IntegerColumn,
    parse_table,
)
from fwstore.format.envelope import FEATURES_KNOWN, magic
from fwstore.format.frames import FrameDecompressor

_ROWS_OF_SMALL_TABLES = 32

I64 = NDArray[np.int64]
NumberSchema = Mapping[str, IntegerColumn | FixedColumn]

_HEAD = np.dtype([("magic", "V8"), ("features", "<u4"), ("columns", "<u2"), ("meta", "<u2")])
_ENTRIES = np.dtype(
    [
        ("kind", "u1"),
        ("compression", "u1"),
        ("width", "<u2"),
        ("count", "<u4"),
        ("raw", "<u4"),
        ("stored", "<u4"),
    ]
)


@dataclass(frozen=True, slots=True)
class Tables:
    """The columns of some tables, those of one table after those of another.

    Attributes:
        columns: All values by name.
        counts: How many of them are of each table.
    """

    columns: Mapping[str, NDArray[Any]]
    counts: Mapping[str, I64]

    def array(self, name: str) -> NDArray[Any]:
        """Return a column of all tables."""
        return self.columns[name]


def parse_tables(kind: str, schema: NumberSchema, stored: Sequence[bytes]) -> Tables:
    """Return the tables that `encode_table` wrote.

    Raises:
        Corrupt: Some bytes are not a table of this kind and schema.
        Unsupported: A table is of another format version or needs an unknown feature.
    """
    entries = _entries(kind, schema, stored)
    columns = None if entries is None else _decode(schema, stored, entries)
    if entries is None or columns is None:
        return _one_by_one(kind, schema, stored)
    counts = {name: entries["count"][:, index] for index, name in enumerate(schema)}
    return Tables(columns, {name: count.astype(np.int64) for name, count in counts.items()})


def _one_by_one(kind: str, schema: NumberSchema, stored: Sequence[bytes]) -> Tables:
    tables = [parse_table(kind, schema, one) for one in stored]
    columns, counts = {}, {}
    for name, column in schema.items():
        arrays = [table.array(name) for table in tables]
        columns[name] = np.concatenate([_nothing(column), *arrays])
        counts[name] = np.array([len(array) for array in arrays], np.int64)
    return Tables(columns, counts)


def _nothing(column: IntegerColumn | FixedColumn) -> NDArray[Any]:
    if isinstance(column, FixedColumn):
        return np.zeros((0, column.width), np.uint8)
    return np.zeros(0, column.dtype)


def _entries(kind: str, schema: NumberSchema, stored: Sequence[bytes]) -> NDArray[np.void] | None:
    """Return the directories, shape (tables, columns), or None when some table is not beyond doubt."""
    head_bytes = HEADER.size + len(schema) * ENTRY.size
    lengths = np.array([len(one) for one in stored], np.int64)
    if not len(stored) or int(lengths.min()) < head_bytes:
        return None
    heads = np.frombuffer(
        b"".join([one[:head_bytes] for one in stored]),
        np.dtype([("head", _HEAD), ("entries", _ENTRIES, (len(schema),))]),
    )
    head, entries = heads["head"], heads["entries"]
    known = (
        (head["magic"] == np.void(magic(kind)))
        & (head["features"] & ~np.uint32(FEATURES_KNOWN) == 0)
        & (head["columns"] == len(schema))
        & (head["meta"] == 0)
    )
    payload = entries["stored"].sum(axis=1, dtype=np.int64)
    sane = bool(known.all()) and bool((payload == lengths - head_bytes).all())
    return entries if sane and _are_sane(schema, entries) else None


def _are_sane(schema: NumberSchema, entries: NDArray[np.void]) -> bool:
    columns = schema.values()
    fixed = np.array([column.width if isinstance(column, FixedColumn) else 0 for column in columns])
    value_bytes = np.array(
        [
            column.width if isinstance(column, FixedColumn) else np.dtype(column.dtype).itemsize
            for column in columns
        ],
        np.int64,
    )
    count, width = entries["count"].astype(np.int64), entries["width"].astype(np.int64)
    zstd = entries["compression"] == ZSTD
    sane = (
        (entries["kind"] == np.array([column.kind for column in columns]))
        & (zstd | ((entries["compression"] == RAW) & (entries["raw"] == entries["stored"])))
        & (count <= ROWS_MAX)
        & np.where(fixed > 0, width == fixed, width <= 8)
        & (entries["raw"] == count * width)
    )
    memory = (count * value_bytes).sum(axis=1)
    return bool(sane.all()) and bool((memory <= TABLE_BYTES_MAX).all())


def _decode(
    schema: NumberSchema, stored: Sequence[bytes], entries: NDArray[np.void]
) -> dict[str, NDArray[Any]] | None:
    """Return all columns, or None when a number does not fit its column."""
    sizes = entries["stored"].astype(np.int64)
    ends = np.cumsum(sizes, axis=1) + (HEADER.size + len(schema) * ENTRY.size)
    found: dict[str, NDArray[Any]] = {}
    for index, (name, column) in enumerate(schema.items()):
        raws = _raws(
            stored, (ends - sizes)[:, index].tolist(), ends[:, index].tolist(), entries[:, index]
        )
        if isinstance(column, FixedColumn):
            found[name] = np.frombuffer(b"".join(raws), np.uint8).reshape(-1, column.width)
            continue
        values = _numbers(column, raws, entries[:, index])
        if values is None:
            return None
        found[name] = values
    return found


def _raws(
    stored: Sequence[bytes], starts: list[int], ends: list[int], entries: NDArray[np.void]
) -> list[bytes]:
    """Return the raw bytes of one column of every table."""
    payloads = [one[start:end] for one, start, end in zip(stored, starts, ends, strict=True)]
    raw_lengths = entries["raw"].tolist()
    decompressor = FrameDecompressor()
    for number in np.flatnonzero(entries["compression"] == ZSTD).tolist():
        payloads[number] = decompressor.frame(payloads[number], raw_lengths[number])
    return payloads


def _numbers(
    column: IntegerColumn, raws: Sequence[bytes], entries: NDArray[np.void]
) -> NDArray[Any] | None:
    counts = entries["count"].astype(np.int64)
    numbers = _from_planes(raws, counts, entries["width"]).view("<u8")[:, 0]
    if column.delta:
        some = counts > 0
        numbers = _unzigzag(numbers, (np.cumsum(counts) - counts)[some], counts[some])
    if len(numbers) and int(numbers.max()) > np.iinfo(column.dtype).max:
        return None
    return numbers.astype(column.dtype, copy=False)


def _from_planes(
    raws: Sequence[bytes], counts: I64, widths: NDArray[np.uint16]
) -> NDArray[np.uint8]:
    """Return eight bytes for every number; the planes of one table lie one after another."""
    values = np.zeros((int(counts.sum()), 8), np.uint8)
    count, width = int(counts[0]), int(widths[0])
    if bool((widths == width).all()) and (width < 2 or bool((counts == count).all())):
        planes = np.frombuffer(b"".join(raws), np.uint8)
        if width > 1:
            planes = planes.reshape(-1, width, count).transpose(0, 2, 1)
        values[:, :width] = planes.reshape(-1, width) if width else 0
        return values
    if len(values) < _ROWS_OF_SMALL_TABLES * len(raws):
        _fill_by_plane(values, raws, counts, widths)
        return values
    start = 0
    for raw, rows, planes_of in zip(raws, counts.tolist(), widths.tolist(), strict=True):
        values[start : start + rows, :planes_of] = (
            np.frombuffer(raw, np.uint8).reshape(planes_of, rows).T
        )
        start += rows
    return values


def _fill_by_plane(
    values: NDArray[np.uint8], raws: Sequence[bytes], counts: I64, widths: NDArray[np.uint16]
) -> None:
    """Fill in the bytes of all tables at once: where each has a few rows, a turn for each costs more."""
    flat, sizes = np.frombuffer(b"".join(raws), np.uint8), counts * widths
    # Plane p of a table begins `p * count` after its first, and so does the byte of every row.
    offsets = (np.cumsum(sizes) - sizes) - (np.cumsum(counts) - counts)
    place = np.arange(len(values)) + np.repeat(offsets, counts)
    step, planes_of = np.repeat(counts, counts), np.repeat(widths, counts)
    for plane in range(int(widths.max())):
        rows = np.flatnonzero(planes_of > plane)
        values[rows, plane] = flat[place[rows] + plane * step[rows]]


def _unzigzag(values: NDArray[np.uint64], starts: I64, counts: I64) -> NDArray[np.uint64]:
    """Return the running sums of differences, begun anew in every table; sums wrap as in `parse_table`."""
    one = np.uint64(1)
    differences = (values >> one) ^ -(values & one)
    sums = np.cumsum(differences, dtype=np.uint64)
    return sums - np.repeat(sums[starts] - differences[starts], counts)
