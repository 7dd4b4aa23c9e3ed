"""Who takes part in a facade play: jobs of several ranks, forkers, collectors, readers and watchers, all through the
public names of fwstore, so that content, checkpoints and ranks are simulated too.

Invariant: what a checkpoint holds follows from its term and its step, so whoever loads one knows every bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

import fwstore
from fwstore.base.errors import AlreadyExists, Expired, Fenced, FwstoreError, NotFound
from sim.background import patient
from sim.process import Process
from sim.world import World
from support.coordinators import Board, SharedCoordinator
from support.faults import Crash
from support.oracle import same
from support.sharded import rows, shard

RUN, FORK = "run", "fork"


@contextmanager
def doors(world: World) -> Iterator[None]:
    """Let `fwstore.open` give whoever calls it the stores and the runtime of its process."""
    with ExitStack() as stack:
        for name, door in (
            ("open_store", lambda url, runtime, options: world.process().store),
            ("system_runtime", lambda limits: world.process().runtime),
        ):
            stack.enter_context(mock.patch(f"fwstore.repository.{name}", door))
        stack.enter_context(patient(world.baton))
        yield


class Channel(SharedCoordinator):
    """What a rank says and hears; a dead one says nothing."""

    def __init__(self, board: Board, rank: int, world_size: int, process: Process) -> None:
        super().__init__(board, rank, world_size)
        self._process = process

    def put(self, key: str, value: bytes) -> None:
        self._check_alive()
        super().put(key, value)

    def poll(self, key: str) -> bytes | None:
        self._check_alive()
        return super().poll(key)

    def drop(self, key: str) -> None:
        self._check_alive()
        super().drop(key)

    def _check_alive(self) -> None:
        if self._process.dead:
            raise Crash(f"{self._process.name} is dead and talks")


def content(term: int, step: int) -> dict[str, Any]:
    """What a checkpoint of a term and step holds."""
    return {
        "moved": np.arange(12, dtype=np.int32).reshape(6, 2) * (100 * term + step),
        "frozen": np.arange(5, dtype=np.float32),
        "slow": np.full(3, step // 2, np.int64),
        "term": term,
        "step": step,
    }


def part(term: int, step: int, rank: int, world_size: int) -> dict[str, Any]:
    """What one rank holds of it."""
    whole = content(term, step)
    if world_size > 1:
        whole["moved"] = shard(whole["moved"], rows(world_size), rank)
    return whole


def compare(process: Process, checkpoint: fwstore.Checkpoint) -> None:
    """Load a checkpoint; it is what was saved, or a fork of it."""
    loaded = checkpoint.load()
    if checkpoint.run == RUN and loaded["term"] != checkpoint.term:
        process.world.accuse(f"{checkpoint} was loaded as one of term {loaded['term']}")
    if not same(loaded, content(loaded["term"], checkpoint.step)):
        process.world.accuse(f"{checkpoint} was loaded and is not what was saved: {loaded}")
    process.world.tally["loaded"] += 1


def job(world: World, name: str, run: str, ranks: int, saves: int, when: float) -> list[Process]:
    """Let the ranks of a job begin."""
    board = Board()
    site = world.rng.choice(world.topology.sites)
    retains = world.rng.random() < 0.5

    def main(rank: int) -> Callable[[Process], None]:
        def rank_of_job(process: Process) -> None:
            channel = Channel(board, rank, ranks, process)
            keep = fwstore.Keep(last=world.keep_last) if retains else None
            with (
                fwstore.open("memory://") as repository,
                repository.run(run).writer(coordinator=channel, keep=keep) as writer,
            ):
                world.tally["opened"] += 1
                if writer.base is not None and process.rng.random() < 0.5:
                    compare(process, writer.base)
                _save_all(process, writer, saves)

        return rank_of_job

    return [world.spawn(f"{name}.{rank}", site, main(rank), when) for rank in range(ranks)]


def _save_all(process: Process, writer: fwstore.Writer, saves: int) -> None:
    first = 0 if writer.base is None else writer.base.step + 1
    under_way: list[fwstore.SaveHandle] = []
    try:
        for step in range(first, first + saves):
            process.pause(process.rng.expovariate(2))
            state = part(writer.term, step, writer.rank, writer.world_size)
            try:
                under_way.append(writer.save(step, state, blocking=process.rng.random() < 0.2))
            except FwstoreError as error:
                _suffer(process, error)
            process.world.tally["overlapping"] += sum(not handle.done() for handle in under_way) > 1
            if process.rng.random() < 0.5:
                _hear(process, under_way)
        _hear(process, under_way)
    except Fenced:
        process.world.tally["fenced"] += 1


def _hear(process: Process, handles: list[fwstore.SaveHandle]) -> None:
    """Wait for saves; what is acknowledged is so from now on."""
    while handles:
        try:
            checkpoint = handles.pop(0).result()
        except FwstoreError as error:
            _suffer(process, error)
        else:
            assert checkpoint is not None
            label = checkpoint.access.keys.label
            process.world.judge.acknowledge(process.store.place.name, label, checkpoint.id)
            process.world.tally["acked"] += 1


def _suffer(process: Process, error: FwstoreError) -> None:
    if isinstance(error, Fenced):
        raise error
    process.world.suffer(process, error)


def collector(process: Process) -> None:
    """Collects all runs, again and again."""
    keep = fwstore.Keep(last=process.world.keep_last)
    with fwstore.open("memory://") as repository:
        for _ in range(process.rng.choice((1, 2, 3))):
            process.pause(process.rng.expovariate(0.3))
            try:
                repository.gc(keep=keep)
            except FwstoreError as error:
                process.world.suffer(process, error)
            else:
                process.world.tally["collected"] += 1


def forker(process: Process) -> None:
    """Branches a run off."""
    with fwstore.open("memory://") as repository:
        for _ in range(4):
            process.pause(process.rng.uniform(2, 6))
            try:
                repository.run(RUN).fork(FORK)
            except NotFound:
                continue
            except AlreadyExists:
                # Another job has begun a run of that name.
                return
            process.world.tally["forked"] += 1
            return


def reader(process: Process) -> None:
    """Loads something that is on offer."""
    process.pause(process.rng.uniform(3, 9))
    with fwstore.open("memory://") as repository:
        for _ in range(2):
            found = repository.run(RUN).checkpoints()
            if found:
                try:
                    compare(process, process.rng.choice(found))
                except Expired:
                    process.world.tally["expired"] += 1


def watcher(process: Process) -> None:
    """Loads what is committed, as it comes; terms never go back."""
    newest = 0
    with fwstore.open("memory://") as repository:
        for checkpoint in repository.run(RUN).watch(poll="1s", timeout="6s"):
            if checkpoint.term < newest:
                process.world.accuse(f"a watcher of term {newest} was given {checkpoint}")
            newest = checkpoint.term
            try:
                compare(process, checkpoint)
            except NotFound:
                process.world.tally["overtaken"] += 1


def last_job(process: Process) -> None:
    """Goes on with every run when all is quiet, on one rank."""
    with fwstore.open("memory://") as repository:
        for name in {RUN: 0, **dict.fromkeys(repository.runs())} if _exists(repository) else (RUN,):
            with repository.run(name).writer() as writer:
                if writer.base is not None:
                    compare(process, writer.base)
                step = 0 if writer.base is None else writer.base.step + 1
                checkpoint = writer.save(step, content(writer.term, step)).result()
                assert checkpoint is not None
                label = checkpoint.access.keys.label
                process.world.judge.acknowledge(process.store.place.name, label, checkpoint.id)


def last_collector(process: Process) -> None:
    """Collects, loads everything on offer, and verifies."""
    world = process.world
    with fwstore.open("memory://") as repository:
        repository.gc(keep=fwstore.Keep(last=world.keep_last))
        repository.gc()
        for name in repository.runs():
            run = repository.run(name)
            offered = [*run.checkpoints(), *(c for b in run.branches() for c in b.checkpoints)]
            ledger = world.judge.ledger(process.store.place.name, run.latest().access.keys.label)
            if {checkpoint.id for checkpoint in offered} != ledger.live().keys():
                world.accuse(f"{name} offers {offered}, and should {sorted(ledger.live())}")
            for checkpoint in offered:
                compare(process, checkpoint)
        problems = repository.verify(level="data").problems
        if problems:
            world.accuse(f"verification finds {problems}")
    lost = world.judge.lost()
    if lost:
        world.accuse(f"acknowledged and lost: {lost}")
    left = world.judge.unneeded(process.store.place)
    if left:
        world.accuse(f"{len(left)} objects are garbage: {left[:3]}")


def _exists(repository: fwstore.Repository) -> bool:
    try:
        repository.runs()
    except NotFound:
        return False
    return True


def prepare(world: World) -> None:
    """Draw who takes part."""
    rng = world.rng
    for number in range(rng.choice((1, 2, 2))):
        when = 0.0 if number == 0 else rng.uniform(1, 12)
        ranks = job(world, f"job{number}", RUN, rng.choice((1, 2, 2)), rng.choice((2, 3)), when)
        if rng.random() < 0.2:
            world.kill(rng.choice(ranks), rng.uniform(0, 15), f"kill{number}")
    for other, share in ((collector, 0.8), (forker, 0.4), (reader, 0.3), (watcher, 0.3)):
        if rng.random() < share:
            world.spawn(other.__name__, rng.choice(world.topology.sites), other, 2.0)
    if rng.random() < 0.2:
        job(world, "fork", FORK, 1, 2, 9.0)


def settle(world: World) -> None:
    """Let a last job and a collection go to their ends."""
    for main in (last_job, last_collector):
        world.spawn(main.__name__.replace("_", " "), world.topology.homes[0], main)
        world.play()
