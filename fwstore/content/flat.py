"""Reads of tensors whose cells follow one another in memory, by runs of chunks instead of chunk by chunk.

A run costs a fixed amount of planning however many tensors there are; what does not fit - other codecs, fragments,
strided memory, repeated chunks, damage - is left to the general path of `fwstore.content.read`.

Invariant: a run is called good only after every chunk of it was compared with its digest and its header.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fwstore.codec.hashing import xxh3_128
from fwstore.content.footers import Pack
from fwstore.content.manifest import TensorRows
from fwstore.content.wants import Destination
from fwstore.format.blocks import BLOCK_BYTES, RAW_CODEC, encode_chunk_headers
from fwstore.format.dtypes import itemsize
from fwstore.format.footer import Chunks
from fwstore.format.rows import RunTable
from fwstore.plan.box import Box
from fwstore.plan.coalesce import plan_coalesce
from fwstore.plan.flat import FlatCells, flat_cells
from fwstore.plan.grid import I64
from fwstore.store.base import ReadInto, Store


class FlatRun(NamedTuple):
    """Consecutive chunks of a pack that fill consecutive memory.

    Attributes:
        want: Number of the tensor among those that are read.
        pack: Number of the pack in the snapshot.
        first: Number of the first chunk in it.
        lengths: Bytes of every chunk.
        memory: The bytes that receive them.
    """

    want: int
    pack: int
    first: int
    lengths: Sequence[int]
    memory: memoryview


class FlatRequest(NamedTuple):
    """One contiguous read of a pack that holds whole chunks in the order of the destinations.

    Attributes:
        key: The pack.
        offset: Where it begins.
        length: How long it is.
        gaps: Bytes between what came before a chunk and its header.
        memory: What receives the stored bytes of every chunk.
        digests: Their XXH3-128, one after another.
        headers: Their headers, likewise.
        wants: The tensors that they belong to.
    """

    key: str
    offset: int
    length: int
    gaps: Sequence[int]
    memory: Sequence[memoryview]
    digests: bytes
    headers: bytes
    wants: Sequence[int]

    @property
    def chunk_count(self) -> int:
        """How many chunks it holds."""
        return len(self.memory)

    @property
    def raw_bytes(self) -> int:
        """Bytes of those chunks."""
        return self.length - BLOCK_BYTES * len(self.memory) - sum(self.gaps)

    def read(self, store: Store) -> bool:
        """Fill the memory; returns whether every chunk is what was written.

        Raises:
            FwstoreError: The store does not answer, or has no such bytes.
        """
        headers, unwanted = bytearray(len(self.headers)), memoryview(bytearray(max(self.gaps)))
        scratch, begin = memoryview(headers), 0
        buffers: list[memoryview] = []
        for gap, memory in zip(self.gaps, self.memory, strict=True):
            if gap:
                buffers.append(unwanted[:gap])
            buffers += (scratch[begin : begin + BLOCK_BYTES], memory)
            begin += BLOCK_BYTES
        store.read_into(self.key, [ReadInto(self.offset, buffers)])
        # One comparison for all: a step of Python for every chunk is what two threads wait for.
        return headers == self.headers and b"".join(map(xxh3_128, self.memory)) == self.digests


class _Span(NamedTuple):
    """The whole cells of a piece that can be read by runs.

    Attributes:
        want: Number of the tensor among those that are read.
        runs: Where its cells lie; those before and after the span may be left out.
        first: The first cell.
        stop: The one after the last.
        bounds: Where each of them begins in the memory of the piece, and where the last one ends.
        lengths: How many bytes each of them has.
        array: That memory.
    """

    want: int
    runs: RunTable
    first: int
    stop: int
    bounds: Sequence[int]
    lengths: Sequence[int]
    array: NDArray[Any]


class _Whole(NamedTuple):
    """The whole cells of a box, as `_Span` has them."""

    first: int
    stop: int
    bounds: Sequence[int]
    lengths: Sequence[int]


def plan_flat_runs(wanted: Iterable[tuple[int, TensorRows, Destination]]) -> list[FlatRun]:
    """Return the runs that fill the whole cells of some pieces.

    A piece without a whole cell, or one that cannot be filled by runs, has none.

    Args:
        wanted: Pieces, each after the number that its runs are to have and the rows of its tensor.
    """
    spans = [span for want in wanted if (span := _span(*want)) is not None]
    if not spans:
        return []
    # Looked up for all pieces at once: numpy takes as long for one row as for a thousand.
    tables = [span.runs for span in spans]
    columns = (
        np.concatenate([getattr(table, name) for table in tables]).tolist()
        for name in ("first_cell", "count", "pack", "first_chunk")
    )
    rows = zip(*columns, strict=True)
    return [
        run
        for span in spans
        for run in _runs_of(span, itertools.islice(rows, len(span.runs.tensor)))
    ]


def _span(want: int, rows: TensorRows, piece: Destination) -> _Span | None:
    array, info = piece.array, rows.info
    size = itemsize(info.dtype)
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        return None
    whole = _whole_cells(info.shape, info.cells, piece.box, size)
    if whole is None or array.dtype.itemsize != size:
        return None
    runs = rows.runs
    if len(runs.tensor) > 1:
        runs = _near(runs, whole.first, whole.stop)
    return _Span(want, runs, *whole, array)


# Whatever has the same form has the same cells: a model has few forms.
@lru_cache(maxsize=1 << 9)
def _whole_cells(
    shape: tuple[int, ...], grid: tuple[tuple[int, int], ...], box: Box, size: int
) -> _Whole | None:
    """Return the whole cells of a box; None where there are none, or they do not follow one another."""
    cells = flat_cells(shape, grid)
    inside = None if cells is None else cells.within(box)
    if cells is None or inside is None:
        return None
    first, stop = inside
    # A number without dimensions has no row to begin at.
    row = box.offsets[cells.axis] if box.offsets else 0
    begin = row * cells.row_elements * size
    bounds = [bound - begin for bound in cells.bytes_before(size)[first : stop + 1]]
    return _Whole(first, stop, bounds, [high - low for low, high in itertools.pairwise(bounds)])


def _near(runs: RunTable, first: int, stop: int) -> RunTable:
    """Return the runs of a tensor without those that end before some cells or begin after them."""
    low = max(0, int(np.searchsorted(runs.first_cell, first, side="right")) - 1)
    return runs.take(slice(low, int(np.searchsorted(runs.first_cell, stop))))


def _runs_of(span: _Span, rows: Iterable[tuple[int, int, int, int]]) -> list[FlatRun]:
    """Return the runs of a span; none where (first cell, count, pack, first chunk) leave out a cell."""
    memory = span.array.reshape(-1).view(np.uint8).data
    first, stop = span.first, span.stop
    found, missing = [], stop - first
    for cell, count, pack, chunk in rows:
        begin, end = max(cell, first), min(cell + count, stop)
        if begin < end:
            low, high = begin - first, end - first
            part = memory[span.bounds[low] : span.bounds[high]]
            found.append(
                FlatRun(span.want, pack, chunk + begin - cell, span.lengths[low:high], part)
            )
            missing -= end - begin
    return [] if missing else found


def edges(rows: TensorRows, box: Box) -> list[Box]:
    """Return the parts of a box before and after its whole cells, for a box that has some."""
    if box.sizes == rows.info.shape:
        return []
    cells = flat_cells(rows.info.shape, rows.info.cells)
    inside = None if cells is None else cells.within(box)
    if cells is None or inside is None:
        return []
    low = box.offsets[cells.axis]
    whole = cells.bounds[list(inside)].tolist()
    ranges = ((low, whole[0]), (whole[1], low + box.sizes[cells.axis]))
    return [_rows_of(box, cells, first, stop) for first, stop in ranges if first < stop]


def _rows_of(box: Box, cells: FlatCells, first: int, stop: int) -> Box:
    offsets, sizes = list(box.offsets), list(box.sizes)
    offsets[cells.axis], sizes[cells.axis] = first, stop - first
    return Box(tuple(offsets), tuple(sizes))


def unfit_wants(runs: Sequence[FlatRun], footer: Chunks) -> set[int]:
    """Return the tensors that must be read chunk by chunk: their chunks are encoded, or shared.

    Args:
        runs: All runs of one pack, by first chunk.
        footer: Its footer.
    """
    first, count, chunks = _chunks_of(runs)
    wants = np.array([run.want for run in runs], np.int64)
    ends = first + count
    # A chunk that several places want is read once, which runs cannot do.
    shared = first[1:] < np.maximum.accumulate(ends)[:-1]
    unfit = np.append(False, shared) | (ends > len(footer))
    chunks = np.minimum(chunks, max(0, len(footer) - 1))
    lengths = np.array([length for run in runs for length in run.lengths], np.uint64)
    plain = (
        (footer.codecs[chunks] == RAW_CODEC)
        & (footer.raw_lengths[chunks] == lengths)
        & (footer.stored_lengths[chunks] == lengths)
    )
    of_chunk = np.repeat(np.arange(len(runs)), count)
    unfit[of_chunk[~plain]] = True
    return set(wants[unfit].tolist())


def plan_flat_requests(
    pack: Pack, footer: Chunks, runs: Sequence[FlatRun], *, gap_bytes: int, request_bytes: int
) -> Iterator[FlatRequest]:
    """Yield the reads of the runs of one pack, which `unfit_wants` found fit, by offset.

    Args:
        pack: The pack.
        footer: Its footer.
        runs: Runs in it by first chunk, which share none.
        gap_bytes: Unwanted bytes that may be read through to save a request.
        request_bytes: Requests are not made larger than this by joining chunks.
    """
    _, count, chunks = _chunks_of(runs)
    wants = np.repeat([run.want for run in runs], count).tolist()
    memory = [view for run in runs for view in _views(run)]
    starts = footer.offsets[chunks].astype(np.int64) - BLOCK_BYTES
    ends = starts + BLOCK_BYTES + footer.stored_lengths[chunks].astype(np.int64)
    digests = footer.digests[chunks]
    headers = encode_chunk_headers(
        footer.codecs[chunks],
        footer.raw_lengths[chunks],
        footer.stored_lengths[chunks],
        digests,
        footer.ids[chunks],
    )
    gaps = np.append(0, starts[1:] - ends[:-1]).tolist()
    for request in plan_coalesce(
        np.stack([starts, ends - starts], axis=1),
        gap_bytes=gap_bytes,
        request_bytes=request_bytes,
    ):
        # Chunks are sorted and apart, so those of a request follow one another.
        low, high = request.indices[0], request.indices[-1] + 1
        yield FlatRequest(
            pack.key,
            request.offset,
            request.length,
            [0, *gaps[low + 1 : high]],
            memory[low:high],
            digests[low:high].tobytes(),
            headers[low:high].tobytes(),
            wants[low:high],
        )


def _chunks_of(runs: Sequence[FlatRun]) -> tuple[I64, I64, I64]:
    """Return first chunk and count of every run, and the numbers of all chunks."""
    first = np.array([run.first for run in runs], np.int64)
    count = np.array([len(run.lengths) for run in runs], np.int64)
    before = np.cumsum(count) - count
    return first, count, np.repeat(first - before, count) + np.arange(int(count.sum()))


def _views(run: FlatRun) -> Iterator[memoryview]:
    begin = 0
    for length in run.lengths:
        yield run.memory[begin : begin + length]
        begin += length
