"""Buffers lent to a library that gives them back by dropping them.

A library that sends bytes in the background keeps what it was given until it is sent, and does not tell when
that is. What it keeps is an array, though, and the death of an array can be watched.

Invariant: the bytes of a buffer belong to one borrower until nobody holds its array any more; what came back
stays mapped, and warm, for the next one.
"""

from __future__ import annotations

import queue
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

from fwstore.sched.buffers import BufferPool
from fwstore.sched.locks import Lock

Bytes = npt.NDArray[np.uint8]


class Loans:
    """Buffers of one size, of which few are lent at once.

    Args:
        size_bytes: Of each buffer.
        count: Most buffers lent at once; beyond it, only who has none gets one.
    """

    def __init__(self, size_bytes: int, count: int) -> None:
        self._size_bytes = size_bytes
        self._count = count
        self._made = 0
        self._lock = Lock()
        self._pool = BufferPool()
        self._returned: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def take(self, given_back: deque[None], *, patient: bool) -> Bytes:
        """See `Borrower.take`."""
        memory = self._find(patient=patient)
        if memory is None:
            memory = self._returned.get()
        array = np.frombuffer(memory, np.uint8)
        watch = weakref.finalize(array, _give_back, memory, self._returned, given_back)
        # Nobody asks for memory at the end of the process.
        watch.atexit = False
        return array

    def _find(self, *, patient: bool) -> memoryview | None:
        with self._lock:
            try:
                return self._returned.get_nowait()
            except queue.Empty:
                if patient and self._made >= self._count:
                    return None
                self._made += 1
                return self._pool.lease(self._size_bytes).memory


class Borrower:
    """Somebody who fills one buffer after the other and hands them on."""

    def __init__(self, loans: Loans) -> None:
        self._loans = loans
        self._taken = 0
        self._given_back: deque[None] = deque()

    def take(self) -> Bytes:
        """Return a buffer; it comes back when the array, and all views of it, are dropped.

        Waits while too many are lent, but only for what it has handed on itself: others may wait for this one.

        Raises:
            LimitExceeded: The system gives no such memory.
        """
        taken, self._taken = self._taken, self._taken + 1
        return self._loans.take(self._given_back, patient=taken > len(self._given_back))


def _give_back(
    memory: memoryview, returned: queue.SimpleQueue[memoryview], given_back: deque[None]
) -> None:
    # An array may die anywhere, within any lock: neither of these takes one.
    given_back.append(None)
    returned.put(memory)
