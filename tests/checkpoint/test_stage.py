"""Staged bytes are copies; what is called unchanged has the digest that was stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import InternalError, LimitExceeded
from fwstore.checkpoint.segments import Segment, TensorChunks, split_segments
from fwstore.checkpoint.shard import Piece
from fwstore.checkpoint.stage import stage, unchanged_chunks
from fwstore.codec.hashing import xxh3_128
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid
from fwstore.sched import BufferPool, Runtime, ThreadScheduler
from support.pins import Driver
from support.queues import QueuedArray
from support.snapshots import make_runtime

RNG = np.random.default_rng(5)


@pytest.fixture
def runtime() -> Any:
    scheduler = ThreadScheduler(3)
    yield make_runtime(scheduler)
    scheduler.close()


class Device:
    """Memory that numpy cannot address; its copies are counted."""

    def __init__(self, array: np.ndarray[Any, Any], *, broken: bool = False) -> None:
        self.hidden = array
        self.dtype = array.dtype
        self.shape = array.shape
        self.broken = broken
        self.copies = 0

    def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
        if self.broken:
            raise InternalError("the device is lost")
        self.copies += 1
        target[...] = self.hidden[slices]

    def copy_from_host(self, slices: tuple[slice, ...], source: np.ndarray[Any, Any]) -> None:
        self.hidden[slices] = source


def work_of(memory: Any, grid: Grid, number: int = 0) -> list[tuple[Segment, Piece]]:
    cut = grid.cut(Box.whole(grid.shape))
    itemsize = memory.dtype.itemsize
    chunks = TensorChunks(number, itemsize, cut.cells, cut.offsets, cut.sizes, ~cut.whole)
    piece = Piece(Box.whole(grid.shape), memory)
    flat = isinstance(memory, np.ndarray) and memory.flags.c_contiguous
    return [(s, piece) for s in split_segments(chunks, [(piece.box, flat)], 1 << 16)]


def digests_of(work: list[tuple[Segment, Piece]], pool: BufferPool, runtime: Runtime) -> Any:
    found = {}
    for number, staged in enumerate(stage(work, pool, runtime)):
        position, rows = 0, []
        for length in staged.segment.chunks.lengths.tolist():
            digest = xxh3_128(staged.memory[position : position + length])
            rows.append(np.frombuffer(digest, np.uint8))
            position += length
        found[number] = np.array(rows).reshape(-1, 16)
        staged.release()
    return found


def test_staged_bytes_do_not_follow_the_live_ones(runtime: Runtime) -> None:
    pool = BufferPool()
    plain, strided = RNG.random((100, 300)), RNG.random((60, 80))[::-2, 1:]
    device = Device(np.arange(5000, dtype=np.uint64).reshape(50, 100))
    expected = [plain.tobytes(), np.ascontiguousarray(strided).tobytes(), device.hidden.tobytes()]
    work = [
        *work_of(plain, Grid((100, 300), ((1, 10), (1, 300)))),
        *work_of(strided, Grid((30, 79), ((1, 7), (1, 79))), 1),
        *work_of(device, Grid((50, 100), ((1, 9), (1, 100))), 2),
    ]
    staged = stage(work, pool, runtime)
    plain[:], strided[:], device.hidden[:] = 0, 0, 0
    for number, whole in enumerate(expected):
        mine = [bytes(s.memory) for s in staged if s.segment.chunks.tensor == number]
        assert b"".join(mine) == whole
    assert device.copies == 6
    # Small segments share memory, which is given back with the last of them.
    assert pool.statistics().leases == 1
    for found in staged[1:]:
        found.release()
        found.release()
    assert pool.statistics().leased_bytes > 0
    staged[0].release()
    assert pool.statistics().leased_bytes == 0


def test_a_failed_copy_gives_all_memory_back(runtime: Runtime) -> None:
    pool = BufferPool()
    good = work_of(RNG.random((64, 64)), Grid((64, 64), ((1, 8), (1, 64))))
    lost = Device(np.zeros((8, 8), np.uint64), broken=True)
    bad = work_of(lost, Grid((8, 8), ((1, 8), (1, 8))), 1)
    with pytest.raises(InternalError, match="lost"):
        stage([*good, *bad, *good], pool, runtime)
    assert pool.statistics().leased_bytes == 0


def test_a_device_is_given_all_copies_of_a_batch_before_one_is_waited_for(runtime: Runtime) -> None:
    array = RNG.random((64, 64))
    device = QueuedArray(array)
    work = work_of(device, Grid((64, 64), ((1, 8), (1, 64))))
    found = stage(work, BufferPool(), runtime)
    assert b"".join(one.memory for one in found) == array.tobytes()
    assert (device.queued, device.longest) == (0, len(work))


def test_copies_that_a_device_began_are_waited_for_though_others_failed(runtime: Runtime) -> None:
    pool = BufferPool()
    device = QueuedArray(RNG.random((64, 64)))
    leased = []

    class Watching(QueuedArray):
        def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> Any:
            wait = super().copy_to_host(slices, target)

            def noting() -> None:
                leased.append(pool.statistics().leased_bytes)
                wait()

            return noting

    watching = Watching(RNG.random((8, 8)))
    good = [work_of(each, Grid(each.shape, ((1, 8), (1, 8)))) for each in (device, watching)]
    lost = Device(np.zeros((8, 8), np.uint64), broken=True)
    bad = work_of(lost, Grid((8, 8), ((1, 8), (1, 8))), 1)
    with pytest.raises(InternalError, match="lost"):
        stage([*good[0], *good[1], *bad], pool, runtime)
    assert (device.queued, watching.queued, pool.statistics().leased_bytes) == (0, 0, 0)
    assert all(leased)
    assert len(leased) == 1


def test_memory_for_a_device_is_pinned_and_for_others_it_is_not(runtime: Runtime) -> None:
    pool, driver = BufferPool(), Driver()
    grid = Grid((64, 64), ((1, 8), (1, 64)))
    array = RNG.random((64, 64))
    for memory in (array, Device(array.view(np.uint64)), QueuedArray(array)):
        for found in stage(work_of(memory, grid), pool, runtime):
            found.release()
    assert driver.calls == 0
    for _ in range(2):
        for found in stage(work_of(QueuedArray(array, driver.pin), grid), pool, runtime):
            found.release()
    runtime.scheduler.close()
    assert (driver.calls, driver.bytes_pinned) == (1, pool.statistics().mapped_bytes)
    pool.trim()
    assert driver.pinned == {}


def test_a_comparison_for_which_there_is_no_memory_says_what_to_do(runtime: Runtime) -> None:
    class Exhausted(Device):
        def copy_to_host(self, slices: tuple[slice, ...], target: np.ndarray[Any, Any]) -> None:
            raise MemoryError

    array = RNG.random(1000)
    grid = Grid((1000,), ((1, 250),))
    digests = digests_of(work_of(array, grid), BufferPool(), runtime)
    with pytest.raises(LimitExceeded, match=r"2000 bytes.*out of memory.*blocking=True"):
        unchanged_chunks(work_of(Exhausted(array), grid), digests, runtime)


def test_memory_is_used_again(runtime: Runtime) -> None:
    pool = BufferPool()
    work = work_of(RNG.random((512, 512)), Grid((512, 512), ((1, 64), (1, 512))))
    for _ in range(3):
        for found in stage(work, pool, runtime):
            found.release()
    assert pool.statistics().peak_leased_bytes <= 512 * 512 * 8 + 4096 * len(work)
    mapped = pool.statistics().mapped_bytes
    for found in stage(work, pool, runtime):
        found.release()
    assert pool.statistics().mapped_bytes == mapped


@pytest.mark.parametrize("view", ["plain", "strided", "device"])
def test_unchanged_chunks_are_known_by_their_digests(runtime: Runtime, view: str) -> None:
    base = RNG.random((40, 32))
    array = base[:, ::2] if view == "strided" else base
    memory: Any = Device(array.view(np.uint64)) if view == "device" else array
    work = work_of(memory, Grid(array.shape, ((1, 4), (1, array.shape[1]))))
    digests = digests_of(work, BufferPool(), runtime)
    masks = unchanged_chunks(work, digests, runtime)
    assert list(masks) == list(range(len(work)))
    assert all(mask.all() for mask in masks.values())
    array[13, 7] += 1
    same = np.concatenate(list(unchanged_chunks(work, digests, runtime).values()))
    assert np.flatnonzero(~same).tolist() == [3]


def test_only_segments_with_digests_are_compared(runtime: Runtime) -> None:
    work = work_of(RNG.random((8, 8)), Grid((8, 8), ((1, 2), (1, 8))))
    assert unchanged_chunks(work, {}, runtime) == {}
    digests = digests_of(work, BufferPool(), runtime)
    digests[0][2] = 0
    assert unchanged_chunks(work, digests, runtime)[0].tolist() == [True, True, False, True]
