"""The replicators of a play with several sites, and what they owe when all is quiet.

Invariant: what moves bytes here is production; the judge compares their ends by the stored bytes alone.
"""

from __future__ import annotations

import random

from fwstore.base.errors import FwstoreError
from fwstore.codec.hashing import ContentHash
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator
from fwstore.wan.reports import ReplicationReport
from sim.actors import LABEL
from sim.process import Process
from sim.world import World

_ROUNDS_MAX = 6


def worker(process: Process) -> Replicator:
    """What copies to the site of a process, as a new worker knows it."""
    sites, homes = process.sites(), process.world.homes()
    own = process.store.place.name
    retired = process.world.judge.retired
    return Replicator(
        Destination(
            own=sites[own],
            sources=tuple(Source(sites[name]) for name in homes if name != own),
            runtime=process.runtime,
            content_hash=ContentHash(),
            retired=lambda uuid: uuid in (gone for gone, _ in retired.values()),
        )
    )


def replicator(process: Process) -> None:
    """Replicates again and again, each time as a new worker or going on with what it knows."""
    known: Replicator | None = None
    for _ in range(process.rng.choice((2, 4, 6))):
        process.pause(process.rng.expovariate(0.5))
        if known is None or process.rng.random() < 0.3:
            known = worker(process)
        try:
            report = known.once()
        except FwstoreError as error:
            process.world.suffer(process, error)
        else:
            _count(process, report)


def _count(process: Process, report: ReplicationReport) -> None:
    tally = process.world.tally
    tally["copied"] += len(report.copied)
    tally["withdrawn"] += report.withdrawn
    tally["fenced late"] += len(report.fenced)
    for trouble in report.troubles:
        process.world.suffer(process, trouble.error)


def last_replicator(process: Process) -> None:
    """Replicates when all is quiet, until nothing is left to be copied."""
    known = worker(process)
    for _ in range(_ROUNDS_MAX):
        report = known.once()
        _count(process, report)
        if report.troubles:
            error = report.troubles[0].error
            process.world.accuse(f"{process.name} cannot go on although all is quiet: {error!r}")
        if not report.copied and not report.withdrawn:
            return
    process.world.accuse(f"{process.name} finds something new for ever although all is quiet")


def join(world: World) -> None:
    """Let replicators take part in a play of several sites."""
    rng = random.Random(f"{world.seed} replicators")
    homes = world.topology.homes
    if len(homes) < 2:
        return
    for number in range(rng.choice((1, 2, len(homes), len(homes) + 1))):
        name = f"replicator{number}"
        process = world.spawn(name, rng.choice(homes), replicator, rng.uniform(0, 4))
        if rng.random() < 0.2:
            world.kill(process, rng.uniform(0, 15), f"kill {name}")


def settle(world: World) -> None:
    """Let every site fetch what it lacks, and see to it that all of it came."""
    homes = world.homes()
    if len(homes) < 2:
        return
    # Twice: what one site has published last the others may fetch from it.
    for turn in range(2):
        for home in homes:
            world.spawn(f"last replicator {home} {turn}", home, last_replicator)
            world.play()
    for home in homes:
        for other in homes:
            _compare(world, home, other)


def _compare(world: World, home: str, other: str) -> None:
    """Refuse what is on offer at one site and never came to the other, or came with other bytes."""
    here, there = world.judge.ledger(home, LABEL), world.judge.ledger(other, LABEL)
    for snapshot, saved in here.live().items():
        if snapshot not in there.saved:
            world.accuse(f"{snapshot} is at {home} and never came to {other}")
        if snapshot not in there.live():
            continue
        for key in saved.keys & there.saved[snapshot].keys:
            # Root and pack table may name packs otherwise.
            renamed = key.endswith("/root") or "/packs-" in key
            if not renamed and _content(world, home, key) != _content(world, other, key):
                world.accuse(f"{key} holds other bytes at {other} than at {home}")


def _content(world: World, site: str, key: str) -> bytes:
    return world.places[site]._objects[key].content
