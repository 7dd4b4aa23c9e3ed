"""Host memory that is kept between saves.

Invariant: two living leases never share a byte, and memory given back stays mapped for the next lease:
touching cold pages runs at 0.5-1 GB/s, a copy into warm ones at more than ten times that. Memory that is pinned for
a device is unpinned before it is unmapped, and a fork never turns it into a copy.
"""

from __future__ import annotations

import bisect
import mmap
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from fwstore.base.errors import InvalidInput, LimitExceeded
from fwstore.base.notices import log
from fwstore.base.units import MIB
from fwstore.sched.locks import Lock, renew_after_fork
from fwstore.sched.scheduler import Scheduler

Allocator = Callable[[int], memoryview]
Pin = Callable[[memoryview], Callable[[], object]]
"""Pins memory, so that a device copies to it by itself, and returns what undoes that; raises OSError if it cannot."""

_PAGE_BYTES = 4096
_HUGE_PAGE_BYTES = 2 * MIB
_REGION_BYTES = 64 * MIB
_TOUCH_BYTES = 4 * MIB
_TOUCHING_MAX = 2
_WIPE_ON_FORK = 18  # MADV_WIPEONFORK, which Python has no name for


def map_anonymous(size_bytes: int) -> memoryview:
    """Return fresh page-aligned memory of this process.

    Huge pages are not asked for: on a fragmented machine the kernel compacts memory at the first touch,
    which took three times as long as touching small pages (docs/performance.md).
    """
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A fork would make the next write to every page copy it, and so part a device that writes to pinned pages from what
    # this process sees; systems without this advice are older than the drivers that pin. Shared memory needs none.
    with suppress(OSError):
        pages.madvise(_WIPE_ON_FORK)
    return memoryview(pages)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool holds.

    Attributes:
        mapped_bytes: Memory obtained from the system and kept.
        pinned_bytes: Part of it that is pinned for a device.
        leased_bytes: Part of it in use.
        peak_leased_bytes: Most that was in use at once.
        leases: Leases that live.
    """

    mapped_bytes: int
    pinned_bytes: int
    leased_bytes: int
    peak_leased_bytes: int
    leases: int


class Lease:
    """Memory that belongs to the holder until `release`.

    Attributes:
        memory: As many writable bytes as were asked for, beginning at a page.
    """

    __slots__ = ("_extent", "_pool", "memory")

    def __init__(
        self, pool: BufferPool, memory: memoryview, extent: tuple[_Region, int, int]
    ) -> None:
        self.memory = memory
        self._pool = pool
        self._extent: tuple[_Region, int, int] | None = extent

    def release(self) -> None:
        """Give the memory back; a second call does nothing."""
        extent = self._extent
        if extent is not None:
            self._extent = None
            self._pool._give_back(*extent)  # noqa: SLF001 - the two halves of one class
            self.memory = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class BufferPool:
    """Page-aligned buffers out of regions that stay mapped.

    Args:
        allocator: Obtains a region.
    """

    def __init__(self, allocator: Allocator = map_anonymous) -> None:
        self._allocator = allocator
        self._lock = Lock()
        self._peak_bytes = 0
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave the regions to the leases that live: threads of the parent may have been at them."""
        for region in getattr(self, "_regions", ()):
            region.leave_pinned()
        self._regions: list[_Region] = []
        self._pinning = False
        self._leased_bytes = 0
        self._leases = 0
        self._trims = 0

    def lease(self, size_bytes: int) -> Lease:
        """Return memory of at least one page, warm if any is free.

        Raises:
            InvalidInput: The size is negative.
            LimitExceeded: The system gives no such memory; what is leased stays so.
        """
        if size_bytes < 0:
            raise InvalidInput(f"a buffer cannot have {size_bytes} bytes")
        length = _round_up(max(size_bytes, 1), _PAGE_BYTES)
        with self._lock:
            region, offset = self._find(length)
            self._leases += 1
            self._leased_bytes += length
            self._peak_bytes = max(self._peak_bytes, self._leased_bytes)
        return Lease(self, region.memory[offset : offset + size_bytes], (region, offset, length))

    def prefault(self, size_bytes: int, scheduler: Scheduler) -> list[Future[None]]:
        """Map what is missing for leases of so many bytes and touch it in the background, until `trim`.

        Returns:
            Futures of what touches it; leases need not wait for them.

        Raises:
            LimitExceeded: The system gives no such memory.
        """
        with self._lock:
            missing = size_bytes - sum(region.free_bytes for region in self._regions)
            if missing <= 0:
                return []
            region, trims = self._map(missing), self._trims
        hands = min(_TOUCHING_MAX, scheduler.workers)
        return [
            scheduler.spawn("fwstore-prefault", self._touch, region, (hand, hands), trims)
            for hand in range(hands)
        ]

    def pin(self, pin: Pin, scheduler: Scheduler, after: Sequence[Future[None]] = ()) -> None:
        """Pin what is mapped in the background, region by region, until `trim`; leases need not wait for it.

        What cannot be pinned serves as it is, only slower; the log tells so once.

        Args:
            pin: Pins one region.
            scheduler: Runs it on a thread of its own, so that what it leaves there, such as the last error that a
                device driver keeps for each thread, meets nobody else's work.
            after: What to wait for first, such as threads that touch the memory.
        """
        with self._lock:
            if self._pinning or not any(region.is_new for region in self._regions):
                return
            self._pinning, trims = True, self._trims
        scheduler.spawn("fwstore-pin", self._pin_all, pin, after, trims)

    def trim(self) -> None:
        """Return regions that nobody uses to the system."""
        with self._lock:
            self._trims += 1
            unused = [region for region in self._regions if region.free_bytes == region.size]
            self._regions = [region for region in self._regions if region.free_bytes < region.size]
        for region in unused:
            region.unpin()

    def statistics(self) -> PoolStatistics:
        """Return what the pool holds now."""
        with self._lock:
            return PoolStatistics(
                mapped_bytes=sum(region.size for region in self._regions),
                pinned_bytes=sum(region.size for region in self._regions if region.is_pinned),
                leased_bytes=self._leased_bytes,
                peak_leased_bytes=self._peak_bytes,
                leases=self._leases,
            )

    def _find(self, length: int) -> tuple[_Region, int]:
        # The oldest region and its lowest bytes first: they are the ones already touched.
        for region in self._regions:
            offset = region.take(length)
            if offset is not None:
                return region, offset
        region = self._map(length)
        region.take_at(0, length)
        return region, 0

    def _map(self, size_bytes: int) -> _Region:
        length = _round_up(max(size_bytes, _REGION_BYTES), _HUGE_PAGE_BYTES)
        try:
            region = _Region(self._allocator(length))
        except (MemoryError, OSError) as error:
            raise LimitExceeded(
                f"the system does not give {length} bytes of memory: {str(error) or 'out of memory'}"
            ) from error
        self._regions.append(region)
        return region

    def _give_back(self, region: _Region, offset: int, length: int) -> None:
        with self._lock:
            if region in self._regions:
                region.give(offset, length)
                self._leases -= 1
                self._leased_bytes -= length

    def _pin_all(self, pin: Pin, after: Sequence[Future[None]], trims: int) -> None:
        wait(after)
        while (region := self._next_to_pin(trims)) is not None:
            try:
                region.pin(pin)
            except OSError as error:
                # What failed once fails for every region, and costs time: `_pinning` stays set.
                log(f"staging memory is not pinned, so copies from the device are slower: {error}")
                return

    def _next_to_pin(self, trims: int) -> _Region | None:
        with self._lock:
            region = next((region for region in self._regions if region.is_new), None)
            if region is None or self._trims != trims:
                self._pinning = False
                return None
            region.is_new = False
            return region

    def _touch(self, region: _Region, share: tuple[int, int], trims: int) -> None:
        """Write to every page of one share of a region, such as the first of two."""
        number, shares = share
        for offset in range(number * _TOUCH_BYTES, region.size, shares * _TOUCH_BYTES):
            length = min(_TOUCH_BYTES, region.size - offset)
            # The piece is taken while it is touched: writing into someone's lease would corrupt it.
            with self._lock:
                if self._trims != trims:
                    return
                if not region.take_at(offset, length):
                    continue
            region.array[offset : offset + length] = 0
            with self._lock:
                region.give(offset, length)
                if self._trims != trims and region.free_bytes == region.size:
                    # `trim` found it in use, because it was being touched here.
                    self._regions = [kept for kept in self._regions if kept is not region]


