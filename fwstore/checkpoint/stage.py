"""Copies what must be saved out of the way of training, and says what did not change.

Invariant: once `stage` returns, no staged byte aliases the caller's memory, so training may go on; a chunk
that is skipped had, at that moment, the XXH3-128 of the chunk that its reference names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import LimitExceeded
from fwstore.checkpoint.segments import Segment
from fwstore.checkpoint.shard import Piece
from fwstore.codec.hashing import xxh3_128
from fwstore.sched.buffers import BufferPool, Lease
from fwstore.sched.runtime import Runtime

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class StagedSegment:
    """Chunks whose bytes no longer belong to the caller.

    Attributes:
        segment: Which chunks.
        memory: Their raw bytes, one after the other.
        release: Gives the memory back; to be called once, when the bytes are in a pack.
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
        else:
            piece.array.copy_to_host(slices, part)
        position += length


def stage(
    work: Sequence[tuple[Segment, Piece]], pool: BufferPool, runtime: Runtime
) -> list[StagedSegment]:
    """Copy segments into pooled memory with all worker threads.

    Args:
        work: The segments and the pieces that hold them.
        pool: Gives the memory; kept warm between saves.
        runtime: Its scheduler runs the copies.

    Returns:
        The staged segments in the order of `work`.

    Raises:
        LimitExceeded: There is no memory for the copies; none is held back.
    """
    leases: list[Lease] = []
    try:
        with _copying(sum(segment.size_bytes for segment, _ in work)):
            for segment, _ in work:
                leases.append(pool.lease(segment.size_bytes))
            jobs = list(_copy_jobs(work, leases))
            runtime.scheduler.map(_run, jobs)
    except BaseException:
        for lease in leases:
            lease.release()
        raise
    return [
        StagedSegment(segment, lease.memory, lease.release)
        for (segment, _), lease in zip(work, leases, strict=True)
    ]


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


def _run(jobs: Sequence[Callable[[], None]]) -> None:
    for job in jobs:
        job()


def _copy_jobs(
    work: Sequence[tuple[Segment, Piece]], leases: Sequence[Lease]
) -> Iterator[list[Callable[[], None]]]:
    """Yield batches of copies of about equal bytes, so that threads end together."""
    batch: list[Callable[[], None]] = []
    size = 0
    for (segment, piece), lease in zip(work, leases, strict=True):
        target = np.frombuffer(lease.memory, np.uint8)
        batch.append(lambda s=segment, p=piece, t=target: copy_segment(s, p, t))  # type: ignore[misc]
        size += segment.size_bytes
        if size >= _COPY_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def unchanged_chunks(
    work: Sequence[tuple[Segment, Piece]],
    digests: Mapping[int, npt.NDArray[np.uint8]],
    runtime: Runtime,
) -> list[Mask]:
    """Return for every segment which chunks still have the digest that they were stored with.

    Args:
        work: The segments and the pieces that hold them.
        digests: By position in `work`, the XXH3-128 of every chunk as stored raw, shape (chunks, 16);
            segments without an entry are not compared.
        runtime: Its scheduler runs the hashing.
    """

    def compare(position: int) -> Mask:
        segment, piece = work[position]
        if position not in digests:
            return np.zeros(len(segment.chunks), np.bool_)
        return _equal(segment, piece, digests[position])

    return runtime.scheduler.map(compare, range(len(work)))


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
