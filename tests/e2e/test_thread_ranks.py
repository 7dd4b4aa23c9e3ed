"""Jobs of several ranks that save without waiting, fail, skip, change and restart, by seed.

What is checked: all ranks learn the same of every save, and every checkpoint is what the ranks held when they
called `save`, though they went on changing it in place at once.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import InternalError, Shard
from support.coordinators import ThreadJob
from support.faults import FaultyStore, Operation
from support.held import HeldArray
from support.sharded import rows, shard

JOBS, SAVES = 4, 7
SHAPES = [(12, 40), (7, 5), (1, 30), (64, 700), (3, 0)]


@dataclass
class Call:
    """One call of save, the same on all ranks but for what befalls one of them."""

    step: int
    changed: set[str]
    names: list[str]
    victim: int
    fault: str
    blocking: bool
    staging: Any
    wait: bool
    skip: bool
    lone: bool


@dataclass
class Rank:
    """The memory of one rank: whole arrays of its own, of which it may save parts."""

    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def become(self, call: Call) -> None:
        """Change in place what this step changes."""
        for name in call.names:
            if name not in self.arrays:
                self.arrays[name] = content(name, call.step)
            elif name in call.changed:
                self.arrays[name][...] = content(name, call.step)


def content(name: str, step: int) -> np.ndarray[Any, Any]:
    shape = SHAPES[int(name[1:]) % len(SHAPES)]
    return np.random.default_rng([int(name[1:]), step]).random(shape)


def plan_calls(rng: random.Random, first: int, world: int) -> list[Call]:
    names = [f"t{n}" for n in range(8)]
    calls = []
    for step in range(first, first + SAVES):
        if rng.random() < 0.2:
            names = sorted({*names, f"t{rng.randrange(8, 12)}"})
        if rng.random() < 0.1:
            names = [name for name in names if name != "t3"]
        calls.append(
            Call(
                step=step,
                changed={name for name in names if rng.random() < 0.3},
                names=list(names),
                victim=rng.randrange(world),
                fault=rng.choice(["", "", "", "", "store", "value", "copy"]),
                blocking=rng.random() < 0.2,
                staging=rng.choice(["eager", "lazy", lambda value: isinstance(value, Shard)]),
                wait=rng.random() < 0.3,
                skip=rng.random() < 0.2,
                lone=rng.random() < 0.2,
            )
        )
    return calls


def state_of(call: Call, rank: int, world: int, memory: Rank) -> dict[str, Any]:
    """Even tensors are divided among the ranks, odd ones are on all; some steps one rank has one more."""
    state: dict[str, Any] = {"step": call.step}
    for name in call.names:
        array = memory.arrays[name]
        state[name] = shard(array, rows(world), rank) if int(name[1:]) % 2 else array
    if call.lone and rank == call.victim:
        state["lone"] = np.full(3, float(call.step))
    if call.fault == "value" and rank == call.victim:
        state["odd"] = {1.5: np.ones(1)}
    if call.fault == "copy" and rank == call.victim:
        state["odd"] = HeldArray(np.ones(3), InternalError("the device is lost"), held=False).shard
    return state


def run_rank(job: ThreadJob, calls: list[Call], broken: list[bool], rank: int) -> list[Any]:
    """Make all calls on one rank; return what came of each."""
    memory, world = Rank(), len(job.ranks)
    found: list[Any] = []
    for call in calls:
        memory.become(call)
        broken[rank] = call.fault == "store" and rank == call.victim
        try:
            handle = job.writers[rank].save(
                call.step,
                state_of(call, rank, world, memory),
                blocking=call.blocking,
                staging=call.staging,
                on_busy="skip" if call.skip and rank == call.victim else "wait",
            )
            with suppress(InternalError):
                handle.wait_staged()
            if call.wait and handle.exception() is None:
                handle._future.exception(60)
        except fwstore.FwstoreError as error:
            found.append(error)
        else:
            found.append(handle)
    job.writers[rank].wait()
    return [f if isinstance(f, Exception) else f.exception() or f.result() for f in found]


def check_saved(url: str, call: Call, checkpoint: fwstore.Checkpoint, history: list[Call]) -> None:
    """Compare a checkpoint with what the ranks held at its call."""
    model = Rank()
    for earlier in history:
        model.become(earlier)
    with fwstore.open(url) as repository:
        found = repository.run("run")[call.step].load()
    assert checkpoint.step == call.step == found.pop("step")
    lone = found.pop("lone", None)
    assert (lone is not None) == call.lone
    assert lone is None or (lone == call.step).all()
    assert found.keys() == set(call.names)
    for name, array in found.items():
        assert np.array_equal(array, model.arrays[name]), (call.step, name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ranks_agree_and_checkpoints_are_what_was_held(url: str, seed: int, soak: int) -> None:
    for round_number in range(soak):
        rng = random.Random(f"{seed}/{round_number}")
        address = f"{url}/{round_number}"
        for number in range(JOBS):
            world = rng.randrange(1, 5)
            calls = plan_calls(rng, number * SAVES, world)
            limits = fwstore.Limits(threads=2, commit_timeout_s=20, request_timeout_s=0.2)
            with ThreadJob(address, world, limits=limits) as job:
                broken = [False] * world
                for rank in job.ranks:
                    break_packs(job, rank, broken)
                results = job.each_rank(partial(run_rank, job, calls, broken))
            check_job(address, calls, results)


def break_packs(job: ThreadJob, rank: int, broken: list[bool]) -> None:
    """Let packs of a rank fail while its flag is up."""

    def plan(operation: Operation) -> Any:
        return "fail" if broken[rank] and operation.key.startswith("packs/") else None

    access = job.writers[rank]._engine.session.access
    object.__setattr__(access.origin, "stores", (FaultyStore(access.store, plan),))


def check_job(url: str, calls: list[Call], results: list[list[Any]]) -> None:
    saved = 0
    for number, call in enumerate(calls):
        outcomes = [of_rank[number] for of_rank in results]
        committed = {o.id if isinstance(o, fwstore.Checkpoint) else None for o in outcomes}
        assert len(committed) == 1, (call, outcomes)
        if isinstance(outcomes[0], fwstore.Checkpoint):
            saved += 1
            check_saved(url, call, outcomes[0], calls[: number + 1])
    assert saved > 0 or any(call.fault for call in calls)
