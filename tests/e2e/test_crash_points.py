"""A process dies at every operation it asks of the store: before it, in its middle, and right after it.

Every scenario is run once undisturbed to count its operations, and then once per operation and way to die,
each time on a fresh copy of the same bytes. What a death leaves is judged by new processes: whatever was
acknowledged loads bit by bit, what was under way is there whole or not at all, the next job goes on, and
garbage collection leaves nothing but what is needed.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import fwstore
from fwstore.checkpoint.adapter import NumpyAdapter
from fwstore.store.base import Store
from fwstore.store.directory import DirectoryStore
from support.aftermath import Act, Place, Promise, checkpoints, judge, run, save
from support.faults import WRITES, Crash, Fault, FaultyStore, Operation, When, crash_at, fault_at
from support.figures import Figures
from support.lineages import make_runtime, make_store
from support.oracle import make_state
from support.processes import contents, copied, process

pytestmark = pytest.mark.slow

WHENS: tuple[When, ...] = ("before", "during", "after")
FAULTS: tuple[Fault, ...] = ("lose", "fail", "late")
CHANGES = WRITES | {"begin", "write"}
KEEP = fwstore.Keep(last=2)
S = TypeVar("S", bound=Store)


@dataclass(frozen=True)
class Scenario:
    """What a process does that will be disturbed, and what that may change.

    Attributes:
        prepare: Done before by processes that live, each acknowledged.
        act: Done by the process that is disturbed.
        adds: The checkpoint that may appear.
        removes: The checkpoints that may go.
        dead: Done after `prepare` by a process that dies before its record is written.
        again: Done by the process that comes next; by default the same as `act`.
    """

    prepare: tuple[Act, ...]
    act: Act
    adds: Place | None = None
    removes: frozenset[Place] = frozenset()
    dead: Act | None = None
    again: Act | None = None

    def promise(self, before: set[Place]) -> Promise:
        """Return what holds after `act`, however it ended."""
        adds = frozenset() if self.adds is None else frozenset({self.adds})
        kept, possible = frozenset(before - self.removes), frozenset(before | adds)
        return Promise(kept, possible, adds, self.again or self.act)


def save_in_phases(repository: fwstore.Repository) -> None:
    """Replace a step that exists, in the three phases of the door for orchestrators."""
    run = repository.run("run")
    tensors: dict[fwstore.TensorPath, fwstore.Shard] = {}
    skeleton = without_tensors(make_state(1), (), tensors)
    ticket = run.begin_save(1)
    run.commit_save(ticket, [run.write_part(ticket, tensors, rank=0)], skeleton)


def without_tensors(
    value: Any, path: fwstore.TensorPath, tensors: dict[fwstore.TensorPath, fwstore.Shard]
) -> Any:
    """Return a state with slots where its arrays stand; collect the arrays."""
    if isinstance(value, dict):
        return {key: without_tensors(v, (*path, key), tensors) for key, v in value.items()}
    if isinstance(value, list):
        return [without_tensors(v, (*path, i), tensors) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        tensors[path] = NumpyAdapter().describe(value)
        return fwstore.TensorSlot("numpy")
    return value


def fork(repository: fwstore.Repository) -> None:
    """Branch a run off, unless that is done."""
    if repository.run("fork").latest(default=None) is None:
        repository.run("run").fork("fork")


def delete(run: str) -> Act:
    """Delete a run and free its bytes, unless that is done."""

    def act(repository: fwstore.Repository) -> None:
        if repository.run(run).exists():
            repository.run(run).delete()
        repository.gc()

    return act


def places(run: str, *steps: int) -> frozenset[Place]:
    return frozenset((run, step) for step in steps)


SCENARIOS = {
    "the first save": Scenario((), save("run"), adds=("run", 0)),
    "a resumed save": Scenario((save("run", 0, 1),), save("run"), adds=("run", 2)),
    "a save with retention": Scenario(
        (save("run", 0, 1, 2),),
        save("run", keep=KEEP),
        adds=("run", 3),
        removes=places("run", 0, 1),
        again=save("run"),
    ),
    "a save in three phases": Scenario((save("run", 0, 1),), save_in_phases),
    "a fork": Scenario((save("run", 0, 1),), fork, adds=("fork", 1)),
    "a collection": Scenario(
        (save("run", 0, 1, 2, 3),),
        lambda repository: repository.gc(keep=KEEP),
        removes=places("run", 0, 1),
        dead=save("run", 4),
    ),
    "a collection of a fork": Scenario(
        (
            *(save("run", 0, 1), fork, save("run", 2), save("run", 3)),
            *(save("fork", 2, 3), save("fork", 4)),
        ),
        lambda repository: repository.gc(keep=fwstore.Keep(last=1)),
        removes=places("run", 0, 1) | places("fork", 1, 2),
    ),
    "a deletion": Scenario((save("run", 0, 1),), delete("run"), removes=places("run", 0, 1)),
    "a deletion of a fork": Scenario(
        (save("run", 0), fork), delete("fork"), removes=places("fork", 0)
    ),
}


def die(store: FaultyStore, act: Act) -> None:
    """Do something in a process that may die, always with the same identifiers."""
    with suppress(Crash), process(store, 7) as repository:
        act(repository)
    store.kill()


def prepared(scenario: Scenario, store: Store) -> set[Place]:
    """Bring a store into the state in which a scenario begins; return what was acknowledged."""
    for act in scenario.prepare:
        run(store, act)
    if scenario.dead is not None:
        # The manifest is written, the record is not.
        die(FaultyStore(store, die_behind_the_root), scenario.dead)
    return checkpoints(store)


def die_behind_the_root(operation: Operation) -> Fault | None:
    return "crash_after" if operation.writes and operation.key.endswith("/root") else None


def enumerate_deaths(
    scenario: Scenario, make: Callable[[str], S], counted: frozenset[str] | None = None
) -> Iterator[tuple[str, S]]:
    """Yield what every death leaves, as a store that `make` gives for a label."""
    whole = FaultyStore(make("whole"), counted=counted)
    die(whole, scenario.act)
    for operation, when in itertools.product(whole.operations, WHENS):
        label = f"{when} {operation.number} of {len(whole.operations)}"
        inner = make(label)
        dying = FaultyStore(inner, crash_at(operation.number, when), counted=counted)
        die(dying, scenario.act)
        assert dying.operations == whole.operations[: operation.number], label
        yield f"{label}: {operation.name} {operation.key}", inner


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_process_dies_at_every_operation(name: str, figures: Figures) -> None:
    scenario = SCENARIOS[name]
    origin = make_store()
    promise = scenario.promise(prepared(scenario, origin))
    labels: list[str] = []
    judged: set[frozenset[tuple[str, bytes]]] = set()
    for label, store in enumerate_deaths(scenario, lambda _: copied(origin)):
        labels.append(label)
        # Deaths that leave the same bytes, as around every reading, leave the same future.
        left = contents(store)
        if left in judged:
            continue
        judged.add(left)
        for collect_first in (False, True):
            try:
                judge(copied(store), promise, collect_first=collect_first)
            except (AssertionError, fwstore.FwstoreError) as error:
                raise AssertionError(f"dead {label}, collected first: {collect_first}") from error
    assert len(labels) == len(set(labels)) > 100
    assert len(judged) > 5
    note(figures, scenario, copied(origin), len(labels))


def note(
    figures: Figures,
    scenario: Scenario,
    store: Store,
    deaths: int,
    counted: frozenset[str] | None = None,
) -> None:
    """Keep how many points there are, as one more undisturbed run tells, and at how many somebody died."""
    whole = FaultyStore(store, counted=counted)
    die(whole, scenario.act)
    total = len(WHENS) * len(whole.operations)
    assert deaths == total
    figures.note("crash points", {"covered": deaths, "total": total})


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_answer_is_lost_at_every_write(name: str, figures: Figures) -> None:
    """The process lives: what it does succeeds or fails as a whole, and it can do it again itself."""
    scenario = SCENARIOS[name]
    origin = make_store()
    promise = scenario.promise(prepared(scenario, origin))
    whole = FaultyStore(copied(origin), counted=WRITES)
    die(whole, scenario.act)
    for operation, fault in itertools.product(whole.operations, FAULTS):
        inner = copied(origin)
        shaky = FaultyStore(inner, fault_at(operation.number, fault), counted=WRITES)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "retention of")
                live_on(shaky, scenario)
            shaky.land()
            judge(inner, promise, collect_first=False)
        except (AssertionError, fwstore.FwstoreError) as error:
            raise AssertionError(f"{fault} {operation}") from error
    answers = len(FAULTS) * len(whole.operations)
    figures.note("lost answers", {"covered": answers, "total": answers})


def live_on(store: FaultyStore, scenario: Scenario) -> None:
    with process(store, 7) as repository:
        try:
            scenario.act(repository)
        except fwstore.Unavailable:
            store.reset()
            (scenario.again or scenario.act)(repository)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_writer_goes_on_after_a_save_that_failed(fault: Fault) -> None:
    scenario = replace(SCENARIOS["a resumed save"], adds=None)
    origin = make_store()
    before = prepared(scenario, origin)
    for number in itertools.count(1):
        inner = copied(origin)
        shaky = FaultyStore(inner, counted=WRITES)
        acknowledged = set(before)
        with process(shaky, 7) as repository, repository.run("run").writer() as writer:
            shaky.reset(fault_at(number, fault))
            with suppress(fwstore.Unavailable):
                assert writer.save(2, make_state(2)).result()
                acknowledged.add(("run", 2))
            if len(shaky.operations) < number:
                break
            assert writer.save(3, make_state(3)).result()
            acknowledged.add(("run", 3))
        shaky.land()
        judge(inner, scenario.promise(acknowledged), collect_first=True)
    assert number > 6


def test_a_process_dies_at_every_write_to_a_directory(tmp_path: Path, figures: Figures) -> None:
    scenario = SCENARIOS["a resumed save"]
    names = itertools.count()

    def make(_: str) -> Store:
        path = tmp_path / str(next(names))
        shutil.copytree(tmp_path / "origin", path)
        return DirectoryStore(path, make_runtime())

    prepared_in = DirectoryStore(tmp_path / "origin", make_runtime())
    promise = scenario.promise(prepared(scenario, prepared_in))
    labels: list[str] = []
    judged: set[frozenset[tuple[str, bytes]]] = set()
    for label, store in enumerate_deaths(scenario, make, CHANGES):
        labels.append(label)
        left = contents(store)
        if left not in judged:
            judged.add(left)
            judge(store, promise, collect_first=len(judged) % 2 == 0)
    assert len(labels) > 50
    assert len(judged) > 10
    note(figures, scenario, make("again"), len(labels), CHANGES)
