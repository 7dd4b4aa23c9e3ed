"""Chunks are found in live memory: every byte of every chunk, in order, in as few ranges as there are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import InternalError
from fwstore.checkpoint.segments import Segment, TensorChunks, split_segments
from fwstore.checkpoint.shard import Piece
from fwstore.checkpoint.stage import copy_segment, live_bytes
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid
from support.planning import grids


def chunks_of(grid: Grid, box: Box, itemsize: int = 8) -> TensorChunks:
    cut = grid.cut(box)
    return TensorChunks(0, itemsize, cut.cells, cut.offsets, cut.sizes, ~cut.whole)


def segments_of(
    array: np.ndarray[Any, Any], grid: Grid, limit: int = 1 << 30
) -> tuple[list[Segment], Piece]:
    whole = Box.whole(array.shape)
    flat = array.flags.c_contiguous
    chunks = chunks_of(grid, whole, array.itemsize)
    return list(split_segments(chunks, [(whole, flat)], limit)), Piece(whole, array)


def content(segment: Segment, piece: Piece) -> bytes:
    target = np.zeros(segment.size_bytes, np.uint8)
    copy_segment(segment, piece, target)
    return target.tobytes()


def test_rows_of_a_contiguous_tensor_are_one_segment() -> None:
    array = np.arange(48.0).reshape(12, 4)
    (segment,), piece = segments_of(array, Grid((12, 4), ((1, 2), (1, 4))))
    assert (segment.start, segment.size_bytes, len(segment.chunks)) == (0, array.nbytes, 6)
    assert content(segment, piece) == array.tobytes()
    live = live_bytes(segment, piece)
    assert live is not None
    assert np.shares_memory(live, array)


def test_segments_end_before_their_limit() -> None:
    array = np.arange(48.0).reshape(12, 4)
    grid = Grid((12, 4), ((1, 2), (1, 4)))
    found, piece = segments_of(array, grid, limit=150)
    assert [len(segment.chunks) for segment in found] == [2, 2, 2]
    assert [segment.start for segment in found] == [0, 128, 256]
    assert b"".join(content(segment, piece) for segment in found) == array.tobytes()
    assert [len(s.chunks) for s in segments_of(array, grid, limit=1)[0]] == [1] * 6


def test_columns_are_gathered_chunk_by_chunk() -> None:
    array = np.arange(24.0).reshape(4, 6)
    found, piece = segments_of(array, Grid((4, 6), ((1, 4), (1, 2))))
    assert all(segment.start == -1 for segment in found)
    assert live_bytes(found[0], piece) is None
    expected = b"".join(np.ascontiguousarray(array[:, c : c + 2]).tobytes() for c in (0, 2, 4))
    assert b"".join(content(segment, piece) for segment in found) == expected


def test_strided_memory_is_never_taken_for_a_range() -> None:
    array = np.arange(48.0).reshape(12, 4)[::-1]
    found, piece = segments_of(array, Grid((12, 4), ((1, 2), (1, 4))))
    assert all(segment.start == -1 for segment in found)
    assert b"".join(content(s, piece) for s in found) == np.ascontiguousarray(array).tobytes()


def test_a_chunk_that_no_piece_holds_is_our_own_mistake() -> None:
    chunks = chunks_of(Grid((4,), ((1, 2),)), Box.whole((4,)))
    pieces = [(Box((0,), (2,)), True), (Box((3,), (1,)), True)]
    with pytest.raises(InternalError, match="no piece"):
        list(split_segments(chunks, pieces, 100))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], Grid, list[Box]]:
    """A tensor, its grid, and boxes that cut it along one dimension."""
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    array = np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)
    grid = draw(grids(shape))
    if not shape:
        return array, grid, [Box((), ())]
    axis = draw(st.integers(0, len(shape) - 1))
    edges = sorted({0, shape[axis], *draw(st.lists(st.integers(0, shape[axis]), max_size=3))})
    boxes = []
    for low, high in pairwise(edges):
        offsets = tuple(low if a == axis else 0 for a in range(len(shape)))
        sizes = tuple(high - low if a == axis else n for a, n in enumerate(shape))
        boxes.append(Box(offsets, sizes))
    return array, grid, boxes


@given(tensors(), st.integers(1, 200), st.booleans())
def test_every_chunk_comes_out_once_with_its_bytes(
    tensor: tuple[np.ndarray[Any, Any], Grid, list[Box]], limit: int, copied: bool
) -> None:
    array, grid, boxes = tensor
    cuts = [chunks_of(grid, box, 4) for box in boxes]
    for box, chunks in zip(boxes, cuts, strict=True):
        memory = np.asarray(array[box.slices()])
        piece = Piece(box, memory.copy() if copied else memory)
        pieces = [(box, isinstance(piece.array, np.ndarray) and piece.array.flags.c_contiguous)]
        found = list(split_segments(chunks, pieces, limit))
        assert sum(len(segment.chunks) for segment in found) == len(chunks)
        numbers = np.concatenate([np.zeros(0, np.uint64), *(s.chunks.cells for s in found)])
        assert numbers.tolist() == chunks.cells.tolist()
        got = b"".join(content(segment, piece) for segment in found)
        rows = range(len(chunks))
        assert got == b"".join(array[chunks.box(row).slices()].tobytes() for row in rows)
        assert all(s.size_bytes <= limit or len(s.chunks) == 1 for s in found)
