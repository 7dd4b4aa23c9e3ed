"""Verified reads chunk by chunk: any codec, any part of a chunk, any memory, from any store that has it whole.

Invariant: when `read` returns, every wanted byte was compared with the digest of its chunk after it
arrived in this process; when it raises, the destinations hold no promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import Corrupt, InvalidInput, NotFound, Unavailable
from fwstore.codec.hashing import xxh3_128
from fwstore.codec.registry import RAW, codec_of_number
from fwstore.content.footers import FooterCache
from fwstore.content.manifest import Manifest, TensorRows
from fwstore.content.verified import Origin, read_verified
from fwstore.content.wants import (
    Destination,
    Request,
    TensorRead,
    Want,
    WantedChunk,
    group_wants,
    plan_requests,
)
from fwstore.format.blocks import BLOCK_BYTES
from fwstore.format.dtypes import itemsize
from fwstore.format.paths import TensorPath, display_path
from fwstore.plan.grid import Grid
from fwstore.plan.reshard import plan_reads
from fwstore.sched import Budget, BufferPool
from fwstore.store.base import ReadInto, Store


def plan_tensor(path: TensorPath, rows: TensorRows, pieces: Sequence[Destination]) -> TensorRead:
    """Return the reads that fill some pieces of a tensor.

    Raises:
        InvalidInput: A piece does not lie in the tensor or has elements of another size.
        Corrupt: The snapshot does not cover what is wanted.
    """
    size = itemsize(rows.info.dtype)
    for piece in pieces:
        if piece.array.dtype.itemsize != size:
            raise InvalidInput(
                f"tensor {display_path(path)} has elements of {size} bytes; "
                f"its destination has {piece.array.dtype.itemsize}"
            )
    if 0 in rows.info.shape:
        return TensorRead(path, size, (), pieces)
    grid = Grid(rows.info.shape, rows.info.cells)
    reads = plan_reads(grid, rows.runs, rows.fragments, [piece.box for piece in pieces])
    return TensorRead(path, size, reads, pieces)


class ChunkReader:
    """Reads chunks from an origin.

    Args:
        origin: Where packs are.
        footers: Footers of the same origin.
        pool: Gives the memory for what cannot be read in place.
        budget: Bounds what is fetched but not yet delivered.
    """

    def __init__(
        self, origin: Origin, footers: FooterCache, pool: BufferPool, budget: Budget
    ) -> None:
        self._origin = origin
        self._footers = footers
        self._pool = pool
        self._budget = budget

    def read(self, manifest: Manifest, tensors: Sequence[TensorRead]) -> list[Request]:
        """Fill the pieces of some tensors of a snapshot; return what was asked for.

        Raises:
            NotFound: A pack is gone; the log of the snapshot says whether it expired.
            Corrupt: A chunk is damaged and no store has it whole; tensor, chunk, pack and store are named.
            Unavailable: A store does not answer.
        """
        grouped = group_wants(tensors)
        packs = manifest.packs(grouped)
        numbers = sorted(packs)
        footers = self._footers.get_many([packs[number] for number in numbers])
        limits = self._origin.runtime.limits
        requests = [
            request
            for number, footer in zip(numbers, footers, strict=True)
            for request in plan_requests(packs[number], footer, grouped[number], limits)
        ]
        self._origin.runtime.scheduler.map(self._run, requests)
        return requests

    def _run(self, request: Request) -> None:
        direct = [_memory_in_place(chunk) for chunk in request.chunks]
        in_place = sum(memory.nbytes for memory in direct if memory is not None)
        with (
            self._budget.reserve(request.length),
            self._pool.lease(request.length - in_place) as lease,
        ):
            buffers, chunks = _lay_out(request, direct, lease.memory)
            good = self._read_all(request, buffers)
            for chunk in chunks:
                if not (good and chunk.verified()):
                    self._read_again(chunk)
                self._deliver(chunk)

    def _read_all(self, request: Request, buffers: Sequence[memoryview]) -> bool:
        try:
            self._origin.stores[0].read_into(request.key, [ReadInto(request.offset, buffers)])
        except (Corrupt, NotFound, Unavailable):
            # Each chunk is tried by itself, here and elsewhere; what remains wrong is raised there.
            return False
        return True

    def _read_again(self, chunk: _Arrival) -> None:
        wanted = chunk.wanted

        def read(store: Store) -> None:
            buffers = [chunk.header, chunk.stored]
            store.read_into(wanted.pack.key, [ReadInto(wanted.start, buffers)])
            if not chunk.verified():
                raise Corrupt(
                    f"{wanted} in {store.url} is damaged: restore the pack from another copy"
                )

        read_verified(self._origin, read, again=False)

    def _deliver(self, chunk: _Arrival) -> None:
        raw = self._decode(chunk)
        for want in chunk.wanted.wants:
            if want is not chunk.in_place:
                _copy(raw, want)

    def _decode(self, chunk: _Arrival) -> memoryview:
        wanted = chunk.wanted
        if wanted.codec == RAW.number:
            return chunk.stored
        raw = memoryview(codec_of_number(wanted.codec).decode(chunk.stored, wanted.raw_length))
        if self._origin.content_hash.digest(raw) != wanted.id:
            raise Corrupt(f"{wanted} does not decode to the bytes that were saved")
        return raw


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A chunk and the memory into which it is read."""

    wanted: WantedChunk
    header: memoryview
    stored: memoryview
    in_place: Want | None

    def verified(self) -> bool:
        """Return whether the bytes that arrived are those that were written."""
        return xxh3_128(self.stored) == self.wanted.digest and self.header == self.wanted.header


