"""Reading a run of several sites: what is complete here, what is known elsewhere, and which history is canonical."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

import fwstore
from fwstore.base.errors import Fenced, NotFound
from fwstore.checkpoint.access import Access
from fwstore.format.record import Expire
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator
from support.lineages import keys_under
from support.topologies import Places

STATE = {"w": np.arange(64.0)}


def save(writer: fwstore.Writer, *steps: int) -> None:
    for step in steps:
        writer.save(step, {"w": STATE["w"] * step}).result()


def replicate(sites: Places, to: str) -> None:
    with sites.open(to) as repository:
        home = repository.sites.join()
        sources = tuple(Source(site) for site in repository.sites.reachable(keeping=True))
        Replicator(Destination(own=home, sources=sources, runtime=repository.runtime)).once()


def steps(found: list[fwstore.Checkpoint] | tuple[fwstore.Checkpoint, ...]) -> list[int]:
    return [checkpoint.step for checkpoint in found]


def found(repository: fwstore.Repository) -> Access:
    access = repository.find("run")
    assert access is not None
    return access


def begun(sites: Places) -> None:
    """A run at `a` whose first two of three steps are at `b` too."""
    with sites.open("a") as repository, repository.run("run").writer() as writer:
        save(writer, 1, 2)
        replicate(sites, "b")
        save(writer, 3)


def test_listings_tell_what_is_complete_here_and_what_is_elsewhere(sites: Places) -> None:
    begun(sites)
    with sites.open("b") as repository:
        run = repository.run("run")
        assert steps(run.checkpoints()) == [1, 2]
        assert run.latest().step == 2
        everything = run.checkpoints(elsewhere=True)
        assert [(c.step, c.elsewhere, sorted(c.sites)) for c in everything] == [
            (1, False, ["a", "b"]),
            (2, False, ["a", "b"]),
            (3, True, ["a"]),
        ]
        assert run.latest(elsewhere=True).step == 3
        assert run.unheard() == ()
    with sites.open("a") as repository:
        assert steps(repository.run("run").checkpoints()) == [1, 2, 3]


def test_listing_again_asks_each_site_only_for_what_is_new(sites: Places) -> None:
    """For votes and retirements, and for what comes behind the end of a log."""
    begun(sites)
    with sites.open("b") as repository:
        run = repository.run("run")
        run.latest()
        sites.asked.clear()
        run.latest()
        assert sites.asked == {"a": 4, "w": 2}
        with run.writer(base=run[2]) as writer:
            save(writer, 4)
        run.branches()
        sites.asked.clear()
        assert steps(run.superseded_by("t1")) == [4]
        assert sites.asked == {"a": 4, "w": 2}


def test_a_checkpoint_that_is_elsewhere_loads_from_there(sites: Places) -> None:
    begun(sites)
    sites.cut = {"a"}
    with (
        sites.open("b") as repository,
        pytest.warns(UserWarning, match="a is silent"),
        pytest.raises(NotFound, match="it has steps 1, 2"),
    ):
        repository.run("run")[3]
    sites.cut = set()
    with sites.open("b") as repository:
        found = repository.run("run")[3]
        assert found.elsewhere
        np.testing.assert_array_equal(found.load()["w"], STATE["w"] * 3)


def test_a_store_alone_is_asked_nothing_more_than_before(sites: Places) -> None:
    with fwstore.open(sites.urls["a"]) as repository:
        with repository.run("run").writer() as writer:
            save(writer, 1)
        found = repository.run("run").latest()
        assert (found.sites, found.elsewhere, repository.run("run").unheard()) == ((), False, ())


def test_at_the_site_that_was_left_the_tail_is_no_history_once_anybody_is_heard(
    sites: Places,
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(sites.open("a"))
        zombie = stack.enter_context(first.run("run").writer())
        save(zombie, 1)
        replicate(sites, "b")
        sites.cut = {"a"}
        second = stack.enter_context(sites.open("b"))
        with pytest.warns(UserWarning, match="a is silent"):
            writer = stack.enter_context(second.run("run").writer())
        save(writer, 2)
        # Nobody has fenced it: it goes on, though whoever asks the others knows better.
        save(zombie, 7, 8)
    with sites.open("a") as repository:
        run = repository.run("run")
        assert steps(run.checkpoints()) == [1]
        assert steps(run.checkpoints(elsewhere=True)) == [1, 2]
        (tail,) = run.branches()
        assert (tail.name, steps(tail.checkpoints)) == ("t1", [8, 7])
    sites.cut = set()
    with sites.open("b") as repository:
        run = repository.run("run")
        assert steps(run.checkpoints()) == [1, 2]
        (tail,) = run.branches()
        assert [(c.step, c.elsewhere, c.sites) for c in tail.checkpoints] == [
            (8, True, ("a",)),
            (7, True, ("a",)),
        ]


def test_a_tail_of_another_site_can_be_promoted(sites: Places) -> None:
    test_at_the_site_that_was_left_the_tail_is_no_history_once_anybody_is_heard(sites)
    with sites.open("b") as repository:
        run = repository.run("run")
        head = run.branches()[0].checkpoints[0]
        with run.writer(base=head) as writer:
            assert writer.base == head
            np.testing.assert_array_equal(writer.base.load()["w"], STATE["w"] * 8)
            save(writer, 9)
        assert steps(run.checkpoints(elsewhere=True)) == [1, 7, 8, 9]
        assert [branch.name for branch in run.branches()] == ["t2"]


def test_with_receipts_of_less_than_a_majority_what_is_listed_is_at_least_that(
    sites: Places,
) -> None:
    begun(sites)
    sites.cut = {"a", "w"}
    with sites.open("b") as repository:
        run = repository.run("run")
        with pytest.warns(UserWarning, match="is silent"):
            assert steps(run.checkpoints()) == [1, 2]
        assert run.unheard() == ("a", "w")
        account = repository.account(found(repository))
        assert not account.certain


def test_a_receipt_stands_for_the_open_of_a_home_that_does_not_answer(sites: Places) -> None:
    """`a` alone hears the witness; it learns that there is a term 2 at `b`, though nothing of what it saved."""
    with sites.open("a") as repository, repository.run("run").writer() as writer:
        save(writer, 1)
        replicate(sites, "b")
        with sites.open("b") as other, other.run("run").writer() as newer:
            save(newer, 2)
        with pytest.raises(Fenced):
            save(writer, 3)
    sites.cut = {"b"}
    with sites.open("a") as repository:
        run = repository.run("run")
        with pytest.warns(UserWarning, match="b is silent"):
            account = repository.account(found(repository))
        assert account.certain
        assert account.view.opens[2].home != repository.sites.home().uuid
        assert steps(run.checkpoints()) == [1]
        assert run.unheard() == ("b",)


def test_a_log_that_was_set_back_is_refused_and_explained(sites: Places) -> None:
    begun(sites)
    store = sites.store("a")
    slots = keys_under(store, "meta/run@1/_log/000000/")
    store.delete([*slots[-2:], *keys_under(store, "meta/run@1/_log/hint")])
    with sites.open("b") as repository:
        run = repository.run("run")
        with pytest.warns(UserWarning, match="restored from an older backup"):
            assert steps(run.checkpoints(elsewhere=True)) == [1, 2]
        assert run.unheard() == ("a",)
    with sites.open("b") as repository:
        with pytest.warns(UserWarning, match="restored from an older backup"):
            writer = repository.run("run").writer()
        assert writer.base is not None
        assert (writer.base.step, writer.term) == (2, 2)
        writer.close()


def test_what_is_read_past_this_site_waits_for_the_link_and_is_counted(sites: Places) -> None:
    sites.write('[[links]]\nfrom = "a"\nto = "b"\ncap = "1 MB/s"', roles={"w": "witness"})
    state = {"w": np.random.default_rng(1).random(20_000)}
    with sites.open("a") as repository, repository.run("run").writer() as writer:
        writer.save(1, state).result()
        writer.save(2, STATE).result()
    replicate(sites, "b")
    with sites.open("b") as repository:
        log = found(repository).log
        given_up = log.refresh().live()[-1]
        assert given_up.step == 1
        log.append(lambda _: Expire((given_up.id,), "simulated"))
        repository.gc()
    with sites.open("b") as repository:
        begin_s = repository.runtime.clock.monotonic()
        with pytest.warns(UserWarning, match="not kept here"):
            loaded = repository.run("run")[1].load()
        took_s = repository.runtime.clock.monotonic() - begin_s
        received = repository.links.bytes_received()["a"]
    np.testing.assert_array_equal(loaded["w"], state["w"])
    assert received > state["w"].nbytes
    # A short burst is free.
    assert took_s > 0.5 * (received / 1_000_000 - 0.2)
