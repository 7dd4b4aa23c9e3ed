"""Resuming the same run at another site, through the public names."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest

import fwstore
from fwstore.base.errors import Fenced, Unavailable
from fwstore.format.keys import parse_pack_key
from support.coordinators import Board, SharedCoordinator, together
from support.lineages import keys_under
from support.topologies import Places

STATE = {"frozen": np.arange(4096.0), "moved": np.arange(64.0)}


def save(repository: fwstore.Repository, step: int) -> fwstore.Checkpoint:
    with repository.run("run").writer() as writer:
        made = writer.save(step, STATE | {"moved": STATE["moved"] * step}).result()
    assert made is not None
    return made


def test_a_run_goes_on_without_one_site_and_not_without_two(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    sites.cut = {"b"}
    with sites.open("a") as repository, pytest.warns(UserWarning, match="b is silent"):
        save(repository, 2)
    sites.cut = {"b", "w"}
    with (
        sites.open("a") as repository,
        pytest.warns(UserWarning, match="is silent"),
        pytest.raises(Unavailable, match="witnesses"),
    ):
        save(repository, 3)
    with sites.open("a") as repository:
        assert [c.step for c in repository.run("run").checkpoints()] == [1, 2]


def test_another_site_goes_on_from_the_newest_and_writes_what_it_cannot_prove_to_have(
    sites: Places,
) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    with sites.open("b") as repository, repository.run("run").writer() as writer:
        assert writer.base is not None
        assert writer.base.step == 1
        loaded = writer.base.load()
        np.testing.assert_array_equal(loaded["moved"], STATE["moved"])
        first = writer.save(2, STATE | {"moved": STATE["moved"] * 2}).result()
        second = writer.save(3, STATE | {"moved": STATE["moved"] * 3}).result()
    assert first is not None
    assert second is not None
    # Nothing of the first save lies in packs of `a`; the second one uses what is here again.
    here = set(keys_under(sites.store("b"), "packs/"))
    for checkpoint in (first, second):
        assert {pack.key for pack in checkpoint.packs()} <= here
    assert len({parse_pack_key(pack.key).save for pack in second.packs()}) == 2
    sites.cut = {"a", "w"}
    with sites.open("b") as repository:
        np.testing.assert_array_equal(repository.run("run")[3].load()["frozen"], STATE["frozen"])


def test_the_job_that_was_left_behind_is_fenced(sites: Places) -> None:
    with sites.open("a") as first, first.run("run").writer() as zombie:
        zombie.save(1, STATE).result()
        with sites.open("b") as second:
            save(second, 2)
        with pytest.raises(Fenced):
            zombie.save(3, STATE).result()


def test_every_rank_comes_to_the_same_answer_about_what_may_be_used_again(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    board = Board()

    def rank(number: int) -> fwstore.Checkpoint:
        channel = SharedCoordinator(board, number, 2)
        with (
            sites.open("b") as repository,
            repository.run("run").writer(coordinator=channel) as writer,
        ):
            assert writer.base is not None
            made = writer.save(2, STATE).result()
            assert made is not None
            return made

    made, _ = together([partial(rank, 0), partial(rank, 1)])
    here = set(keys_under(sites.store("b"), "packs/"))
    assert {pack.key for pack in made.packs()} <= here


def test_a_repository_of_several_sites_pickles(sites: Places) -> None:
    with sites.open("b") as repository:
        again = pickle.loads(pickle.dumps(repository))
        assert (again.site, list(again.topology.sites)) == ("b", ["a", "b", "w"])
        again.close()
