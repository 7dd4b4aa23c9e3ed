"""Copies what must be saved out of the way of training, and says what did not change.

Invariant: once `stage` returns or raises, no staged byte aliases the caller's memory and no thread reads it, so
training may go on; a chunk that is skipped had, at that moment, the XXH3-128 of the chunk that its reference names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import LimitExceeded
from fwstore.checkpoint.segments import Segment
from fwstore.checkpoint.shard import Piece
from fwstore.codec.hashing import xxh3_128
from fwstore.sched.buffers import BufferPool, Pin
from fwstore.sched.locks import Lock
from fwstore.sched.runtime import Runtime

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_BATCH_BYTES = 8 << 20
_ALIGNMENT = 64


def go_on() -> None:
    """Never stop."""


@dataclass(frozen=True, slots=True)
class StagedSegment:
    """Chunks whose bytes no longer belong to the caller.

    Attributes:
        segment: Which chunks.
        memory: Their raw bytes, one after the other.
        release: Gives the memory back, when the bytes are in a pack; a second call does nothing.
    """

    segment: Segment
    memory: memoryview
    release: Callable[[], None]


def live_bytes(segment: Segment, piece: Piece) -> Bytes | None:
    """Return the caller's memory of a segment without a copy, or None when it is not one range."""
    if segment.start < 0 or not isinstance(piece.array, np.ndarray):
        return None
    flat = piece.array.reshape(-1).view(np.uint8)
    return flat[segment.start : segment.start + segment.size_bytes]


def copy_segment(segment: Segment, piece: Piece, target: Bytes) -> None:
    """Copy the bytes of a segment, chunk after chunk, to contiguous memory."""
    with ExitStack() as waits:
        _begin_copy(segment, piece, target, waits)


def _begin_copy(segment: Segment, piece: Piece, target: Bytes, waits: ExitStack) -> None:
    """Copy the bytes of a segment; what a device has only begun by then is done when `waits` is closed."""
    source = live_bytes(segment, piece)
    if source is not None:
        np.copyto(target, source)
        return
    dtype = piece.array.dtype
    position = 0
    for number, length in enumerate(segment.chunks.lengths.tolist()):
        box = segment.chunks.box(number)
        part = target[position : position + length].view(dtype).reshape(box.sizes)
        slices = box.relative_to(piece.box).slices()
        if isinstance(piece.array, np.ndarray):
            np.copyto(part, piece.array[slices])
        elif (wait := piece.array.copy_to_host(slices, part)) is not None:
            waits.callback(wait)
        position += length


def stage(
    work: Sequence[tuple[Segment, Piece]],
    pool: BufferPool,
    runtime: Runtime,
    check: Callable[[], None] = go_on,
) -> list[StagedSegment]:
    """Copy segments into pooled memory with all worker threads.

    Args:
        work: The segments and the pieces that hold them.
        pool: Gives the memory; kept warm between saves.
        runtime: Its scheduler runs the copies.
        check: Called before every batch of segments; raises to stop.

    Returns:
        The staged segments in the order of `work`.

    Raises:
        LimitExceeded: There is no memory for the copies; none is held back.
    """

    def run(copy: _Copy) -> None:
        check()
        copy.run()

    copies: list[_Copy] = []
    try:
        with _copying(sum(segment.size_bytes for segment, _ in work)):
            for batch in _batches(work):
                # One by one: what was leased before a failure must be given back.
                copies.append(_Copy(batch, pool))  # noqa: PERF401
            if (pin := pin_of(piece for _, piece in work)) is not None:
                pool.pin(pin, runtime.scheduler)
            runtime.scheduler.map(run, copies)
    except BaseException:
        for copy in copies:
            copy.lease.release()
        raise
    return [staged for copy in copies for staged in copy.staged()]


def pin_of(pieces: Iterable[Piece]) -> Pin | None:
    """Return what pins memory for copies of some of these pieces, or None when that helps none of them."""
    return next((pin for piece in pieces if (pin := getattr(piece.array, "pin", None))), None)


def _batches(work: Iterable[tuple[Segment, Piece]]) -> Iterator[list[tuple[Segment, Piece]]]:
    """Yield consecutive segments of about equal bytes together, so that threads end together."""
    batch: list[tuple[Segment, Piece]] = []
    size = 0
    for segment, piece in work:
        batch.append((segment, piece))
        size += segment.size_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Copy:
    """Segments that are copied by one thread into one lease, which ends with the last of them."""

    def __init__(self, work: Sequence[tuple[Segment, Piece]], pool: BufferPool) -> None:
        self._work = work
        sizes = [-(-segment.size_bytes // _ALIGNMENT) * _ALIGNMENT for segment, _ in work]
        self._starts = list(accumulate(sizes, initial=0))
        self.lease = pool.lease(self._starts[-1])
        self._lock = Lock()
        self._living = set(range(len(work)))

    def run(self) -> None:
        """Copy the bytes of all segments."""
        memory = np.frombuffer(self.lease.memory, np.uint8)
        with ExitStack() as waits:
            for (segment, piece), start in zip(self._work, self._starts, strict=False):
                _begin_copy(segment, piece, memory[start : start + segment.size_bytes], waits)

    def staged(self) -> Iterator[StagedSegment]:
        """Yield the segments."""
        memory = self.lease.memory
        for number, ((segment, _), start) in enumerate(zip(self._work, self._starts, strict=False)):
            part = memory[start : start + segment.size_bytes]
            yield StagedSegment(segment, part, partial(self._release, number))

    def _release(self, number: int) -> None:
        with self._lock:
            self._living.discard(number)
            ended = not self._living
        if ended:
            self.lease.release()


@contextmanager
def _copying(size_bytes: int) -> Iterator[None]:
    """Say what to do where there is no memory for a copy of the caller's bytes."""
    try:
        yield
    except (MemoryError, LimitExceeded) as error:
        raise LimitExceeded(
            f"there is no memory to copy {size_bytes} bytes of the state aside ({str(error) or 'out of memory'}): free some, "
            "or save without a copy, with blocking=True or with Limits.staging_bytes below that"
        ) from error


def unchanged_chunks(
    work: Sequence[tuple[Segment, Piece]],
    digests: Mapping[int, npt.NDArray[np.uint8]],
    runtime: Runtime,
    check: Callable[[], None] = go_on,
) -> dict[int, Mask]:
    """Return which chunks still have the digest that they were stored with.

    Args:
        work: The segments and the pieces that hold them.
        digests: By position in `work`, the XXH3-128 of every chunk as stored raw, shape (chunks, 16);
            segments without an entry are not compared.
        runtime: Its scheduler runs the hashing.
        check: Called before every segment; raises to stop.

    Returns:
        A mask of chunks for every position in `digests`.
    """

    def compare(position: int) -> Mask:
        check()
        return _equal(*work[position], digests[position])

    return dict(zip(digests, runtime.scheduler.map(compare, list(digests)), strict=True))


def _equal(segment: Segment, piece: Piece, expected: npt.NDArray[np.uint8]) -> Mask:
    memory = live_bytes(segment, piece)
    if memory is None:
        with _copying(segment.size_bytes):
            memory = np.empty(segment.size_bytes, np.uint8)
            copy_segment(segment, piece, memory)
    view = memory.data
    same = np.zeros(len(segment.chunks), np.bool_)
    position = 0
    for number, length in enumerate(segment.chunks.lengths.tolist()):
        digest = xxh3_128(view[position : position + length])
        same[number] = digest == expected[number].tobytes()
        position += length
    return same
