"""Where the cells of tensors lie: runs of whole cells and fragments of cells, as columns.

Invariant: a table is never changed in place; every function returns a new one, and what comes out of
`parse_runs` and `parse_fragments` is sorted, without overlap, and inside its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import Corrupt, FwstoreError, InvalidInput
from fwstore.format.columnar import IntegerColumn, Values

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
_CHUNKS_LIMIT = np.uint64(1 << 32)
Index = NDArray[np.int64] | NDArray[np.bool_]
# Tensors have numbers of 32 bits; with the cell beside it, the two are one number of 64.
_CELL_BITS = np.uint64(32)
_CELL_OF_KEY = 1 << 32
_ONE_TABLE = np.zeros(0, np.int64)

RUN_SCHEMA: dict[str, IntegerColumn] = {
    "run_tensor": IntegerColumn(np.uint32, delta=True),
    "run_gap": IntegerColumn(np.uint64),
    "run_count": IntegerColumn(np.uint64),
    "run_pack": IntegerColumn(np.uint32, delta=True),
    "run_chunk": IntegerColumn(np.uint32, delta=True),
}
FRAGMENT_SCHEMA: dict[str, IntegerColumn] = {
    "fragment_tensor": IntegerColumn(np.uint32, delta=True),
    "fragment_cell": IntegerColumn(np.uint64, delta=True),
    "fragment_pack": IntegerColumn(np.uint32, delta=True),
    "fragment_chunk": IntegerColumn(np.uint32, delta=True),
    "fragment_offsets": IntegerColumn(np.int64),
    "fragment_sizes": IntegerColumn(np.int64),
}


class Columns(Protocol):
    """The columns of parsed tables by name."""

    def array(self, name: str) -> NDArray[Any]:
        """Return a column of numbers or of fixed strings."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """One box per row, of any number of dimensions: row i is `starts[i]:starts[i + 1]` of both."""

    starts: I64
    offsets: I64
    sizes: I64

    def __len__(self) -> int:
        return len(self.starts) - 1

    @staticmethod
    def of(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Boxes:
        """Return boxes from pairs of offsets and sizes."""
        ranks = [len(offsets) for offsets, _ in rows]
        offsets = np.array([value for row, _ in rows for value in row], np.int64)
        sizes = np.array([value for _, row in rows for value in row], np.int64)
        if len(offsets) != len(sizes):
            raise InvalidInput("the offsets and sizes of a box differ in number")
        return Boxes(starts_of(np.array(ranks, np.int64)), offsets, sizes)

    def row(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the offsets and the sizes of one box."""
        where = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return tuple(self.offsets[where].tolist()), tuple(self.sizes[where].tolist())

    def volumes(self) -> I64:
        """Return the number of elements of every box."""
        ranks = np.diff(self.starts)
        volumes = np.ones(len(self), np.int64)
        if len(self.sizes):
            volumes[ranks > 0] = np.multiply.reduceat(self.sizes, self.starts[:-1][ranks > 0])
        return volumes

    def take(self, index: Index) -> Boxes:
        """Return the boxes of some rows, in the order of the index."""
        ranks = np.diff(self.starts)[index]
        starts = starts_of(ranks)
        flat = np.repeat(self.starts[:-1][index] - starts[:-1], ranks) + np.arange(starts[-1])
        return Boxes(starts, self.offsets[flat], self.sizes[flat])


@dataclass(frozen=True, slots=True, eq=False)
class RunTable:
    """Rows of consecutive whole cells that lie in consecutive chunks of one pack."""

    tensor: U32
    first_cell: U64
    count: U64
    pack: U32
    first_chunk: U32

    def __len__(self) -> int:
        return len(self.tensor)

    @staticmethod
    def of(rows: Sequence[tuple[int, int, int, int, int]] = ()) -> RunTable:
        """Return a table from rows of (tensor, first cell, count, pack, first chunk)."""
        columns = list(zip(*rows, strict=True)) or [()] * 5
        kinds = (np.uint32, np.uint64, np.uint64, np.uint32, np.uint32)
        return RunTable(
            *(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
        )

    def take(self, index: Index | slice) -> RunTable:
        """Return some rows, in the order of the index."""
        return RunTable(
            self.tensor[index],
            self.first_cell[index],
            self.count[index],
            self.pack[index],
            self.first_chunk[index],
        )


@dataclass(frozen=True, slots=True, eq=False)
class FragmentTable:
    """Rows of parts of cells, one chunk each; boxes are relative to the box of the cell."""

    tensor: U32
    cell: U64
    pack: U32
    chunk: U32
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.tensor)

    @staticmethod
    def of(
        rows: Sequence[tuple[int, int, int, int]] = (),
        boxes: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    ) -> FragmentTable:
        """Return a table from rows of (tensor, cell, pack, chunk) and one (offsets, sizes) each."""
        columns = list(zip(*rows, strict=True)) or [()] * 4
        kinds = (np.uint32, np.uint64, np.uint32, np.uint32)
        arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        return FragmentTable(arrays[0], arrays[1], arrays[2], arrays[3], Boxes.of(boxes))

    def take(self, index: Index) -> FragmentTable:
        """Return some rows, in the order of the index."""
        return FragmentTable(
            self.tensor[index],
            self.cell[index],
            self.pack[index],
            self.chunk[index],
            self.boxes.take(index),
        )


