"""Checkpoints of one site as readers at another one see them, before anything was replicated."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import fwstore
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.content.footers import FooterCache
from fwstore.content.read import ContentReader
from fwstore.format.lineage import Lineage
from fwstore.log.lineage import birth, claim_name, find
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.copy import Supply
from fwstore.wan.once import OncePerSite
from fwstore.wan.pull import Offer, Puller
from fwstore.wan.through import Bringer, ThroughStore
from support.lineages import SITE, fresh_log, make_runtime
from support.processes import LIMITS, opened
from support.replicas import THIRD

STATE = {f"w{n}": np.random.default_rng(n).random(1000, np.float32) for n in range(4)}
_seeds = itertools.count(9000)


def saved(store: Store, *steps: int) -> Store:
    """Save steps of a run whose checkpoints have several packs, of which some are shared; return the store."""
    with opened(store, inline_runtime()) as repository, repository.run("run").writer() as writer:
        for step in steps:
            writer.save(step, {**STATE, "step": np.full(1000, step, np.float32)}).result()
    return store


def inline_runtime() -> Runtime:
    """The runtime of a new process of one thread."""
    return replace(make_runtime(next(_seeds)), limits=LIMITS)


def known(far: Store, near: Store) -> Lineage:
    """Bring a lineage, but none of its checkpoints, to a site."""
    lineage = find(near, "run")
    assert lineage is not None
    if find(far, "run") is None:
        claim_name(far, "run", make_runtime())
        birth(far, lineage, make_runtime())
    return lineage


def through(
    far: Store, *sources: Store, step: int, runtime: Runtime | None = None, direct: bool = False
) -> Checkpoint:
    """A checkpoint of the sources as a new process at a site reads it.

    Args:
        far: The store of that site.
        sources: Of the sites that have it, the nearest first.
        step: Its step.
        runtime: Of the process.
        direct: Whether it may also be read without being kept.
    """
    lineage = known(far, sources[0])
    runtime = runtime or inline_runtime()
    repository = opened(far, runtime)
    access = repository.access(lineage.name, lineage.generation, lineage.lineage)
    entry = next(e for e in fresh_log(sources[0]).fold.live() if e.step == step)
    bringer = Bringer(
        Puller(access.log, runtime, access.content_hash, look_here=True),
        lambda snapshot: offers(sources, snapshot),
        OncePerSite(far, runtime),
        runtime,
    )
    stores = (ThroughStore(far, bringer), *(sources if direct else ()))
    origin = replace(access.origin, stores=stores)
    footers = FooterCache(origin)
    reader = ContentReader(origin, footers, repository.pool)
    return Checkpoint(replace(access, origin=origin, footers=footers, reader=reader), entry)


def offers(sources: Sequence[Store], snapshot: str) -> list[Offer]:
    """Who of some sites has a snapshot."""
    found = []
    for name, uuid, store in zip(("near", "third"), (SITE, THIRD), sources, strict=False):
        inner = getattr(store, "inner", store)
        log = fresh_log(inner)
        entry = {entry.id: entry for entry in log.fold.live()}.get(snapshot)
        if entry is not None:
            found.append(Offer(uuid, Supply(name, store), log, entry))
    return found


def is_right(checkpoint: fwstore.Checkpoint) -> bool:
    """Load a checkpoint and compare it with what was saved."""
    loaded = checkpoint.load()
    expected = {**STATE, "step": np.full(1000, checkpoint.step, np.float32)}
    return loaded.keys() == expected.keys() and all(
        np.array_equal(loaded[name], value) for name, value in expected.items()
    )
