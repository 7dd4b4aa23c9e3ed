"""A driver that pins memory as far as anybody can tell: it keeps the book, and checks that what it is told to unpin is mapped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np


def address_of(memory: memoryview) -> int:
    """Return where memory begins."""
    return int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])


def is_mapped(address: int) -> bool:
    """Return whether the process has memory at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            return True
    return False


class Driver:
    """Pins memory by its address, each once.

    Args:
        largest: More bytes at once are refused.
        stuck: Nothing can be unpinned.

    Attributes:
        pinned: Sizes of what is pinned now, by address.
        calls: How often it was asked to pin.
        threads: Who asked.
        gate: Pinning waits for it.
    """

    def __init__(self, *, largest: int = 1 << 40, stuck: bool = False) -> None:
        self.largest = largest
        self.stuck = stuck
        self.pinned: dict[int, int] = {}
        self.calls = 0
        self.threads: set[str] = set()
        self.arrived, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    @property
    def bytes_pinned(self) -> int:
        """All that is pinned now."""
        return sum(self.pinned.values())

    def pin(self, memory: memoryview) -> Callable[[], None]:
        """Pin memory; return what undoes it."""
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        self.arrived.set()
        assert self.gate.wait(60)
        self.register(address_of(memory), memory.nbytes)
        address = address_of(memory)
        return lambda: self.unregister(address)

    def register(self, address: int, size: int) -> None:
        """Pin by address."""
        if size > self.largest:
            raise OSError(12, "the driver does not lock so much")
        assert not any(at < address + size and address < at + n for at, n in self.pinned.items())
        self.pinned[address] = size

    def unregister(self, address: int) -> None:
        """Unpin by address."""
        assert is_mapped(address), "memory was unmapped while a device could still write to it"
        if self.stuck:
            raise OSError(5, "the device is lost")
        del self.pinned[address]
