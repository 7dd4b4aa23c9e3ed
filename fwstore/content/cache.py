"""A cache of parsed objects, bounded by bytes.

Invariant: one value is made by one thread while others wait for it; the estimated bytes held never exceed
the bound by more than the newest value; a failure is not remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from fwstore.sched import Lock, renew_after_fork

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedCache(Generic[K, V]):
    """Values by key; the least recently used leave first.

    Args:
        limit_bytes: Most memory held, by the estimates given at `get`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock = Lock()
        self._cached: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._making: dict[K, Future[V]] = {}
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget what threads of the parent were making: they will never end here."""
        self._making = {}

    @property
    def used_bytes(self) -> int:
        """Estimated memory held."""
        return self._used_bytes

    def get(self, key: K, size_bytes: int, make: Callable[[], V]) -> V:
        """Return the value of a key, made at most once at a time.

        Args:
            key: Names the value.
            size_bytes: Estimate of the memory it takes.
            make: Makes it; what it raises reaches everyone who waits.
        """
        with self._lock:
            cached = self._cached.get(key)
            if cached is not None:
                self._cached.move_to_end(key)
                return cached[0]
            waiting = self._making.get(key)
            future: Future[V] = waiting if waiting is not None else Future()
            self._making[key] = future
        return future.result() if waiting is not None else self._make(key, size_bytes, make, future)

    def _make(self, key: K, size_bytes: int, make: Callable[[], V], future: Future[V]) -> V:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._making.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            self._making.pop(key, None)
            self._keep(key, value, size_bytes)
        future.set_result(value)
        return value

    def _keep(self, key: K, value: V, size_bytes: int) -> None:
        self._cached[key] = (value, size_bytes)
        self._used_bytes += size_bytes
        while self._used_bytes > self._limit_bytes and len(self._cached) > 1:
            _, (_, dropped_bytes) = self._cached.popitem(last=False)
            self._used_bytes -= dropped_bytes
