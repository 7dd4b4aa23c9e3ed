"""Memory of a pool that a device copies to by itself: pinned in the background, unpinned before it goes."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from fwstore.base.units import MIB
from fwstore.sched import BufferPool, InlineScheduler, ThreadScheduler
from support.pins import Driver

REGION = 64 * MIB


@pytest.fixture
def scheduler() -> Iterator[ThreadScheduler]:
    found = ThreadScheduler(2)
    yield found
    found.close()


def test_every_region_is_pinned_once_and_as_a_whole() -> None:
    pool, driver = BufferPool(), Driver()
    pool.pin(driver.pin, InlineScheduler())
    assert driver.calls == 0
    first = pool.lease(MIB)
    assert pool.statistics().pinned_bytes == 0
    for _ in range(2):
        pool.pin(driver.pin, InlineScheduler())
        assert driver.bytes_pinned == pool.statistics().pinned_bytes == REGION
    with pool.lease(65 * MIB):
        pool.pin(driver.pin, InlineScheduler())
        assert (driver.calls, pool.statistics().pinned_bytes) == (2, REGION + 66 * MIB)
    first.release()
    pool.trim()
    assert driver.pinned == {}


def test_what_is_in_use_stays_pinned_and_mapped() -> None:
    pool, driver = BufferPool(), Driver()
    lease = pool.lease(MIB)
    with pool.lease(64 * MIB):
        pool.pin(driver.pin, InlineScheduler())
    pool.trim()
    assert pool.statistics().pinned_bytes == driver.bytes_pinned == REGION
    lease.memory[:] = bytes(MIB)
    lease.release()
    with pool.lease(MIB):
        pool.pin(driver.pin, InlineScheduler())
    assert driver.calls == 2
    pool.trim()
    assert (driver.pinned, pool.statistics().mapped_bytes) == ({}, 0)


def test_memory_that_cannot_be_pinned_serves_as_it_is_and_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool, driver = BufferPool(), Driver(largest=REGION)
    small, large = pool.lease(MIB), pool.lease(65 * MIB)
    for _ in range(3):
        pool.pin(driver.pin, InlineScheduler())
        small.memory[:] = large.memory[:MIB] = b"x" * MIB
        pool.lease(66 * MIB)
    assert driver.calls == 2
    assert [record.message for record in caplog.records] == [
        "staging memory is not pinned, so copies from the device are slower: [Errno 12] the driver does not lock so much"
    ]
    assert pool.statistics().pinned_bytes == driver.bytes_pinned == REGION
    small.release()
    large.release()
    pool.trim()
    assert driver.pinned == {}


def test_a_lost_device_hinders_nobody_from_leaving(caplog: pytest.LogCaptureFixture) -> None:
    pool, driver = BufferPool(), Driver(stuck=True)
    with pool.lease(MIB):
        pool.pin(driver.pin, InlineScheduler())
    pool.trim()
    assert pool.statistics().mapped_bytes == 0
    assert "the device is lost" in caplog.text


def test_a_pool_that_is_forgotten_unpins_before_it_unmaps() -> None:
    pool, driver = BufferPool(), Driver()
    lease = pool.lease(MIB)
    pool.pin(driver.pin, InlineScheduler())
    del pool
    gc.collect()
    assert driver.bytes_pinned == REGION
    del lease
    gc.collect()
    assert driver.pinned == {}


def test_leases_and_trims_do_not_wait_for_the_driver(scheduler: ThreadScheduler) -> None:
    pool, driver = BufferPool(), Driver()
    driver.gate.clear()
    with pool.lease(MIB):
        pool.pin(driver.pin, scheduler)
        assert driver.arrived.wait(60)
        with pool.lease(2 * MIB) as other:
            other.memory[:] = bytes(2 * MIB)
        pool.pin(driver.pin, scheduler)
    pool.trim()
    assert pool.statistics().mapped_bytes == 0
    driver.gate.set()
    scheduler.close()
    gc.collect()
    assert (driver.calls, driver.pinned) == (1, {})


def test_memory_is_touched_before_it_is_pinned(scheduler: ThreadScheduler) -> None:
    pool, driver = BufferPool(), Driver()
    touched: Future[None] = Future()
    with pool.lease(MIB):
        pool.pin(driver.pin, scheduler, after=[touched])
        assert not driver.arrived.wait(0.05)
        touched.set_exception(MemoryError())
        assert driver.arrived.wait(60)
    scheduler.close()
    assert driver.bytes_pinned == REGION
    assert all(name.startswith("fwstore-fwstore-pin") for name in driver.threads)
    pool.trim()


def test_pinning_goes_on_with_what_was_mapped_meanwhile(scheduler: ThreadScheduler) -> None:
    pool, driver = BufferPool(), Driver()
    driver.gate.clear()
    with pool.lease(MIB), pool.lease(64 * MIB):
        pool.pin(driver.pin, scheduler)
        assert driver.arrived.wait(60)
        with pool.lease(64 * MIB):
            pool.pin(driver.pin, scheduler)
            driver.gate.set()
            scheduler.close()
            assert driver.bytes_pinned == 3 * REGION
    pool.trim()
    assert driver.pinned == {}


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_parts_neither_the_device_nor_the_process_from_the_memory() -> None:
    pool, driver = BufferPool(), Driver()
    lease = pool.lease(16 * MIB)
    memory = np.frombuffer(lease.memory, np.uint8)
    memory[:] = 7
    pool.pin(driver.pin, InlineScheduler())
    child = os.fork()
    if child == 0:
        # Zeros at the same address, memory of its own, and nothing to unpin: all that is the parent's.
        right = not memory.any() and pool.statistics().pinned_bytes == 0
        with pool.lease(MIB) as own:
            own.memory[:] = b"c" * MIB
        pool.trim()
        del lease
        gc.collect()
        os._exit(0 if right and driver.bytes_pinned == REGION else 1)
    before = _faults()
    memory[:] = 8
    pages = _faults() - before
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pages < 400, "every page was copied when it was written to after the fork"
    assert driver.bytes_pinned == REGION
    assert (memory == 8).all()
    lease.release()
    pool.trim()
    assert driver.pinned == {}