class _Region:
    """One mapping and its free extents, sorted, never adjacent.

    Attributes:
        is_new: Nobody has tried to pin it.
    """

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory.cast("B")
        # numpy fills without holding the interpreter lock, which page faults would keep for long.
        self.array = np.frombuffer(self.memory, np.uint8)
        self.size = self.memory.nbytes
        self.free_bytes = self.size
        self.is_new = True
        self._unpin: weakref.finalize[..., _Region] | None = None
        self._starts = [0]
        self._stops = [self.size]

    @property
    def is_pinned(self) -> bool:
        """Whether it is pinned now."""
        return self._unpin is not None and self._unpin.alive

    def pin(self, pin: Pin) -> None:
        """Pin it until `unpin`, or until nobody has it any more.

        Raises:
            OSError: It cannot be pinned.
        """
        self._unpin = weakref.finalize(self, _undo, pin(self.memory))
        # At the end of the process the driver may be gone before, and unpins everything itself.
        self._unpin.atexit = False

    def unpin(self) -> None:
        """Unpin it; a second call does nothing."""
        if self._unpin is not None:
            self._unpin()

    def leave_pinned(self) -> None:
        """Forget that it is pinned: it is so in the parent of this process."""
        if self._unpin is not None:
            self._unpin.detach()

    def take(self, length: int) -> int | None:
        """Take the lowest free extent that is long enough; None when there is none."""
        if length > self.free_bytes:
            return None
        for start, stop in zip(self._starts, self._stops, strict=True):
            if stop - start >= length:
                self.take_at(start, length)
                return start
        return None

    def take_at(self, offset: int, length: int) -> bool:
        """Take these very bytes; False when some of them are in use."""
        index = bisect.bisect_right(self._starts, offset) - 1
        if index < 0 or self._stops[index] < offset + length:
            return False
        start, stop = self._starts.pop(index), self._stops.pop(index)
        self.free_bytes -= length
        for left, right in ((offset + length, stop), (start, offset)):
            if left < right:
                self._starts.insert(index, left)
                self._stops.insert(index, right)
        return True

    def give(self, offset: int, length: int) -> None:
        """Make bytes free again, joined with free neighbours."""
        self.free_bytes += length
        stop = offset + length
        index = bisect.bisect_left(self._starts, offset)
        if index < len(self._starts) and self._starts[index] == stop:
            self._starts.pop(index)
            stop = self._stops.pop(index)
        if index and self._stops[index - 1] == offset:
            self._stops[index - 1] = stop
        else:
            self._starts.insert(index, offset)
            self._stops.insert(index, stop)


def _undo(pin: Callable[[], object]) -> None:
    try:
        pin()
    except OSError as error:
        # A device that is lost refuses everything; what is saved does not depend on it any more.
        log(f"staging memory stays pinned until the process ends: {error}")


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
