"""Reads of tensors whose cells follow one another in memory, by runs of chunks instead of chunk by chunk.

A run costs a fixed amount of planning however many tensors there are; what does not fit - other codecs, fragments,
strided memory, repeated chunks, damage - is left to the general path of `fwstore.content.read`.

Invariant: a run is called good only after every chunk of it was compared with its digest and its header.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwstore.codec.hashing import xxh3_128
from fwstore.content.footers import Pack
from fwstore.content.manifest import TensorRows
from fwstore.content.wants import Destination
from fwstore.format.blocks import BLOCK_BYTES, RAW_CODEC, encode_chunk_headers
from fwstore.format.dtypes import itemsize
from fwstore.format.footer import Footer
from fwstore.plan.box import Box
from fwstore.plan.coalesce import plan_coalesce
from fwstore.plan.flat import FlatCells, flat_cells
from fwstore.plan.grid import I64
from fwstore.store.base import ReadInto, Store


@dataclass(frozen=True, slots=True)
class FlatRun:
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


@dataclass(frozen=True, slots=True)
class FlatRequest:
    """One contiguous read of a pack that holds whole chunks in the order of the destinations.

    Attributes:
        key: The pack.
        offset: Where it begins.
        length: How long it is.
        gaps: Bytes between what came before a chunk and its header.
        memory: What receives the stored bytes of every chunk.
        digests: Their XXH3-128.
        headers: Their headers, shape (chunks, 64).
        wants: The tensors that they belong to.
    """

    key: str
    offset: int
    length: int
    gaps: Sequence[int]
    memory: Sequence[memoryview]
    digests: Sequence[bytes]
    headers: NDArray[np.uint8]
    wants: frozenset[int]

    @property
    def chunk_count(self) -> int:
        """How many chunks it holds."""
        return len(self.memory)

    @property
    def raw_bytes(self) -> int:
        """Bytes of those chunks."""
        return sum(memory.nbytes for memory in self.memory)

    def read(self, store: Store) -> bool:
        """Fill the memory; returns whether every chunk is what was written.

        Raises:
            FwstoreError: The store does not answer, or has no such bytes.
        """
        headers = np.empty_like(self.headers)
        scratch, unwanted = headers.data.cast("B"), memoryview(bytearray(max(self.gaps)))
        buffers: list[memoryview] = []
        for number, (gap, memory) in enumerate(zip(self.gaps, self.memory, strict=True)):
            if gap:
                buffers.append(unwanted[:gap])
            buffers += (scratch[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES], memory)
        store.read_into(self.key, [ReadInto(self.offset, buffers)])
        return np.array_equal(headers, self.headers) and all(
            xxh3_128(memory) == digest
            for memory, digest in zip(self.memory, self.digests, strict=True)
        )


def plan_flat_runs(want: int, rows: TensorRows, piece: Destination) -> list[FlatRun]:
    """Return the runs that fill the whole cells of a piece.

    Returns:
        Nothing when the piece has no whole cell, or cannot be filled by runs.
    """
    array, info = piece.array, rows.info
    size = itemsize(info.dtype)
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        return []
    cells = flat_cells(info.shape, info.cells)
    inside = None if cells is None else cells.within(piece.box)
    if cells is None or inside is None or array.dtype.itemsize != size:
        return []
    if len(cells.bounds) == 2:
        bounds = [0, array.nbytes]
    else:
        begin = piece.box.offsets[cells.axis]
        rows_of_cells = cells.bounds[inside[0] : inside[1] + 1] - begin
        bounds = (rows_of_cells * (cells.row_elements * size)).tolist()
    memory = array.reshape(-1).view(np.uint8).data
    found = []
    for first, count, pack, chunk in _covering(rows, *inside):
        here = bounds[first - inside[0] : first - inside[0] + count + 1]
        lengths = [high - low for low, high in itertools.pairwise(here)]
        found.append(FlatRun(want, pack, chunk, lengths, memory[here[0] : here[-1]]))
    complete = sum(len(run.lengths) for run in found) == inside[1] - inside[0]
    return found if complete else []


def _covering(rows: TensorRows, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (cell, count, pack, chunk) of the parts of runs that lie between two cells."""
    runs = rows.runs
    low, high = 0, len(runs)
    if high > 1:
        low = max(0, int(np.searchsorted(runs.first_cell, first, side="right")) - 1)
        high = int(np.searchsorted(runs.first_cell, stop))
    columns = (runs.first_cell, runs.count, runs.pack, runs.first_chunk)
    for cell, count, pack, chunk in zip(*(c[low:high].tolist() for c in columns), strict=True):
        begin, end = max(cell, first), min(cell + count, stop)
        if begin < end:
            yield begin, end - begin, pack, chunk + begin - cell


def edges(rows: TensorRows, box: Box) -> list[Box]:
    """Return the parts of a box before and after its whole cells, for a box that has some."""
    cells = flat_cells(rows.info.shape, rows.info.cells)
    inside = None if cells is None else cells.within(box)
    if cells is None or inside is None or box.sizes == rows.info.shape:
        return []
    low = box.offsets[cells.axis]
    whole = cells.bounds[list(inside)].tolist()
    ranges = ((low, whole[0]), (whole[1], low + box.sizes[cells.axis]))
    return [_rows_of(box, cells, first, stop) for first, stop in ranges if first < stop]


def _rows_of(box: Box, cells: FlatCells, first: int, stop: int) -> Box:
    offsets, sizes = list(box.offsets), list(box.sizes)
    offsets[cells.axis], sizes[cells.axis] = first, stop - first
    return Box(tuple(offsets), tuple(sizes))


def unfit_wants(runs: Sequence[FlatRun], footer: Footer) -> set[int]:
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
    pack: Pack, footer: Footer, runs: Sequence[FlatRun], *, gap_bytes: int, request_bytes: int
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
    headers = encode_chunk_headers(
        footer.codecs[chunks],
        footer.raw_lengths[chunks],
        footer.stored_lengths[chunks],
        footer.digests[chunks],
        footer.ids[chunks],
    )
    digests = [digest.tobytes() for digest in footer.digests[chunks]]
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
            digests[low:high],
            headers[low:high],
            frozenset(wants[low:high]),
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