def concat_runs(tables: Sequence[RunTable]) -> RunTable:
    """Return all rows of some tables, in order."""
    parts = [RunTable.of(), *tables]
    return RunTable(
        np.concatenate([table.tensor for table in parts]),
        np.concatenate([table.first_cell for table in parts]),
        np.concatenate([table.count for table in parts]),
        np.concatenate([table.pack for table in parts]),
        np.concatenate([table.first_chunk for table in parts]),
    )


def concat_fragments(tables: Sequence[FragmentTable]) -> FragmentTable:
    """Return all rows of some tables, in order."""
    parts = [FragmentTable.of(), *tables]
    ranks = np.concatenate([np.diff(table.boxes.starts) for table in parts])
    offsets = np.concatenate([table.boxes.offsets for table in parts])
    sizes = np.concatenate([table.boxes.sizes for table in parts])
    return FragmentTable(
        np.concatenate([table.tensor for table in parts]),
        np.concatenate([table.cell for table in parts]),
        np.concatenate([table.pack for table in parts]),
        np.concatenate([table.chunk for table in parts]),
        Boxes(starts_of(ranks), offsets, sizes),
    )


def sort_runs(table: RunTable) -> RunTable:
    """Return the rows by tensor and first cell."""
    return table.take(_order(table.tensor, table.first_cell))


def sort_fragments(table: FragmentTable) -> FragmentTable:
    """Return the rows by tensor, cell, pack and chunk."""
    return table.take(np.lexsort((table.chunk, table.pack, table.cell, table.tensor)))


def _order(tensor: U32, cell: U64) -> I64:
    if not len(tensor) or int(cell.max()) >= _CELL_OF_KEY:
        return np.lexsort((cell, tensor))
    # One number is sorted several times as fast as two.
    return np.argsort((tensor.astype(np.uint64) << _CELL_BITS) | cell, kind="stable")


def merge_runs(table: RunTable) -> RunTable:
    """Return the table with every row joined to its predecessor where it continues cells and chunks."""
    if len(table) == 0:
        return table
    ends = table.first_cell + table.count
    chunk_ends = table.first_chunk + table.count
    continues = (
        (table.tensor[1:] == table.tensor[:-1])
        & (table.pack[1:] == table.pack[:-1])
        & (table.first_cell[1:] == ends[:-1])
        & (table.first_chunk[1:] == chunk_ends[:-1])
    )
    if not bool(continues.any()):
        return table
    firsts = np.flatnonzero(np.concatenate([[True], ~continues]))
    return RunTable(
        table.tensor[firsts],
        table.first_cell[firsts],
        np.add.reduceat(table.count, firsts, dtype=np.uint64),
        table.pack[firsts],
        table.first_chunk[firsts],
    )


def run_columns(table: RunTable) -> dict[str, Values]:
    """Return the stored columns of runs that are sorted and do not overlap.

    Raises:
        InvalidInput: The rows are not sorted, are empty, or overlap.
    """
    _refuse(_run_problem(table), InvalidInput)
    ends = np.concatenate([np.zeros(1, np.uint64), (table.first_cell + table.count)[:-1]])
    previous = np.where(_same_as_before(table.tensor), ends[: len(table)], np.uint64(0))
    return {
        "run_tensor": table.tensor,
        "run_gap": table.first_cell - previous,
        "run_count": table.count,
        "run_pack": table.pack,
        "run_chunk": table.first_chunk,
    }


def parse_runs(columns: Columns, borders: I64 = _ONE_TABLE) -> RunTable:
    """Return the runs of a parsed table, or of several that stand one after another.

    Args:
        columns: The parsed rows.
        borders: The rows with which a table begins, but for the first.

    Raises:
        Corrupt: The rows are not as long as each other, not sorted, empty, or overlap.
    """
    _refuse(_uneven(columns, RUN_SCHEMA), Corrupt)
    tensor, count, gap = (
        columns.array("run_tensor"),
        columns.array("run_count"),
        columns.array("run_gap"),
    )
    ends = np.cumsum(gap + count, dtype=np.uint64)
    # A row's first cell is what was counted since the first row of its tensor; the base of a tensor
    # is what had been counted before that row.
    heads = np.flatnonzero(~_same_as_before(tensor, borders))
    bases = np.where(heads > 0, ends[heads - 1], np.uint64(0)) if len(heads) else ends[:0]
    lengths = np.diff(np.append(heads, len(tensor)))
    first_cell = ends - count - np.repeat(bases, lengths)
    table = RunTable(
        tensor, first_cell, count, columns.array("run_pack"), columns.array("run_chunk")
    )
    _refuse(_run_problem(table, borders), Corrupt)
    return table