def _memory_in_place(chunk: WantedChunk) -> memoryview | None:
    """Return the memory of the first want when the stored bytes can be read straight into it."""
    read = chunk.wants[0].read
    array, slices = chunk.wants[0].target
    whole = read.wanted == read.stored and chunk.codec == RAW.number
    if not whole or not isinstance(array, np.ndarray):
        return None
    part = _part(array, slices)
    return part.reshape(-1).view(np.uint8).data if part.flags.c_contiguous else None


def _lay_out(
    request: Request, direct: Sequence[memoryview | None], scratch: memoryview
) -> tuple[list[memoryview], list[_Arrival]]:
    """Return the buffers that a request fills, and where its chunks come to lie in them."""
    buffers: list[memoryview] = []
    arrivals = []
    position, used, begun = request.offset, 0, 0
    for chunk, memory in zip(request.chunks, direct, strict=True):
        # The bytes between the last chunk and this header are read and ignored.
        used += chunk.start - position
        header = scratch[used : used + BLOCK_BYTES]
        used += BLOCK_BYTES
        if memory is None:
            stored = scratch[used : used + chunk.stored_length]
            used += chunk.stored_length
        else:
            stored = memory
            buffers += (scratch[begun:used], memory)
            begun = used
        arrivals.append(_Arrival(chunk, header, stored, None if memory is None else chunk.wants[0]))
        position = chunk.offset + chunk.stored_length
    buffers.append(scratch[begun : used + request.offset + request.length - position])
    return buffers, arrivals


def _copy(raw: memoryview, want: Want) -> None:
    array, slices = want.target
    read = want.read
    whole = np.frombuffer(raw, array.dtype).reshape(read.stored.sizes)
    part = _part(whole, read.wanted.relative_to(read.stored).slices())
    if isinstance(array, np.ndarray):
        np.copyto(_part(array, slices), part)
    else:
        array.copy_from_host(slices, part)


def _part(array: npt.NDArray[Any], slices: tuple[slice, ...]) -> npt.NDArray[Any]:
    # The ellipsis keeps a view where a tensor without dimensions would become a scalar.
    index: tuple[Any, ...] = (*slices, ...)
    part: npt.NDArray[Any] = array[index]
    return part
