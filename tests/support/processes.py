"""Processes of a test: each a repository of its own over a store that outlives them all.

Invariant: a process runs in the thread of the test, with identifiers from its seed and time that passes only
in sleeps, so the same process on the same bytes makes the same store operations.
"""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import fwstore
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.lineages import make_runtime

# Several packs for each save of a small state.
LIMITS = fwstore.Limits(pack_bytes=6_000)


def process(store: Store, seed: int) -> fwstore.Repository:
    """Open a repository in a store, as a process does that has just started.

    Args:
        store: The store, or this process's faulty handle on it.
        seed: Of its identifiers; two processes never share one.
    """
    return opened(store, replace(make_runtime(seed), limits=LIMITS))


def opened(store: Store, runtime: Runtime) -> fwstore.Repository:
    """Open a repository that has a store and a runtime of the caller's making."""
    with mock.patch.multiple(
        "fwstore.repository",
        open_store=lambda url, runtime, options: store,
        system_runtime=lambda limits: runtime,
    ):
        return fwstore.open("memory://")


def copied(store: MemoryStore) -> MemoryStore:
    """Return a store with the same objects."""
    copy = MemoryStore(make_runtime())
    copy._objects.update(store._objects)
    return copy


def contents(store: Store) -> frozenset[tuple[str, bytes]]:
    """Return all that a small store holds."""
    found = [(info.key, info.size) for info in store.list("")]
    return frozenset((key, store.get(key, limit_bytes=size)) for key, size in found)