def fragment_columns(table: FragmentTable) -> dict[str, Values]:
    """Return the stored columns of fragments that are sorted.

    Raises:
        InvalidInput: The rows are not sorted or repeat.
    """
    _refuse(_fragment_problem(table), InvalidInput)
    return {
        "fragment_tensor": table.tensor,
        "fragment_cell": table.cell,
        "fragment_pack": table.pack,
        "fragment_chunk": table.chunk,
        "fragment_offsets": table.boxes.offsets,
        "fragment_sizes": table.boxes.sizes,
    }


def parse_fragments(
    columns: Columns, tensor_ranks: I64, first_tensor: int, borders: I64 = _ONE_TABLE
) -> FragmentTable:
    """Return the fragments of a parsed table, or of several that stand one after another.

    Args:
        columns: The parsed table.
        tensor_ranks: Number of dimensions of every tensor of the table, in order.
        first_tensor: Number of the first of them.
        borders: The rows with which a table begins, but for the first.

    Raises:
        Corrupt: The rows are not sorted, repeat, or name a tensor that is not there.
    """
    tensor = columns.array("fragment_tensor")
    _refuse(_uneven(columns, list(FRAGMENT_SCHEMA)[:4]), Corrupt)
    check_numbers(tensor, first_tensor, len(tensor_ranks))
    ranks = tensor_ranks[tensor.astype(np.int64) - first_tensor]
    table = FragmentTable(
        tensor,
        columns.array("fragment_cell"),
        columns.array("fragment_pack"),
        columns.array("fragment_chunk"),
        parse_boxes(ranks, columns.array("fragment_offsets"), columns.array("fragment_sizes")),
    )
    _refuse(_fragment_problem(table, borders), Corrupt)
    return table


def parse_boxes(ranks: I64, offsets: I64, sizes: I64) -> Boxes:
    """Return boxes whose numbers of dimensions are given by their referrer.

    Raises:
        Corrupt: The columns have another length, or a box is empty or ends past 2^63.
    """
    starts = starts_of(ranks)
    if not int(starts[-1]) == len(offsets) == len(sizes):
        raise Corrupt(
            f"stored boxes have {len(offsets)} offsets and {len(sizes)} sizes, not {starts[-1]}"
        )
    if len(sizes) and (
        int(sizes.min()) < 1 or bool((sizes > np.iinfo(np.int64).max - offsets).any())
    ):
        raise Corrupt("a stored box is empty or ends past 2^63")
    return Boxes(starts, offsets, sizes)


def check_numbers(numbers: U32, first: int, count: int) -> None:
    """Refuse numbers of tensors outside `first` .. `first + count`.

    Raises:
        Corrupt: A number names a tensor that is not in the dictionary beside it.
    """
    if len(numbers) and not first <= int(numbers.min()) <= int(numbers.max()) < first + count:
        raise Corrupt(
            f"a stored row names tensor {int(numbers.max())}; {first} to {first + count - 1} are there"
        )


def last_rows(tensor: U32) -> I64:
    """Return the numbers of the rows that are the last of their tensor in a sorted column."""
    return np.flatnonzero(np.append(tensor[1:] != tensor[:-1], True)[: len(tensor)])


def starts_of(lengths: I64) -> I64:
    """Return where rows of these lengths start when they lie one after another, and where they end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _same_as_before(tensor: U32, borders: I64 = _ONE_TABLE) -> NDArray[np.bool_]:
    same = np.concatenate([np.zeros(min(1, len(tensor)), np.bool_), tensor[1:] == tensor[:-1]])
    same[borders] = False
    return same


def _run_problem(table: RunTable, borders: I64 = _ONE_TABLE) -> str | None:
    ends = table.first_cell + table.count
    chunk_ends = table.first_chunk.astype(np.uint64) + table.count
    if bool((table.count == 0).any()) or bool((ends < table.first_cell).any()):
        return "a run of cells is empty or ends past 2^64"
    if bool((table.count > _CHUNKS_LIMIT).any()) or bool((chunk_ends > _CHUNKS_LIMIT).any()):
        return "a run of cells ends past the last possible chunk of a pack"
    later = table.tensor[1:] > table.tensor[:-1]
    beyond = (table.tensor[1:] == table.tensor[:-1]) & (table.first_cell[1:] >= ends[:-1])
    later[borders - 1] = True
    if not bool((later | beyond).all()):
        return "runs of cells are not sorted or overlap"
    return None


def _fragment_problem(table: FragmentTable, borders: I64 = _ONE_TABLE) -> str | None:
    columns = (table.chunk, table.pack, table.cell, table.tensor)
    greater = np.zeros(max(0, len(table) - 1), np.bool_)
    for column in columns:
        greater = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & greater)
    greater[borders - 1] = True
    return None if bool(greater.all()) else "fragments are not sorted or repeat"


def _uneven(columns: Columns, names: Iterable[str]) -> str | None:
    lengths = {len(columns.array(name)) for name in names}
    return None if len(lengths) == 1 else f"columns of one table have the lengths {sorted(lengths)}"


def _refuse(problem: str | None, error: type[FwstoreError]) -> None:
    if problem is not None:
        raise error(problem)
