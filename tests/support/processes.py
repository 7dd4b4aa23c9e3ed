"""Processes of a test: each a repository of its own over a store that outlives them all.

Invariant: a process runs in the thread of the test, with identifiers from its seed and time that passes only
in sleeps, so the same process on the same bytes makes the same store operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import fwstore
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.lineages import make_runtime


@contextmanager
def process(
    store: Store, seed: int, limits: fwstore.Limits | None = None
) -> Iterator[fwstore.Repository]:
    """Open a repository in a store, as a process does that has just started.

    Args:
        store: The store, or this process's faulty handle on it.
        seed: Of its identifiers; two processes never share one.
        limits: Of the repository.
    """
    runtime = replace(make_runtime(seed), limits=limits or fwstore.Limits())
    with mock.patch.multiple(
        "fwstore.repository",
        open_store=lambda url, runtime, options: store,
        system_runtime=lambda limits: runtime,
    ):
        yield fwstore.open("memory://")


def copied(store: MemoryStore) -> MemoryStore:
    """Return a store with the same objects."""
    copy = MemoryStore(make_runtime())
    copy._objects.update(store._objects)
    return copy
