"""What a save hands over to be written: chunks of raw bytes in the order of tensors and cells.

Invariant: batches are drawn one after the other, whichever lane asks, and the `release` of every batch that
was drawn is called exactly once, also when the write fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fwstore.base.units import MIB
from fwstore.plan.box import Box
from fwstore.sched import Lock

_GROUP_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class ChunkSource:
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
    """

    chunks: Sequence[ChunkSource]
    release: Callable[[], None] | None = None

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
    """

    first: int
    batches: Sequence[SourceBatch]
    size_bytes: int

    def chunks(self) -> Iterator[ChunkSource]:
        """Yield the chunks of all batches."""
        for batch in self.batches:
            yield from batch.chunks

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
    """

    def __init__(self, batches: Iterable[SourceBatch], check: Callable[[], None]) -> None:
        self._batches = iter(batches)
        self._check = check
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
                size = self._fill(drawn)
            except BaseException:
                Group(0, drawn, 0).release()
                raise
            first = self._position
            self._position += sum(len(batch.chunks) for batch in drawn)
        return Group(first, drawn, size) if drawn else None

    def _fill(self, drawn: list[SourceBatch]) -> int:
        size = 0
        while size < _GROUP_BYTES and not self._stopped:
            batch = next(self._batches, None)
            if batch is None:
                break
            drawn.append(batch)
            size += batch.size_bytes
        return size
