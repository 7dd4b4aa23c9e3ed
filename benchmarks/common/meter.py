"""Requests and rounds of a store, counted: what a caller far from it would wait for.

Invariant: what one `map` begins side by side costs as many rounds as the longest of its calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

import fwstore
from fwstore.sched import InlineScheduler
from fwstore.store.base import Store

T = TypeVar("T")
R = TypeVar("R")

# What a store does over the network.
_VERBS = ("put", "get", "get_range", "read_into", "head", "list", "delete", "upload")


class Meter(InlineScheduler):
    """Runs everything in one thread, and counts as if it had as many as it needs.

    Attributes:
        rounds: Requests of which each waited for the one before.
        requests: By kind.
        bytes: Moved, in both directions.
        puts_from: The rounds before the first object was written; negative while there is none.
        lists_after: How often the store was listed from then on.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.rounds = self.bytes = self.lists_after = 0
        self.puts_from = -1
        self.requests: Counter[str] = Counter()

    def map(self, function: Callable[[T], R], values: Iterable[T], *, limit: int = 0) -> list[R]:
        """Call one after another, and count as if side by side."""
        before = longest = self.rounds
        results = []
        for value in values:
            self.rounds = before
            results.append(function(value))
            longest = max(longest, self.rounds)
        self.rounds = longest
        return results

    def request(self, name: str) -> None:
        """Count a request."""
        if name == "put" and self.puts_from < 0:
            self.puts_from = self.rounds
        self.lists_after += name == "list" and self.puts_from >= 0
        self.rounds += 1
        self.requests[name] += 1


class _MeteredStore:
    """Passes every call on and counts it."""

    def __init__(self, inner: Any, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._counted(name, found) if name in _VERBS else found

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self._meter.request(name)
            result = call(*args, **options)
            moved = [result] if isinstance(result, bytes) else args[1] if name == "put" else []
            self._meter.bytes += sum(len(part) for part in moved)
            return result

        return counted


def metered(store: Store, meter: Meter) -> Store:
    """Return a store whose requests are counted."""
    counted: Any = _MeteredStore(store, meter)
    return cast("Store", counted)


def open_metered(url: str, meter: Meter) -> fwstore.Repository:
    """Open a repository all of whose requests are counted from now on."""
    repository = fwstore.open(url)
    repository.runtime = replace(repository.runtime, scheduler=meter)
    repository.store = metered(repository.store, meter)
    return repository
