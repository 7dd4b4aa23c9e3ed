"""Sites beside each other on memory stores, and replicators between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from fwstore.log.fold import uses_of
from fwstore.log.log import Log
from fwstore.log.site import Site
from fwstore.plan.replication import Everything, Policy
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator
from fwstore.wan.reports import ReplicationReport
from support.lineages import SITE, fresh_log, make_runtime, missing_of_roots, read_packs

FAR, THIRD = "6" * 32, "7" * 32
_seeds = itertools.count(5000)


def site(store: Store, uuid: str = SITE, name: str = "near") -> Site:
    """A store as a site."""
    return Site(uuid, name, store)


def replicator(
    own: Store,
    *sources: Store,
    runtime: Runtime | None = None,
    policy: Callable[[str], Policy | None] = lambda _: Everything(),
) -> Replicator:
    """What copies to the far site, as a new process."""
    named = [(SITE, "near"), (THIRD, "third")]
    return Replicator(
        Destination(
            own=site(own, FAR, "far"),
            sources=tuple(
                Source(site(store, *name)) for store, name in zip(sources, named, strict=False)
            ),
            runtime=runtime or make_runtime(next(_seeds)),
            policy=policy,
        )
    )


def replicate(own: Store, *sources: Store) -> ReplicationReport:
    """One round of a new process."""
    return replicator(own, *sources).once()


def steps(report: ReplicationReport) -> list[int]:
    """What a round brought, in order."""
    return [copied.step for copied in report.copied]


def published(store: Store) -> list[int]:
    """The steps on offer at a site, by their records."""
    return [entry.step for entry in fresh_log(store).fold.live()]


def check_replica(store: Store) -> Log:
    """Hold what every log of a site must keep at all times."""
    log = fresh_log(store)
    assert missing_of_roots(log) == []
    return log


def differing(one: Store, other: Store, snapshots: Sequence[str]) -> list[str]:
    """Every object of some snapshots that differs between two sites where names are the same."""
    log = fresh_log(one)
    keys = []
    for name in snapshots:
        entry = log.fold.entries[name]
        keys += [log.keys.root(name), log.keys.leaf(name, 0), log.keys.pack_table(name, 0)]
        keys += [key for key, _ in read_packs(one, log.keys, uses_of(entry))]
    return [
        key
        for key in keys
        if one.get(key, limit_bytes=1 << 30) != other.get(key, limit_bytes=1 << 30)
    ]
