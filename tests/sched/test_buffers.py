from __future__ import annotations

import random

import numpy as np
import pytest

from fwstore.base.errors import InvalidInput, LimitExceeded
from fwstore.base.units import MIB
from fwstore.sched import BufferPool, InlineScheduler, Lease, ThreadScheduler
from fwstore.sched.buffers import map_anonymous


def address(lease: Lease) -> int:
    return int(np.frombuffer(lease.memory, np.uint8).__array_interface__["data"][0])


def test_a_lease_is_page_aligned_and_exact() -> None:
    pool = BufferPool()
    with pool.lease(10) as first, pool.lease(5000) as second:
        assert (first.memory.nbytes, second.memory.nbytes) == (10, 5000)
        assert address(first) % 4096 == address(second) % 4096 == 0
        assert not first.memory.readonly
        assert pool.statistics().leased_bytes == 4096 + 8192
        assert pool.statistics().leases == 2
    assert pool.statistics().leased_bytes == 0
    assert pool.statistics().peak_leased_bytes == 4096 + 8192


def test_memory_given_back_is_used_again() -> None:
    pool = BufferPool()
    lease = pool.lease(3 * MIB)
    where = address(lease)
    lease.release()
    lease.release()
    mapped = pool.statistics().mapped_bytes
    with pool.lease(2 * MIB) as again:
        assert address(again) == where
    assert pool.statistics().mapped_bytes == mapped


def test_a_lease_larger_than_a_region_gets_one_of_its_own() -> None:
    pool = BufferPool()
    with pool.lease(65 * MIB) as lease:
        assert lease.memory.nbytes == 65 * MIB
    assert pool.statistics().mapped_bytes == 66 * MIB
    pool.trim()
    assert pool.statistics().mapped_bytes == 0


def test_trim_keeps_what_is_in_use() -> None:
    pool = BufferPool()
    lease = pool.lease(1)
    pool.trim()
    assert pool.statistics().mapped_bytes == 64 * MIB
    lease.release()


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_memory_that_the_system_does_not_give_is_told_and_costs_no_other(error: Exception) -> None:
    def scarce(size_bytes: int) -> memoryview:
        if size_bytes > 64 * MIB:
            raise error
        return map_anonymous(size_bytes)

    pool = BufferPool(scarce)
    with pool.lease(MIB) as lease:
        for ask in (pool.lease, lambda size: pool.prefault(size + 63 * MIB, InlineScheduler())):
            with pytest.raises(LimitExceeded, match=rf"{100 * MIB} bytes.*memory"):
                ask(100 * MIB - 1)
        lease.memory[:] = bytes(MIB)
        with pool.lease(60 * MIB):
            assert pool.statistics().leases == 2
    assert (pool.statistics().leases, pool.statistics().leased_bytes) == (0, 0)


def test_more_memory_than_there_is_of_addresses_is_told() -> None:
    with pytest.raises(LimitExceeded, match="bytes of memory"):
        BufferPool().lease(1 << 60)


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(InvalidInput):
        BufferPool().lease(-1)


def test_leases_never_overlap_and_keep_their_bytes() -> None:
    pool = BufferPool(lambda size: memoryview(bytearray(size)))
    rng = random.Random(5)
    living: list[tuple[Lease, int]] = []
    for step in range(600):
        if living and rng.random() < 0.5:
            lease, mark = living.pop(rng.randrange(len(living)))
            assert bytes(lease.memory) == bytes([mark]) * lease.memory.nbytes
            lease.release()
        else:
            lease = pool.lease(rng.randrange(1, 40_000))
            lease.memory[:] = bytes([step % 256]) * lease.memory.nbytes
            living.append((lease, step % 256))
    for lease, mark in living:
        assert bytes(lease.memory) == bytes([mark]) * lease.memory.nbytes
        lease.release()
    region = pool._regions[0]
    assert (region._starts, region._stops) == ([0], [region.size])


def test_prefault_touches_only_what_is_free() -> None:
    pool = BufferPool(lambda size: memoryview(bytearray(b"\xff" * size)))
    lease = pool.lease(9 * MIB)
    lease.memory[:] = b"\x07" * lease.memory.nbytes
    assert pool.prefault(1 * MIB, InlineScheduler()) == []
    futures = pool.prefault(70 * MIB, InlineScheduler())
    for future in futures:
        future.result()
    pool._touch(pool._regions[0], (0, 1), trims=0)
    assert bytes(lease.memory) == b"\x07" * lease.memory.nbytes
    lease.release()
    assert pool.statistics().mapped_bytes == 128 * MIB
    with pool.lease(40 * MIB) as cold:
        assert not cold.memory[39 * MIB]


def test_prefault_in_the_background_leaves_the_pool_whole() -> None:
    pool, scheduler = BufferPool(), ThreadScheduler(2)
    futures = pool.prefault(8 * MIB, scheduler)
    leases = [pool.lease(MIB) for _ in range(8)]
    for lease in leases:
        lease.memory[:] = b"x" * MIB
    for future in futures:
        future.result(20)
    assert all(bytes(lease.memory) == b"x" * MIB for lease in leases)
    for lease in leases:
        lease.release()
    assert all(region.free_bytes == region.size for region in pool._regions)
    scheduler.close()


def test_every_page_is_touched_by_one_of_the_threads() -> None:
    touched = bytearray(b"\xff" * 64 * MIB)
    pool, scheduler = BufferPool(lambda _: memoryview(touched)), ThreadScheduler(2)
    futures = pool.prefault(3 * MIB, scheduler)
    assert len(futures) == 2
    for future in futures:
        future.result(20)
    assert not any(touched[::4096])
    scheduler.close()


def test_touching_ends_when_memory_is_trimmed() -> None:
    pool = BufferPool(lambda size: memoryview(bytearray(b"\xff" * size)))
    lease = pool.lease(1)
    pool.trim()
    region = pool._regions[0]
    pool._touch(region, (0, 1), trims=0)
    assert region.memory[region.size - 1]
    lease.release()


def test_a_forked_child_starts_with_memory_of_its_own() -> None:
    pool = BufferPool()
    before = pool.lease(MIB)
    pool.after_fork()
    assert pool.statistics().mapped_bytes == 0
    with pool.lease(MIB) as after:
        before.memory[:] = b"b" * MIB
        after.memory[:] = b"a" * MIB
        before.release()
        assert pool.statistics().leases == 1
        assert bytes(after.memory) == b"a" * MIB
