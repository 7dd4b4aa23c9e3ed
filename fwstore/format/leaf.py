"""A leaf: the tensors of one range of a snapshot and where every cell of them lies.

Invariant: every row of a leaf names a tensor of its own dictionary and a cell of that tensor's grid; a
leaf is at most `LEAF_BYTES_MAX` long, and what does not fit is split into more leaves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwstore.base.config import LEAF_BYTES_MAX
from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded
from fwstore.format.columnar import ROWS_MAX, Schema, encode_table, parse_table
from fwstore.format.rows import (
    FRAGMENT_SCHEMA,
    RUN_SCHEMA,
    FragmentTable,
    RunTable,
    check_numbers,
    fragment_columns,
    last_rows,
    parse_fragments,
    parse_runs,
    run_columns,
)
from fwstore.format.tensor import (
    TENSOR_SCHEMA,
    TENSORS_MAX,
    TensorInfo,
    check_boxes,
    parse_tensors,
    tensor_columns,
)

KIND = "leaf"
_SCHEMA: Schema = {**TENSOR_SCHEMA, **RUN_SCHEMA, **FRAGMENT_SCHEMA}
_META = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """The tensors numbered from `first_tensor`, and the rows of them or, if one is large, of a part."""

    first_tensor: int
    tensors: tuple[TensorInfo, ...]
    runs: RunTable
    fragments: FragmentTable


def encode_leaf(leaf: Leaf) -> bytes:
    """Return the stored form of a leaf.

    Raises:
        InvalidInput: The rows are not sorted or name what is not there.
        LimitExceeded: The leaf is too large; `split_leaf` makes smaller ones.
    """
    columns = (
        tensor_columns(leaf.tensors) | run_columns(leaf.runs) | fragment_columns(leaf.fragments)
    )
    try:
        _check_rows(leaf)
    except Corrupt as error:
        raise InvalidInput(f"a leaf cannot be stored: {error}") from error
    stored = encode_table(KIND, _SCHEMA, columns, _META.pack(leaf.first_tensor))
    if len(stored) > LEAF_BYTES_MAX:
        raise LimitExceeded(
            f"a leaf of {len(stored)} bytes is larger than {LEAF_BYTES_MAX}; split it"
        )
    return stored


def encode_leaves(leaf: Leaf) -> list[tuple[Leaf, bytes]]:
    """Return a leaf of any size as leaves that fit, with their stored forms.

    Consecutive leaves hold consecutive tensors; a tensor whose rows do not fit one leaf stands in each
    of its leaves.

    Raises:
        InvalidInput: The rows are not sorted or name what is not there.
        LimitExceeded: One tensor cannot be stored by itself.
    """
    # The first test only saves time: it spares the encoding of what is surely too large.
    if len(leaf.tensors) <= TENSORS_MAX and len(leaf.runs) <= ROWS_MAX:
        try:
            return [(leaf, encode_leaf(leaf))]
        except LimitExceeded:
            if len(split_leaf(leaf)) == 1:
                raise
    return [part for half in split_leaf(leaf) for part in encode_leaves(half)]


def split_leaf(leaf: Leaf) -> list[Leaf]:
    """Return two halves of a leaf, by tensors or, when it has one, by rows; itself if it has no halves."""
    if len(leaf.tensors) > 1:
        middle = len(leaf.tensors) // 2
        border = leaf.first_tensor + middle
        runs = int(np.searchsorted(leaf.runs.tensor, border))
        fragments = int(np.searchsorted(leaf.fragments.tensor, border))
        tensors = (leaf.tensors[:middle], leaf.tensors[middle:])
        firsts = (leaf.first_tensor, border)
    else:
        runs, fragments = len(leaf.runs) // 2, len(leaf.fragments) // 2
        tensors, firsts = (leaf.tensors, leaf.tensors), (leaf.first_tensor, leaf.first_tensor)
        if runs == fragments == 0:
            return [leaf]
    return [
        Leaf(
            firsts[0], tensors[0], _rows(leaf.runs, 0, runs), _parts(leaf.fragments, 0, fragments)
        ),
        Leaf(
            firsts[1],
            tensors[1],
            _rows(leaf.runs, runs, len(leaf.runs)),
            _parts(leaf.fragments, fragments, len(leaf.fragments)),
        ),
    ]


def parse_leaf(stored: bytes) -> Leaf:
    """Return the leaf of its stored form.

    Raises:
        Corrupt: The bytes are not a leaf.
        Unsupported: It is of another format version, or has an unknown feature or dtype.
    """
    if len(stored) > LEAF_BYTES_MAX:
        raise Corrupt(f"a leaf of {len(stored)} bytes is larger than {LEAF_BYTES_MAX}")
    table = parse_table(KIND, _SCHEMA, stored)
    if len(table.meta) != _META.size:
        raise Corrupt("a leaf does not name its first tensor")
    (first,) = _META.unpack(table.meta)
    if first > np.iinfo(np.uint32).max:
        raise Corrupt(f"a leaf begins with tensor {first}, which no row can name")
    runs = parse_runs(table)
    tensors = parse_tensors(table)
    ranks = np.array([len(info.shape) for info in tensors], np.int64)
    leaf = Leaf(first, tensors, runs, parse_fragments(table, ranks, first))
    _check_rows(leaf)
    return leaf


def _rows(runs: RunTable, start: int, stop: int) -> RunTable:
    return runs.take(np.arange(start, stop))


def _parts(fragments: FragmentTable, start: int, stop: int) -> FragmentTable:
    return fragments.take(np.arange(start, stop))


def _check_rows(leaf: Leaf) -> None:
    first = leaf.first_tensor
    if not 0 <= first <= (1 << 32) - len(leaf.tensors):
        raise Corrupt(f"a leaf begins at the impossible tensor number {first}")
    check_numbers(leaf.runs.tensor, first, len(leaf.tensors))
    check_numbers(leaf.fragments.tensor, first, len(leaf.tensors))
    cells = np.array(
        [0 if info.alias is not None else info.cell_count for info in leaf.tensors], np.uint64
    )
    # Rows are sorted and do not overlap, so the last row of a tensor reaches its highest cell.
    last = last_rows(leaf.runs.tensor)
    ends = leaf.runs.first_cell[last] + leaf.runs.count[last]
    _check_cells(ends, cells[leaf.runs.tensor[last].astype(np.int64) - first])
    last = last_rows(leaf.fragments.tensor)
    fragment_tensor = leaf.fragments.tensor.astype(np.int64) - first
    _check_cells(leaf.fragments.cell[last] + np.uint64(1), cells[fragment_tensor[last]])
    check_boxes(leaf.tensors, fragment_tensor, leaf.fragments.boxes)


def _check_cells(ends: NDArray[np.uint64], cells: NDArray[np.uint64]) -> None:
    if bool((ends > cells).any()) or bool((ends == 0).any()):
        raise Corrupt("a row names cells outside the grid of its tensor, or cells of a tied tensor")
