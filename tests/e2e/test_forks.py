"""Runs that borrow the bytes of other runs, whatever becomes of the lenders."""

from __future__ import annotations

import numpy as np
import pytest

import fwstore
from support.lineages import keys_under, make_store
from support.oracle import make_state, same
from support.processes import process


def save(repository: fwstore.Repository, name: str, *steps: int) -> None:
    with repository.run(name).writer() as writer:
        for step in steps:
            writer.save(step, make_state(step)).result()


def test_a_save_in_three_phases_keeps_what_the_fork_borrowed() -> None:
    """It finds its chunks in the base, whose packs are another run's: that run must go on keeping them."""
    store = make_store()
    tensor = np.arange(100, dtype=np.float32)
    shard = fwstore.Shard(
        "float32", (100,), (fwstore.Piece(fwstore.Box((0,), (100,)), tensor),), layout=None
    )
    with process(store, 1) as repository:
        with repository.run("base").writer() as writer:
            writer.save(0, {"w": tensor}).result()
        fork = repository.run("base").fork("fork")
        for step in (1, 2):
            ticket = fork.begin_save(step)
            part = fork.write_part(ticket, {("w",): shard}, rank=0)
            fork.commit_save(ticket, [part], {"w": fwstore.TensorSlot("numpy")})
        assert not keys_under(store, "packs/fork@1/")
        save(repository, "base", 1)
        save(repository, "base", 2)
        for name in ("fork", "base", "fork", "base"):
            repository.gc(run=name, keep=fwstore.Keep(last=1))
        assert [c.step for c in fork.checkpoints()] == [1, 2]
        assert same(fork.latest().load(), {"w": tensor})


def test_a_lender_may_be_deleted_and_its_name_used_again() -> None:
    store = make_store()
    with process(store, 1) as repository:
        save(repository, "base", 0)
        fork = repository.run("base").fork("fork")
        repository.run("base").delete()
        save(repository, "base", 5)
        again = fork.fork("again")
        repository.gc()
        assert same(fork.latest().load(), make_state(0))
        assert same(again.latest().load(), make_state(0))
        fork.delete()
        again.delete()
        repository.gc()
        assert not keys_under(store, "packs/base@1/")
        assert same(repository.run("base").latest().load(), make_state(5))


def test_a_run_that_has_saved_is_not_forked_over() -> None:
    with process(make_store(), 1) as repository:
        save(repository, "base", 0)
        save(repository, "other", 1)
        with pytest.raises(fwstore.AlreadyExists, match="choose another"):
            repository.run("base").fork("other")
        assert [c.step for c in repository.run("other").checkpoints()] == [1]


def freed(repository: fwstore.Repository, keep: fwstore.Keep) -> int:
    """Collect, and hold the dry run before it to every action and byte."""
    plan = repository.gc(keep=keep, dry_run=True)
    done = repository.gc(keep=keep)
    assert set(plan.actions) == set(done.actions)
    assert plan.bytes_freed == done.bytes_freed
    assert repository.gc(keep=keep).bytes_freed == 0
    return done.bytes_freed


def test_a_dry_run_explains_what_lenders_get_back() -> None:
    store, keep = make_store(), fwstore.Keep(last=1)
    with process(store, 1) as repository:
        save(repository, "base", 0, 1, 2, 3)
        repository.run("base").fork("one", at=1)
        repository.run("base").fork("two", at=2)
        repository.run("two").fork("three")
        save(repository, "one", 2)
        assert freed(repository, keep) > 0
        assert [c.step for c in repository.run("base").checkpoints()] == [1, 2, 3]
        repository.run("two").delete()
        # Its manifest: the bytes are still borrowed by the third.
        manifest = freed(repository, keep)
        repository.run("three").delete()
        assert freed(repository, keep) > 2 * manifest
        assert [c.step for c in repository.run("base").checkpoints()] == [1, 3]
        repository.run("one").delete()
        assert freed(repository, keep) > 2 * manifest
        assert [c.step for c in repository.run("base").checkpoints()] == [3]


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_a_chain_of_lenders_gets_everything_back_at_once(names: tuple[str, str, str]) -> None:
    """Each borrows from the one before alone, so that nothing but the chain tells the order."""
    store, keep = make_store(), fwstore.Keep(last=1)
    with process(store, 1) as repository:
        for number, name in enumerate(names):
            if number:
                repository.run(names[number - 1]).fork(name)
            with repository.run(name).writer() as writer:
                writer.save(number + 1, {"w": np.full(1000, number)}).result()
        for name in names:
            repository.run(name).delete()
        freed(repository, keep)
        assert not keys_under(store, "packs/")
