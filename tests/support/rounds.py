"""Counting serial round trips: what a caller far from the store waits for.

Invariant: requests that one `map` makes side by side cost as many rounds as the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from typing_extensions import Buffer

from fwstore.sched import InlineScheduler
from fwstore.store.base import Mode, ObjectInfo
from fwstore.store.memory import MemoryStore
from support.lineages import make_runtime

T = TypeVar("T")
R = TypeVar("R")


class RoundScheduler(InlineScheduler):
    """Runs in one thread and counts as if it had as many as it needs."""

    def __init__(self) -> None:
        self.rounds = 0
        self.requests = 0

    def request(self) -> None:
        """Count one request."""
        self.rounds += 1
        self.requests += 1

    def map(self, function: Callable[[T], R], values: Iterable[T], *, limit: int = 0) -> list[R]:
        before = longest = self.rounds
        results = []
        for value in values:
            self.rounds = before
            results.append(function(value))
            longest = max(longest, self.rounds)
        self.rounds = longest
        return results

    def submit(self, function: Callable[..., R], /, *args: object) -> Future[R]:
        raise AssertionError("the log waits for all it begins, so it uses map")


class RoundStore(MemoryStore):
    """A memory store whose requests are counted by a scheduler."""

    def __init__(self, scheduler: RoundScheduler, inner: MemoryStore) -> None:
        super().__init__(make_runtime())
        self._objects = inner._objects
        self._scheduler = scheduler

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        self._scheduler.request()
        super().put(key, buffers, mode=mode, write_id=write_id)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        self._scheduler.request()
        return super().get(key, limit_bytes=limit_bytes)

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        self._scheduler.request()
        return super().list(prefix, start_after=start_after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        self._scheduler.request()
        super().delete(keys)
