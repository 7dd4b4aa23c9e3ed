"""The power fails during saves, retention, forks and collections: the next job goes on from every disk it may leave.

Every acknowledged checkpoint loads bit by bit, any other is there whole or not at all, the next save succeeds,
and a collection leaves nothing that no checkpoint needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import fwstore
from fwstore.store.directory import DirectoryStore
from support.aftermath import Act, Place, Promise, checkpoints, judge, save
from support.figures import Figures
from support.oracle import make_state
from support.outage import machine_on, remains, sweep
from support.powerloss import Event
from support.processes import process

pytestmark = pytest.mark.slow

Acknowledge = Callable[[object], None]
_seeds = itertools.count(5000)


@dataclass(frozen=True)
class Scenario:
    """What processes do, and what the last of them may change, during which the power fails.

    Attributes:
        act: Done by the last one; it tells what was acknowledged.
        prepare: Done before.
        adds: The checkpoints that may appear.
        removes: The checkpoints that may go.
    """

    act: Callable[[fwstore.Repository, Acknowledge], None]
    prepare: tuple[Act, ...] = ()
    adds: frozenset[Place] = frozenset()
    removes: frozenset[Place] = frozenset()


def save_steps(
    repository: fwstore.Repository,
    acknowledge: Acknowledge,
    *,
    steps: Sequence[int],
    keep: fwstore.Keep | None = None,
) -> None:
    with repository.run("run").writer(keep=keep) as writer:
        for step in steps:
            assert writer.save(step, make_state(step)).result()
            acknowledge(("run", step))


def collect(repository: fwstore.Repository, acknowledge: Acknowledge) -> None:
    repository.gc(keep=fwstore.Keep(last=1))


def fork(repository: fwstore.Repository, acknowledge: Acknowledge) -> None:
    repository.run("run").fork("fork")
    acknowledge(("fork", 2))


def steps(*numbers: int) -> frozenset[Place]:
    return frozenset(("run", number) for number in numbers)


FIRST = Scenario(partial(save_steps, steps=(0, 1)), adds=steps(0, 1))
THREE = (save("run", 0, 1, 2),)
SCENARIOS = {
    "the first saves": FIRST,
    "a save with retention": Scenario(
        partial(save_steps, steps=(3,), keep=fwstore.Keep(last=2)), THREE, steps(3), steps(0, 1)
    ),
    "a collection": Scenario(collect, THREE, removes=steps(0, 1)),
    "a fork": Scenario(fork, THREE, adds=frozenset({("fork", 2)})),
}


def traced(disk: Path, scenario: Scenario) -> tuple[list[Event], int]:
    """Return the calls that a scenario makes on a new disk, and how many of them its preparation."""
    with machine_on(disk) as machine:
        for act in scenario.prepare:
            with process(machine.process(), next(_seeds)) as repository:
                act(repository)
        prepared = len(machine.recorder.events)
        with process(machine.process(), next(_seeds)) as repository:
            scenario.act(repository, machine.recorder.note)
    return machine.recorder.events, prepared


def check(
    scenario: Scenario, before: frozenset[Place], store: DirectoryStore, notes: Sequence[object]
) -> Promise:
    """Hold what is left against what was acknowledged."""
    acknowledged = frozenset(place for place in scenario.adds if place in notes)
    kept = (before | acknowledged) - scenario.removes
    promise = Promise(kept, before | scenario.adds, frozenset(), save("run"))
    assert promise.kept <= checkpoints(store) <= promise.possible
    return promise


def check_and_go_on(
    scenario: Scenario, before: frozenset[Place], store: DirectoryStore, notes: Sequence[object]
) -> None:
    """Do the same, save more steps, collect garbage."""
    promise = check(scenario, before, store, notes)
    judge(store, promise, collect_first=len(notes) % 2 == 0)
    assert store.find_temporary(before=0) == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_next_job_goes_on_after_a_power_loss(
    tmp_path: Path, name: str, soak: int, figures: Figures
) -> None:
    scenario = SCENARIOS[name]
    events, prepared = traced(tmp_path / "disk", scenario)
    before = steps(0, 1, 2) if scenario.prepare else steps()
    left = list(remains(events, begin=prepared, exhaustive=2 * soak, sampled=2 * soak))
    quick = left if soak > 1 else left[::3]
    disks = sweep(tmp_path, quick, partial(check, scenario, before))
    assert disks > 15
    # Going on takes much longer than looking.
    some = left[:: max(1, len(left) // (12 * soak))]
    assert sweep(tmp_path, some, partial(check_and_go_on, scenario, before)) >= 12
    figures.note("power loss", {"disks": disks, "moments": len(events) + 1 - prepared})
