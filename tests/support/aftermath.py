"""What a disturbed process left, seen by processes that know nothing but the bytes.

Invariant: nothing is taken on trust; every checkpoint that is on offer is loaded and compared bit by bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import fwstore
from fwstore.store.base import Store
from support.oracle import make_state, same
from support.processes import process
from support.residue import offered, unneeded

Place = tuple[str, int]
Act = Callable[[fwstore.Repository], object]
_seeds = itertools.count(100)


@dataclass(frozen=True)
class Promise:
    """What must hold after a disturbance.

    Attributes:
        kept: Checkpoints, by run and step, that are there.
        possible: All that may be there.
        due: Those that are there once `again` was done.
        again: What the next process does.
    """

    kept: frozenset[Place]
    possible: frozenset[Place]
    due: frozenset[Place]
    again: Act


def checkpoints(store: Store) -> set[Place]:
    """What is on offer to a new process, once each checkpoint was loaded and compared."""
    with process(store, next(_seeds)) as repository:
        found = offered(repository)
        for checkpoint in found:
            assert same(checkpoint.load(), make_state(checkpoint.step)), checkpoint
        return {(checkpoint.run, checkpoint.step) for checkpoint in found}


def run(store: Store, act: Act) -> None:
    """Do something in a process that lives."""
    with process(store, next(_seeds)) as repository:
        act(repository)


def save(run: str, *steps: int, keep: fwstore.Keep | None = None) -> Act:
    """A job that continues a run: checks what it loads, then saves steps, or the one that comes next."""

    def act(repository: fwstore.Repository) -> None:
        with repository.run(run).writer(keep=keep) as writer:
            following = 0
            if writer.base is not None:
                assert same(writer.base.load(), make_state(writer.base.step))
                following = writer.base.step + 1
            for step in steps or (following,):
                handle = writer.save(step, make_state(step), metrics={"loss": 1 / (step + 1)})
                assert handle.result()

    return act


def judge(store: Store, promise: Promise, *, collect_first: bool) -> None:
    """Hold what a disturbed process left against what was promised."""
    found = checkpoints(store)
    assert promise.kept <= found <= promise.possible
    if collect_first and found:
        run(store, lambda repository: repository.gc())
    run(store, promise.again)
    # Whoever comes next goes on; from then on it is known that what the dead one left is dead.
    for name in sorted({name for name, _ in promise.possible} | {"run"}):
        run(store, save(name))
    with process(store, next(_seeds)) as repository:
        listed = {(checkpoint.run, checkpoint.step) for checkpoint in offered(repository)}
        assert promise.kept | promise.due <= listed
        repository.gc()
    assert checkpoints(store) == listed
    with process(store, next(_seeds)) as repository:
        assert unneeded(repository) == set()
