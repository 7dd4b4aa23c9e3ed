"""What a save hands over to be written: chunks of raw bytes in the order of tensors and cells.

Invariant: batches are drawn one after the other, whichever lane asks, and the `release` of every batch that
was drawn is called exactly once, also when the write fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fwstore.base.units import MIB
from fwstore.plan.box import Box
from fwstore.sched import Lock, SharedPlace, Stretch, find_shared

# One write to the store, hashed while it is in the cache.
_GROUP_BYTES = 8 * MIB
# What a process beside hashes is drawn in larger pieces: every step of a lane may wait 5 ms for the interpreter lock.
_GROUP_BESIDE_BYTES = 32 * MIB


class ChunkSource(NamedTuple):
    """One cell of a tensor, or a part of it, and its bytes.

    Attributes:
        tensor: Index in the tensor list of the write.
        cell: Cell number in the tensor's grid.
        fragment: The part of the cell, relative to the cell's box; None for the whole cell.
        buffer: The raw bytes in C order, contiguous.
        known: Row of the known places that held this cell or part before; -1 for none.
    """

    tensor: int
    cell: int
    fragment: Box | None
    buffer: memoryview
    known: int = -1


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Consecutive chunks whose memory is given back together.

    Attributes:
        chunks: The chunks, in order.
        release: Called once when the bytes are no longer needed; None when nothing waits for them.
        memory: The bytes of all chunks where they lie one after the other, else None.
    """

    chunks: Sequence[ChunkSource]
    release: Callable[[], None] | None = None
    memory: memoryview | None = None

    @property
    def size_bytes(self) -> int:
        """Raw bytes of all chunks."""
        return sum(chunk.buffer.nbytes for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Group:
    """What a lane takes at once: batches worth one write to the store.

    Attributes:
        first: Position of the first chunk among all chunks of the write.
        batches: The batches, in order.
        size_bytes: Raw bytes of all.
        places: Where a process beside finds the memory of every batch; empty when it cannot find all of them.
    """

    first: int
    batches: Sequence[SourceBatch]
    size_bytes: int
    places: Sequence[SharedPlace] = ()

    @property
    def chunks(self) -> list[ChunkSource]:
        """The chunks of all batches."""
        return [chunk for batch in self.batches for chunk in batch.chunks]

    @property
    def stretches(self) -> list[Stretch]:
        """The same in shared memory; empty when some lie elsewhere."""
        return [
            Stretch(place, batch.memory, [chunk.buffer.nbytes for chunk in batch.chunks])
            for place, batch in zip(self.places, self.batches, strict=False)
            if batch.memory is not None
        ]

    def release(self) -> None:
        """Give the memory of all batches back."""
        for batch in self.batches:
            if batch.release is not None:
                batch.release()


class Feed:
    """The queue that all lanes of a write draw from.

    Args:
        batches: Drawn lazily, under a lock, so a generator may stage as it yields.
        check: Called before every draw; raises to abandon the write.
        beside: Asked before every draw whether a process beside hashes what it can find.
    """

    def __init__(
        self,
        batches: Iterable[SourceBatch],
        check: Callable[[], None],
        *,
        beside: Callable[[], bool] = lambda: False,
    ) -> None:
        self._batches = iter(batches)
        self._check = check
        self._beside = beside
        self._lock = Lock()
        self._position = 0
        self._stopped = False

    def groups(self) -> Iterator[Group]:
        """Yield groups until the batches are used up or the feed is stopped."""
        while (group := self._draw()) is not None:
            yield group

    def stop(self) -> None:
        """Let every lane come to its end: one has failed."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """True when the rest of the batches will not be drawn."""
        return self._stopped

    def _draw(self) -> Group | None:
        self._check()
        drawn: list[SourceBatch] = []
        with self._lock:
            try:
                size, places = self._fill(drawn)
            except BaseException:
                Group(0, drawn, 0).release()
                raise
            first = self._position
            self._position += sum(len(batch.chunks) for batch in drawn)
        return Group(first, drawn, size, places) if drawn else None

    def _fill(self, drawn: list[SourceBatch]) -> tuple[int, list[SharedPlace]]:
        size, shared = 0, self._beside()
        places: list[SharedPlace] = []
        while not self._stopped and size < (_GROUP_BESIDE_BYTES if shared else _GROUP_BYTES):
            batch = next(self._batches, None)
            if batch is None:
                break
            drawn.append(batch)
            size += batch.size_bytes
            place = _shared_place(batch) if shared else None
            if place is None:
                shared = False
            else:
                places.append(place)
        return size, places if shared else []


def _shared_place(batch: SourceBatch) -> SharedPlace | None:
    if batch.memory is None or batch.memory.nbytes != batch.size_bytes:
        return None
    return find_shared(batch.memory)
