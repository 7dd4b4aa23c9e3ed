"""A bound in bytes on what is in flight.

Invariant: at most `limit_bytes` are held at once, but for one request larger than the limit, which is
admitted alone; requests are served in the order in which they came, so none starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from fwstore.base.errors import InternalError
from fwstore.sched.locks import Condition, renew_after_fork


class Budget:
    """Bytes that threads take and give back.

    Args:
        limit_bytes: Most bytes held at once; 0 means no bound.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._changed = Condition()
        self._waiting: deque[object] = deque()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Take back what threads of the parent hold: they will never give it back here."""
        self._used_bytes = 0
        self._waiting.clear()

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        return self._used_bytes

    def acquire(self, size_bytes: int) -> None:
        """Wait until the bytes fit, and take them."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or not self._fits(size_bytes):
                    self._changed.wait()
                self._used_bytes += size_bytes
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def try_acquire(self, size_bytes: int) -> bool:
        """Take bytes that fit at once and that nobody waits for; return whether they were taken."""
        with self._changed:
            if self._waiting or not self._fits(size_bytes):
                return False
            self._used_bytes += size_bytes
            return True

    def release(self, size_bytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            if size_bytes > self._used_bytes:
                raise InternalError(
                    f"{size_bytes} bytes given back to a budget that holds {self._used_bytes}"
                )
            self._used_bytes -= size_bytes
            self._changed.notify_all()

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Hold bytes for the length of a block."""
        self.acquire(size_bytes)
        try:
            yield
        finally:
            self.release(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        unbounded = self._limit_bytes <= 0 or self._used_bytes == 0
        return unbounded or self._used_bytes + size_bytes <= self._limit_bytes
