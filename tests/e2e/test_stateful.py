"""The public API against a model: rules in any order, each a process of its own over one store.

Hypothesis draws the order of the rules and shrinks what fails. Which rule came after which is counted: a
generator that never makes a case finds nothing in it.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

# How many runs of the machine, of how many rules each, and which share of the pairs of rules must come up; by profile.
# Some pairs cannot: nothing is saved or forked while something is damaged.
SERIES_MAX = 3
SIZES = {"dev": (10, 20, 0.0), "ci": (40, 50, 0.7), "nightly": (1_000, 100, 0.9)}
RUNS_MAX = 10
PAIRS: Counter[tuple[str, str]] = Counter()

picks = st.integers(0, 10**6)
worlds = st.integers(1, 4)


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

    # What rules are made of.

    def note(self, name: str) -> None:
        """Count which rule came after which."""
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

    def whole(self) -> bool:
        return not self.damage

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let something be refused as damaged while something is."""
        try:
            yield
        except fwstore.Corrupt:
            assert self.damage

    def has_room(self) -> bool:
        return len(self.runs) < RUNS_MAX

    # The rules.

    @initialize()
    def begin(self) -> None:
        name = next(self.names)
        plan = self.plan(2)
        with self.process() as repository:
            self.save_steps(repository, name, plan)
        self.runs[name] = ModelRun(dict(enumerate(plan)))

    @rule(pick=picks, count=st.integers(1, 3))
    @precondition(whole)
    def save(self, pick: int, count: int) -> None:
        self.note("save")
        name, run = self.pick(pick)
        plan = self.plan(count)
        with self.process() as repository:
            self.save_steps(repository, name, plan)
        run.offer |= dict(enumerate(plan, run.newest + 1))

    @rule(pick=picks, world=worlds)
    @precondition(whole)
    def save_by_ranks(self, pick: int, world: int) -> None:
        self.note("save by ranks")
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

    @rule(pick=picks, at=st.integers(1, 90), when=st.sampled_from(["before", "during", "after"]))
    @precondition(whole)
    def crash(self, pick: int, at: int, when: When) -> None:
        """A process dies while it saves: the checkpoint is there whole, or not at all."""
        self.note("crash")
        name, run = self.pick(pick)
        plan = self.plan(2)
        dying = FaultyStore(self.store, crash_at(at, when))
        with suppress(Crash), self.process(dying) as repository:
            self.save_steps(repository, name, plan)
        dying.kill()
        possible = run.offer | dict(enumerate(plan, run.newest + 1))
        run.take(set(self.steps(name)), possible, set(run.offer))

    @rule(pick=picks, world=worlds)
    def resume(self, pick: int, world: int) -> None:
        """Ranks of another world load the newest checkpoint into what they hold."""
        self.note("resume")
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

    @rule(pick=picks, step=picks)
    @precondition(lambda self: self.whole() and self.has_room())
    def fork(self, pick: int, step: int) -> None:
        self.note("fork")
        name, run = self.pick(pick)
        at = sorted(run.offer)[step % len(run.offer)]
        with self.process() as repository:
            fork = next(self.names)
            repository.run(name).fork(fork, at=at)
        self.runs[fork] = ModelRun({at: run.offer[at]})
        run.lent.add(at)

    @rule(pick=picks, step=picks)
    def pin(self, pick: int, step: int) -> None:
        self.note("pin")
        name, run = self.pick(pick)
        at = sorted(run.offer)[step % len(run.offer)]
        with self.tolerated(), self.process() as repository:
            run.pins[repository.run(name).pin(at, "of the model")] = at

    @rule(pick=picks)
    def unpin(self, pick: int) -> None:
        self.note("unpin")
        pinned = [(name, token) for name, run in self.runs.items() for token in run.pins]
        if pinned:
            name, token = pinned[pick % len(pinned)]
            with self.process() as repository:
                repository.run(name).unpin(token)
            del self.runs[name].pins[token]

    @rule(pick=picks, last=st.integers(1, 3))
    def expire(self, pick: int, last: int) -> None:
        self.note("expire")
        name, run = self.pick(pick)
        with self.tolerated(), self.process() as repository:
            repository.gc(run=name, keep=fwstore.Keep(last=last))
        newest = set(sorted(run.offer)[-last:])
        run.take(set(self.steps(name)), run.offer, newest)

    @rule()
    def gc(self) -> None:
        """A collection without rules frees what nothing needs, and takes nothing away."""
        self.note("gc")
        with self.tolerated(), self.process() as repository:
            repository.gc(dry_run=True)
            repository.gc()

    @rule(pick=picks, step=picks)
    def rm(self, pick: int, step: int) -> None:
        self.note("rm")
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

    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        self.note("delete")
        if len(self.runs) == 1:
            return
        name, run = self.pick(pick)
        with self.process() as repository:
            self.give_up(repository, name, run)
        del self.runs[name]

    @rule(pick=picks, place=picks)
    @precondition(whole)
    def corrupt(self, pick: int, place: int) -> None:
        """One bit of a pack or a manifest changes: what is loaded is right or refused, and verify tells."""
        self.note("corrupt")
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

    @rule()
    @precondition(lambda self: self.damage)
    def repair(self) -> None:
        """The bytes come back from a backup, but for those that were garbage meanwhile."""
        self.note("repair")
        left = set(keys_under(self.store, ""))
        for key in self.damage.keys() & left:
            self.store.put(key, [self.damage[key]], mode="overwrite")
        self.damage.clear()
        with self.process() as repository:
            assert repository.verify(level="data").problems == ()

    @rule(pick=picks, step=picks)
    @precondition(lambda self: self.whole() and self.has_room())
    def export_and_import(self, pick: int, step: int) -> None:
        self.note("export and import")
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

    @rule(pick=picks)
    def load(self, pick: int) -> None:
        self.note("load")
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
            self.load(pick)
        with self.process() as repository:
            for name, run in self.runs.items():
                self.give_up(repository, name, run)
            repository.gc()
            assert unneeded(repository) == set()


def rules() -> list[str]:
    """The names under which rules are noted."""
    return sorted({name for pair in PAIRS for name in pair})


def test_any_order_of_uses(figures: Figures) -> None:
    profile = settings.get_current_profile_name()
    examples, length, wanted = SIZES[profile]
    PAIRS.clear()
    sized = settings(max_examples=examples, stateful_step_count=length)
    runs = 0
    while True:
        run_state_machine_as_test(Machine, settings=sized)
        runs += examples
        names = rules()
        missing = [pair for pair in itertools.product(names, names) if not PAIRS[pair]]
        reached = 1 - len(missing) / len(names) ** 2
        # Which pairs come up is chance: what one series leaves out another one brings.
        if reached >= wanted or runs == SERIES_MAX * examples:
            break
    counts = {"runs": runs, "rules": PAIRS.total(), "pairs of rules": len(names) ** 2}
    figures.note("uses in any order", counts | {"pairs reached": len(names) ** 2 - len(missing)})
    print(f"{PAIRS.total()} rules, {reached:.0%} of {len(names) ** 2} pairs; never: {missing}")
    assert reached >= wanted, missing
