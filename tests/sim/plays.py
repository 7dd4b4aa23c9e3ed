"""Plays by seed: who takes part, the storm, the quiet after it, and the last judgement.

Invariant: a play that ends without a violation has converged: what was acknowledged is there, one history is canonical,
and no byte is left that nothing needs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from unittest import mock

from fwstore.care.gc import collect
from fwstore.log.history import branches, history, view_of
from fwstore.log.pins import unpin
from sim import actors, facade, knowing, operators, replicators
from sim.process import Process
from sim.topology import ALONE, REMOTE, THREE, TWO_AND_A_WITNESS
from sim.world import STORM_S, World
from support.faults import Crash
from support.lineages import Saver

_TOPOLOGIES = (ALONE, ALONE, ALONE, REMOTE, THREE, TWO_AND_A_WITNESS)

# A facade play takes ten times as long as a protocol play.
FACADE_EVERY = 16


def play(seed: int, only: Container[str] | None = None) -> World:
    """Play one seed to its end.

    Args:
        seed: Decides everything.
        only: Names of the faults that may strike; None lets all of them.

    Raises:
        Violation: Something did not hold.
    """
    world = prepare(seed, only)
    perform(world)
    return world


def perform(world: World) -> None:
    """Let everybody in a world play to the end.

    Raises:
        Violation: Something did not hold.
    """
    with silence(), tuned(world), facade.doors(world), knowing.doors(world):
        world.play()
        world.weather.calm = True
        try:
            (facade.settle if world.facade else settle)(world)
        except Crash:
            # What does not hold when all is over was found outside of every process.
            raise world.baton.failure or AssertionError("nobody died and nothing failed") from None


@contextmanager
def tuned(world: World) -> Iterator[None]:
    """Let a play of some dozens of records see what production does with thousands: summaries, hints, short batches."""
    rng = world.rng
    with (
        mock.patch("fwstore.log.derive.SUMMARY_EVERY", rng.choice((4, 9, 128))),
        mock.patch("fwstore.log.derive.HINT_EVERY", rng.choice((2, 5, 16))),
        mock.patch("fwstore.log.log._SPECULATE", rng.choice((2, 2, 3, 8))),
    ):
        yield


@contextmanager
def silence() -> Iterator[None]:
    """Keep production from telling people of the weather."""
    log = logging.getLogger("fwstore")
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = False


def prepare(seed: int, only: Container[str] | None = None) -> World:
    """Return the world of a seed with everybody in it."""
    if seed % FACADE_EVERY == FACADE_EVERY - 1:
        world = World(seed, (ALONE, REMOTE)[seed // FACADE_EVERY % 2], only, facade=True)
        facade.prepare(world)
        world.storm()
        return world
    topology = _TOPOLOGIES[seed % len(_TOPOLOGIES)]
    world = World(seed, topology, only)
    rng, sites = world.rng, topology.sites
    # Often a second job begins while the first one is being born.
    together = rng.random() < 0.4
    # Where there are several homes, jobs take the run from each other.
    for number in range(rng.choice((1, 2, 2, 3) if len(topology.homes) < 2 else (2, 2, 3, 4))):
        process = world.spawn(
            f"job{number}",
            rng.choice(sites),
            actors.job(rng.choice((2, 4, 6))),
            0.0 if number == 0 else rng.uniform(0, 0.5 if together else STORM_S * 0.8),
        )
        if rng.random() < 0.15:
            world.kill(process, rng.uniform(0, STORM_S), f"kill{number}")
    for number in range(rng.choice((1, 1, 2))):
        world.spawn(f"collector{number}", rng.choice(sites), actors.collector, 4.0)
    others = (actors.pinner, actors.reader, actors.watcher)
    for other in others:
        if rng.random() < 0.3:
            world.spawn(other.__name__, rng.choice(sites), other, 3.0)
    replicators.join(world)
    operators.join(world)
    world.storm()
    return world


def settle(world: World) -> None:
    """Let a last job and collections go to their ends, then hold everything against what was promised."""
    operators.settle(world)
    for home in world.homes():
        world.spawn(f"last job {home}", home, last_job)
        world.play()
    replicators.settle(world)
    for name in world.homes():
        if (name, actors.LABEL) in world.judge.ledgers:
            world.spawn(f"last collector {name}", name, last_collector)
            world.play()
    judge_all(world)


def last_job(process: Process) -> None:
    """Goes on with the run when all is quiet."""
    saver = Saver(actors.take(process))
    commit, _ = saver.write(1)
    saver.parent = saver.term.commit(commit)
    process.world.judge.acknowledge(
        process.store.place.name, saver.term.keys.label, saver.parent.id
    )


def last_collector(process: Process) -> None:
    """Collects when all is quiet; pins of processes that died are lifted by hand."""
    log = actors.open_log(process)
    process.world.judge.held.clear()
    for pin in tuple(log.fold.pins.values()):
        if not pin.base_of:
            unpin(log, pin.pin)
    collect(log, actors.options(process))


def judge_all(world: World) -> None:
    """Compare what production says of every log with the judge's own account."""
    world.spawn("last judge", world.homes()[0], _judge_all)
    world.play()


def _judge_all(process: Process) -> None:
    world = process.world
    lost = world.judge.lost()
    if lost:
        world.accuse(f"acknowledged and lost: {lost}")
    for name, place in world.places.items():
        if (name, actors.LABEL) not in world.judge.ledgers or name in world.judge.retired:
            continue
        process.site = name
        ledger = world.judge.ledger(name, actors.LABEL)
        fold = actors.open_log(process).fold
        told = {entry.id for entry in fold.live()}
        if told != ledger.live().keys():
            world.accuse(f"{name} offers {sorted(told)}, and should {sorted(ledger.live())}")
        if (fold.fence, set(fold.opens)) != (ledger.fence, set(ledger.opens)):
            world.accuse(f"{name} tells of other terms than its log")
        chain = [entry.id for entry in history(fold)]
        own = [snapshot for snapshot in ledger.chain() if snapshot in told]
        if chain[: len(own)] != own:
            world.accuse(f"{name} takes {chain} for canonical, and {own} is")
        beside = {
            entry.id for branch in branches(view_of({"": fold})) for entry in branch.snapshots
        }
        if told != {*chain, *beside}:
            world.accuse(f"{sorted(told - {*chain, *beside})} are neither canonical nor tails")
        left = world.judge.unneeded(place)
        if left:
            world.accuse(f"{len(left)} objects at {name} are garbage: {left[:3]}")
