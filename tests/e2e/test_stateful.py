"""The public API against a model: rules in any order, each a process of its own over one store.

Hypothesis draws the order of the rules and shrinks what fails. Which rule comes after which is its chance, so
a walk beside it goes to the pair of rules that came up least: a case that is never made finds nothing.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fwstore
from fwstore.store.base import Store
from fwstore_migrate.exports import ExportOptions, export_safetensors
from fwstore_migrate.imports import ImportOptions, import_checkpoint
from fwstore_migrate.states import open_foreign
from support.faults import Crash, FaultyStore, When, crash_at
from support.figures import Figures
from support.lineages import keys_under, make_store
from support.model import Content, ModelRun
from support.processes import process
from support.residue import unneeded

pytestmark = [pytest.mark.slow, pytest.mark.stateful, pytest.mark.timeout(14400)]

# How many runs of the machine, of how many rules each; by profile.
SIZES = {"dev": (10, 20), "ci": (40, 50), "nightly": (1_000, 100)}
WALK_STEPS = 700
RUNS_MAX = 10
PAIRS: Counter[tuple[str, str]] = Counter()

# What uses take, and from where; Hypothesis and the walk draw from the same.
DRAWN: dict[str, range | list[str]] = {
    "pick": range(10**6),
    "step": range(10**6),
    "place": range(10**6),
    "count": range(1, 4),
    "world": range(1, 5),
    "last": range(1, 4),
    "at": range(1, 91),
    "when": ["before", "during", "after"],
}
# The uses, with what each takes. Those that save or damage are refused while something is damaged.
USES: dict[str, tuple[str, ...]] = {}
WHOLE = {"save", "save_by_ranks", "crash", "fork", "corrupt", "export_and_import"}
NEW_RUN = {"fork", "export_and_import"}


def use(*taken: str) -> Callable[[Callable[..., None]], Any]:
    """Make a method of the machine one of the uses: a rule of Hypothesis, whose neighbours are counted."""

    def decorate(method: Callable[..., None]) -> Any:
        name = method.__name__
        USES[name] = taken

        @wraps(method)
        def counted(machine: Machine, **arguments: Any) -> None:
            machine.note(name)
            method(machine, **arguments)

        strategies = {each: st.sampled_from(DRAWN[each]) for each in taken}
        make_rule: Callable[..., Any] = rule
        return make_rule(**strategies)(
            precondition(lambda machine: machine.possible(name))(counted)
        )

    return decorate


class Machine(RuleBasedStateMachine):
    """A repository and the model of it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = make_store()
        self.runs: dict[str, ModelRun] = {}
        self.damage: dict[str, bytes] = {}
        self.seeds = itertools.count(1)
        self.values = itertools.count(1)
        self.names = (f"run-{number}" for number in itertools.count())
        self.last = ""

    # What uses are made of.

    def note(self, name: str) -> None:
        """Count which use came after which."""
        if self.last:
            PAIRS[self.last, name] += 1
        self.last = name

    @contextmanager
    def process(self, store: Store | None = None) -> Any:
        with warnings.catch_warnings():
            # A damaged base is passed over, and retention waits: both are said in a warning.
            warnings.simplefilter("ignore")
            with process(store or self.store, next(self.seeds)) as repository:
                yield repository

    def pick(self, pick: int) -> tuple[str, ModelRun]:
        """Return a run that has something on offer."""
        names = [name for name, run in self.runs.items() if run.offer]
        name = names[pick % len(names)]
        return name, self.runs[name]

    def steps(self, name: str) -> list[int]:
        with self.process() as repository:
            return [checkpoint.step for checkpoint in repository.run(name).checkpoints()]

    def save_steps(self, repository: fwstore.Repository, name: str, plan: list[Content]) -> None:
        with repository.run(name).writer() as writer:
            start = 0 if writer.base is None else writer.base.step + 1
            for step, content in enumerate(plan, start):
                assert writer.save(step, content.state()).result() is not None

    def give_up(self, repository: fwstore.Repository, name: str, run: ModelRun) -> None:
        if run.pins:
            with pytest.raises(fwstore.InvalidInput, match=next(iter(run.pins))):
                repository.run(name).delete()
        repository.run(name).delete(lift_pins=True)

    def plan(self, count: int) -> list[Content]:
        return [Content(next(self.values)) for _ in range(count)]

    def possible(self, name: str) -> bool:
        """Return whether a use can come next."""
        if name == "repair":
            return bool(self.damage)
        if self.damage and name in WHOLE:
            return False
        return name not in NEW_RUN or len(self.runs) < RUNS_MAX

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let something be refused as damaged while something is."""
        try:
            yield
        except fwstore.Corrupt:
            assert self.damage

    # The uses.

    @initialize()
    def begin(self) -> None:
        name = next(self.names)
        plan = self.plan(2)
        with self.process() as repository:
            self.save_steps(repository, name, plan)
        self.runs[name] = ModelRun(dict(enumerate(plan)))

    @use("pick", "count")
    def save(self, pick: int, count: int) -> None:
        name, run = self.pick(pick)
        plan = self.plan(count)
        with self.process() as repository:
            self.save_steps(repository, name, plan)
        run.offer |= dict(enumerate(plan, run.newest + 1))

    @use("pick", "world")
    def save_by_ranks(self, pick: int, world: int) -> None:
        name, run = self.pick(pick)
        (content,) = self.plan(1)
        with self.process() as repository:
            opened = repository.run(name)
            ticket = opened.begin_save()
            parts = [
                opened.write_part(ticket, content.share(rank, world), rank=rank)
                for rank in range(world)
            ]
            opened.commit_save(ticket, parts, content.skeleton())
        run.offer[run.newest + 1] = content

    @use("pick", "at", "when")
    def crash(self, pick: int, at: int, when: When) -> None:
        """A process dies while it saves: the checkpoint is there whole, or not at all."""
        name, run = self.pick(pick)
        plan = self.plan(2)
        dying = FaultyStore(self.store, crash_at(at, when))
        with suppress(Crash), self.process(dying) as repository:
            self.save_steps(repository, name, plan)
        dying.kill()
        possible = run.offer | dict(enumerate(plan, run.newest + 1))
        run.take(set(self.steps(name)), possible, set(run.offer))

    @use("pick", "world")
    def resume(self, pick: int, world: int) -> None:
        """Ranks of another world load the newest checkpoint into what they hold."""
        name, run = self.pick(pick)
        wanted, other = run.offer[run.newest], Content(0)
        with self.tolerated(), self.process() as repository:
            checkpoint = repository.run(name).latest()
            assert checkpoint.step == run.newest
            for rank in range(world):
                held: Any = {path[0]: shard for path, shard in other.share(rank, world).items()}
                loaded = checkpoint.load(into=held, strict=False)
                for (key,), shard in wanted.share(rank, world).items():
                    for mine, right in zip(loaded[key].pieces, shard.pieces, strict=True):
                        assert np.array_equal(np.asarray(mine.array), np.asarray(right.array))

    @use("pick", "step")
    def fork(self, pick: int, step: int) -> None:
        name, run = self.pick(pick)
        at = sorted(run.offer)[step % len(run.offer)]
        with self.process() as repository:
            fork = next(self.names)
            repository.run(name).fork(fork, at=at)
        self.runs[fork] = ModelRun({at: run.offer[at]})
        run.lent.add(at)

    @use("pick", "step")
    def pin(self, pick: int, step: int) -> None:
        name, run = self.pick(pick)
        at = sorted(run.offer)[step % len(run.offer)]
        with self.tolerated(), self.process() as repository:
            run.pins[repository.run(name).pin(at, "of the model")] = at

    @use("pick")
    def unpin(self, pick: int) -> None:
        pinned = [(name, token) for name, run in self.runs.items() for token in run.pins]
        if pinned:
            name, token = pinned[pick % len(pinned)]
            with self.process() as repository:
                repository.run(name).unpin(token)
            del self.runs[name].pins[token]

    @use("pick", "last")
    def expire(self, pick: int, last: int) -> None:
        name, run = self.pick(pick)
        with self.tolerated(), self.process() as repository:
            repository.gc(run=name, keep=fwstore.Keep(last=last))
        newest = set(sorted(run.offer)[-last:])
        run.take(set(self.steps(name)), run.offer, newest)

    @use()
    def gc(self) -> None:
        """A collection without rules frees what nothing needs, and takes nothing away."""
        with self.tolerated(), self.process() as repository:
            repository.gc(dry_run=True)
            repository.gc()

    @use("pick", "step")
    def rm(self, pick: int, step: int) -> None:
        name, run = self.pick(pick)
        if len(run.offer) == 1:
            return
        at = sorted(run.offer)[step % len(run.offer)]
        with self.process() as repository:
            try:
                repository.run(name).remove(at)
            except fwstore.InvalidInput:
                assert at in run.pins.values() or at in run.lent
                return
        assert at not in run.pins.values()
        del run.offer[at]

    @use("pick")
    def delete(self, pick: int) -> None:
        if len(self.runs) == 1:
            return
        name, run = self.pick(pick)
        with self.process() as repository:
            self.give_up(repository, name, run)
        del self.runs[name]

    @use("pick", "place")
    def corrupt(self, pick: int, place: int) -> None:
        """One bit of a pack or a manifest changes: what is loaded is right or refused, and verify tells."""
        name, run = self.pick(pick)
        with self.process() as repository:
            checkpoint = repository.run(name).latest()
            manifest = checkpoint.access.keys.snapshot(checkpoint.id)
            keys = [pack.key for pack in checkpoint.packs()]
            keys += [info.key for info in self.store.list(manifest)]
        key = sorted(keys)[pick % len(keys)]
        stored = self.store.get(key, limit_bytes=1 << 20)
        at = place % len(stored)
        changed = stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1 :]
        self.store.put(key, [changed], mode="overwrite")
        self.damage[key] = stored
        with self.process() as repository:
            assert repository.verify(level="data").problems
            with self.tolerated():
                assert run.offer[run.newest].equals(repository.run(name).latest().load())

    @use()
    def repair(self) -> None:
        """The bytes come back from a backup, but for those that were garbage meanwhile."""
        left = set(keys_under(self.store, ""))
        for key in self.damage.keys() & left:
            self.store.put(key, [self.damage[key]], mode="overwrite")
        self.damage.clear()
        with self.process() as repository:
            assert repository.verify(level="data").problems == ()

    @use("pick", "step")
    def export_and_import(self, pick: int, step: int) -> None:
        name, run = self.pick(pick)
        at = sorted(run.offer)[step % len(run.offer)]
        new = next(self.names)
        with tempfile.TemporaryDirectory() as folder, self.process() as repository:
            file = Path(folder) / "exported.safetensors"
            export_safetensors(repository.run(name)[at], file, ExportOptions())
            import_checkpoint(repository.run(new), open_foreign(file), ImportOptions(step=at))
        self.runs[new] = ModelRun({at: Content(run.offer[at].value, plain=False)})

    # What holds after each.

    @invariant()
    def what_is_on_offer_is_what_was_promised(self) -> None:
        if not self.runs:
            return
        with self.process() as repository:
            assert set(repository.runs()) == set(self.runs)
            for name, run in self.runs.items():
                steps = [checkpoint.step for checkpoint in repository.run(name).checkpoints()]
                assert steps == sorted(run.offer)

    @use("pick")
    def load(self, pick: int) -> None:
        name, run = self.pick(pick)
        with self.process() as repository:
            found = repository.run(name).checkpoints()
            assert [checkpoint.step for checkpoint in found] == sorted(run.offer)
            for checkpoint in found:
                with self.tolerated():
                    assert run.offer[checkpoint.step].equals(checkpoint.load()), checkpoint

    def teardown(self) -> None:
        """In the end all loads, verification finds nothing, and runs that are deleted leave nothing behind."""
        if not self.runs:
            return
        if self.damage:
            self.repair()
        with self.process() as repository:
            repository.gc()
            assert repository.verify(level="data").problems == ()
        for pick in range(len(self.runs)):
            self.load(pick=pick)
        with self.process() as repository:
            for name, run in self.runs.items():
                self.give_up(repository, name, run)
            repository.gc()
            assert unneeded(repository) == set()


def pairs() -> set[tuple[str, str]]:
    """Return which uses can follow which."""
    never = {("repair", "repair")}
    never |= {("corrupt", name) for name in WHOLE}
    never |= {(name, "repair") for name in WHOLE - {"corrupt"}}
    return set(itertools.product(USES, USES)) - never


def walk(machine: Machine, chance: random.Random) -> None:
    """Do what came least often after what was done last, over and over."""
    machine.begin()
    for _ in range(WALK_STEPS):
        possible = [name for name in USES if machine.possible(name)]
        name = min(possible, key=lambda name: (PAIRS[machine.last, name], chance.random()))
        getattr(machine, name)(**{taken: chance.choice(DRAWN[taken]) for taken in USES[name]})
        machine.what_is_on_offer_is_what_was_promised()
    machine.teardown()


def test_any_order_of_uses(figures: Figures) -> None:
    PAIRS.clear()
    examples, length = SIZES[settings.get_current_profile_name()]
    sized = settings(max_examples=examples, stateful_step_count=length)
    run_state_machine_as_test(Machine, settings=sized)
    counts = {"runs": examples, "rules": PAIRS.total(), "pairs of rules": len(pairs())}
    figures.note("uses in any order", counts | {"pairs reached": len(PAIRS.keys() & pairs())})


def test_every_use_after_every_other() -> None:
    PAIRS.clear()
    walk(Machine(), random.Random(7))
    assert PAIRS.keys() == pairs()
