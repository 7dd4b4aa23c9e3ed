"""Snapshots whose packs were written at two sites by the ranks of one job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import fwstore
from fwstore import Fenced, Unavailable
from fwstore.sched import Runtime
from fwstore.store.address import open_store
from fwstore.store.base import Store
from support.coordinators import ThreadJob
from support.faults import Crash, Fault, FaultyStore, Operation
from support.lineages import fresh_log
from support.residue import unneeded
from support.sharded import divided, rows
from support.topologies import QUICK, Places, places

RANKS = ("a", "a", "b", "b")


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Places]:
    with places(tmp_path) as made:
        yield made


def job(sites: Places, ranks: Sequence[str] = RANKS, **options: Any) -> ThreadJob:
    """A job whose ranks stand at some sites."""
    opened = [sites.open(site) for site in ranks]
    return ThreadJob("", len(ranks), repositories=opened, **options)


def arrays(step: int) -> dict[str, Any]:
    """Two tensors of which one never changes."""
    chance = np.random.default_rng(step)
    frozen = np.random.default_rng(99).random((64, 1000))
    return {"trained": chance.random((64, 1000)), "frozen": frozen, "step": step}


def states(step: int, world: int = 4) -> list[dict[str, Any]]:
    return divided(arrays(step), rows(world))


def is_right(checkpoint: fwstore.Checkpoint) -> bool:
    loaded, expected = checkpoint.load(), arrays(checkpoint.step)
    return loaded["step"] == expected["step"] and all(
        np.array_equal(loaded[name], expected[name]) for name in ("trained", "frozen")
    )


def saved(sites: Places, *steps: int, ranks: Sequence[str] = RANKS) -> None:
    with job(sites, ranks) as ranked:
        for step in steps:
            for checkpoint in ranked.save(step, states(step, len(ranks))):
                assert checkpoint is not None
                assert checkpoint.step == step


def packs_of(sites: Places, name: str) -> list[str]:
    """The packs at a site."""
    return [info.key for info in sites.store(name).list("packs/")]


def ranks_at(sites: Places, name: str) -> set[str]:
    """The ranks whose packs are at a site."""
    return {key.rsplit("/", 1)[1].split("-")[2] for key in packs_of(sites, name)}


def steps(sites: Places, name: str, **options: Any) -> list[int]:
    with sites.open(name) as repository:
        return [c.step for c in repository.run("run").checkpoints(**options)]


def test_every_rank_writes_to_its_own_site_and_the_leader_commits_once(sites: Places) -> None:
    saved(sites, 0, 1)
    assert ranks_at(sites, "a") == {"r000000", "r000001"}
    assert ranks_at(sites, "b") == {"r000002", "r000003"}
    assert [e.step for e in fresh_log(sites.store("a")).fold.live()] == [0, 1]
    assert fresh_log(sites.store("b")).fold.live() == []


def test_it_loads_from_both_sites_before_and_after_either_has_all_of_it(sites: Places) -> None:
    saved(sites, 0)
    for name in ("a", "b"):
        assert steps(sites, name) == []
        assert steps(sites, name, elsewhere=True) == [0]
        with sites.open(name) as repository:
            assert is_right(repository.run("run").latest(elsewhere=True))
    for name, other in (("a", "b"), ("b", "a")):
        with sites.open(name) as repository:
            assert not repository.replicate().troubles
        assert steps(sites, name) == [0]
        sites.cut.add(other)
        with sites.open(name) as repository:
            assert is_right(repository.run("run").latest())
        sites.cut.clear()


def test_its_home_fetches_what_it_lacks_and_nothing_else(sites: Places) -> None:
    saved(sites, 0)
    with sites.open("a") as repository:
        report = repository.replicate()
    (copied,) = report.copied
    assert copied.packs == 2
    assert copied.bytes_received < 1.1 * sum(i.size for i in sites.store("b").list("packs/"))
    assert ranks_at(sites, "a") == {"r000000", "r000001", "r000002", "r000003"}


def test_a_third_site_brings_it_from_both(tmp_path: Path) -> None:
    with places(tmp_path, ("a", "b", "c"), {}) as sites:
        saved(sites, 0)
        with sites.open("c") as repository:
            assert not repository.replicate().troubles
            sites.cut.update("ab")
        with sites.open("c") as repository:
            assert is_right(repository.run("run").latest())


def test_packs_at_a_site_that_is_silent_are_waited_for_and_not_called_damaged(
    tmp_path: Path,
) -> None:
    with places(tmp_path, ("a", "b", "c"), {}) as sites:
        saved(sites, 0)
        sites.cut.add("b")
        with sites.open("c") as repository:
            told = [t.error for t in repository.replicate().troubles if t.snapshot]
        assert [type(error) for error in told] == [Unavailable]
        sites.cut.clear()
        with sites.open("c") as repository:
            assert not repository.replicate().troubles
            assert is_right(repository.run("run").latest())


def test_collections_at_both_sites_take_nothing_of_it(sites: Places) -> None:
    saved(sites, 0, 1)
    for name in ("b", "a", "b"):
        with sites.open(name) as repository:
            repository.gc()
    with sites.open("b") as repository:
        assert is_right(repository.run("run").latest(elsewhere=True))
        assert is_right(repository.run("run")[0])


def test_verification_misses_nothing_that_another_site_holds(sites: Places) -> None:
    saved(sites, 0)
    with sites.open("a") as repository:
        assert repository.verify(level="data").problems == ()
        (home,) = [key for key in packs_of(sites, "a") if "-r000001-" in key]
        sites.store("a").delete([home])
        problems = repository.verify().problems
    assert {problem.key for problem in problems} == {home}


def test_what_did_not_change_is_not_written_again_at_either_site(sites: Places) -> None:
    with job(sites) as ranked:
        ranked.save(0, states(0))
        before = {name: len(list(sites.store(name).list("packs/"))) for name in "ab"}
        (first, *_) = ranked.save(1, states(1))
    assert first is not None
    assert first.entry.bytes_written < 0.6 * first.entry.bytes_logical
    assert all(len(list(sites.store(name).list("packs/"))) > before[name] for name in "ab")
    with sites.open("b") as repository:
        assert is_right(repository.run("run").latest(elsewhere=True))


def test_ranks_away_from_home_use_no_packs_of_other_runs(sites: Places) -> None:
    with job(sites, ("a",) * 4, run="other") as ranked:
        ranked.save(0, states(0))
    with sites.open("b") as repository:
        repository.replicate()
    with sites.open("a") as repository:
        other = repository.run("other").latest()
        with job(sites, bases=[other]) as ranked:
            (saved_first, *_) = ranked.save(0, states(0))
    assert saved_first is not None
    assert 0.4 < saved_first.entry.bytes_written / saved_first.entry.bytes_logical < 0.7
    with sites.open("b") as repository:
        assert is_right(repository.run("run").latest(elsewhere=True))


def test_retention_at_home_waits_for_what_is_not_complete(sites: Places) -> None:
    with job(sites, keep=fwstore.Keep(last=1)) as ranked:
        ranked.save(0, states(0))
        with sites.open("a") as repository:
            repository.replicate()
        for step in (1, 2, 3):
            ranked.save(step, states(step))
    assert steps(sites, "a", elsewhere=True) == [0, 3]
    with sites.open("a") as repository:
        repository.replicate()
        repository.gc(run="run", keep=fwstore.Keep(last=1))
    assert steps(sites, "a") == [3]


def test_holds_end_when_home_has_all_and_a_later_save_is_held(sites: Places) -> None:
    saved(sites, 0, 1)
    held = fresh_log(sites.store("b")).fold.holds
    assert len(held) == 2
    for name in ("b", "a", "b"):
        with sites.open(name) as repository:
            assert not repository.replicate().troubles
    (left,) = fresh_log(sites.store("b")).fold.holds.values()
    assert left.save == 2
    # Another job: nobody uses packs of the first one again by way of its holds.
    saved(sites, 2, ranks=("a",))
    with sites.open("b") as repository:
        assert not repository.replicate().troubles
    assert not fresh_log(sites.store("b")).fold.holds


def test_nothing_is_left_behind_when_its_run_is_deleted(sites: Places) -> None:
    saved(sites, 0, 1)
    for name in ("a", "b"):
        with sites.open(name) as repository:
            assert not repository.replicate().troubles
            repository.run("run").delete()
            repository.gc()
            left = unneeded(repository)
        assert not [key for key in left if not key.startswith("sites/") and "/_heard/" not in key]


def test_a_newer_job_at_the_other_site_fences_it_everywhere(sites: Places) -> None:
    with job(sites) as ranked:
        ranked.save(0, states(0))
        with sites.open("b") as repository, repository.run("run").writer() as writer:
            assert writer.base is not None
            assert writer.base.step == 0
            assert is_right(writer.base)
            assert all(isinstance(each, Fenced) for each in ranked.try_save(1, states(1)))
            writer.save(5, arrays(5)).result()
    assert steps(sites, "b", elsewhere=True) == [0, 5]


def test_a_site_that_is_silent_fails_the_save_and_the_run_goes_on(sites: Places) -> None:
    with job(sites) as ranked:
        ranked.save(0, states(0))
        sites.cut.add("b")
        assert all(isinstance(each, Unavailable) for each in ranked.try_save(1, states(1)))
        sites.cut.clear()
        assert all(ranked.save(2, states(2)))
    assert steps(sites, "a", elsewhere=True) == [0, 2]
    with sites.open("a") as repository:
        assert is_right(repository.run("run").latest(elsewhere=True))


def test_a_job_continues_the_newest_of_which_every_part_answers(sites: Places) -> None:
    saved(sites, 0)
    with sites.open("a") as repository:
        repository.replicate()
    saved(sites, 1)
    sites.cut.add("b")
    with sites.open("a") as repository, repository.run("run").writer() as writer:
        assert writer.base is not None
        assert writer.base.step == 0
        assert is_right(writer.base)


def test_ranks_of_another_world_continue_it_at_both_sites(sites: Places) -> None:
    saved(sites, 0)
    with job(sites, ("b", "b", "a")) as ranked:
        for writer in ranked.writers:
            assert writer.base is not None
            assert is_right(writer.base)
        ranked.save(1, states(1, 3))
    for name in ("a", "b"):
        with sites.open(name) as repository:
            assert is_right(repository.run("run").latest(elsewhere=True))


def test_parts_of_orchestrators_may_be_written_at_several_sites(sites: Places) -> None:
    with sites.open("a") as home, sites.open("b") as away:
        ticket = home.run("run").begin_save(7)
        parts = [
            repository.run("run").write_part(ticket, {("trained",): state["trained"]}, rank=rank)
            for rank, (repository, state) in enumerate(zip((home, away), states(7, 2), strict=True))
        ]
        checkpoint = home.run("run").commit_save(ticket, parts, {})
        assert np.array_equal(checkpoint.tensors["trained"][:], arrays(7)["trained"])
    assert ranks_at(sites, "b") == {"r000001"}


def test_a_rank_whose_topology_lacks_the_home_is_told(sites: Places, tmp_path: Path) -> None:
    alone = fwstore.open(sites.urls["b"])
    repositories = [sites.open("a"), alone]
    with pytest.raises(fwstore.FwstoreError, match="not shared by all ranks"):
        ThreadJob("", 2, repositories=repositories)


class Death:
    """The end of one process at an operation on any store."""

    def __init__(self, number: int, fault: Fault) -> None:
        self._number, self._fault = number, fault
        self._count = 0

    @property
    def came(self) -> bool:
        """Whether the process got so far."""
        return self._count >= self._number

    def __call__(self, operation: Operation) -> Fault | None:
        self._count += 1
        if self._count == self._number:
            return self._fault
        return "crash" if self.came else None

    def open(self, url: str, runtime: Runtime, options: object = None) -> Store:
        """A store as that process has it."""
        return FaultyStore(open_store(url, runtime), self)


def saved_in_parts(sites: Places, home: fwstore.Repository, step: int) -> None:
    """Save a step of which one part is written at each site."""
    with sites.open("b") as away:
        ticket = home.run("run").begin_save(step)
        parts = [
            repository.run("run").write_part(
                ticket, {(name,): state[name] for name in ("trained", "frozen")}, rank=rank
            )
            for rank, (repository, state) in enumerate(
                zip((home, away), states(step, 2), strict=True)
            )
        ]
    home.run("run").commit_save(ticket, parts, skeleton(step))


def skeleton(step: int) -> dict[str, Any]:
    slots = {name: fwstore.TensorSlot("numpy") for name in ("trained", "frozen")}
    return {**slots, "step": step}


def settled(sites: Places, acknowledged: set[int], possible: set[int]) -> None:
    """What new processes find, whatever they do first; in the end nothing is left behind."""
    for name in ("b", "a"):
        with sites.open(name) as repository:
            repository.gc()
    for name in ("a", "b", "a"):
        with sites.open(name) as repository:
            assert not repository.replicate().troubles
            repository.gc()
    for name in ("a", "b"):
        with sites.open(name) as repository:
            found = repository.run("run").checkpoints()
            assert acknowledged <= {c.step for c in found} <= possible
            assert all(is_right(checkpoint) for checkpoint in found)
            assert repository.verify(level="data").problems == ()


@pytest.mark.parametrize("fault", ["crash", "crash_during"])
def test_it_survives_the_death_of_its_job_at_every_operation(tmp_path: Path, fault: Fault) -> None:
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        with places(folder, ("a", "b"), {}) as sites:
            with sites.open("a") as home:
                saved_in_parts(sites, home, 0)
            death = Death(number, fault)
            with (
                mock.patch("fwstore.repository.open_store", death.open),
                mock.patch("fwstore.wan.sites.open_store", death.open),
            ):
                acknowledged = {0}
                with suppress(Crash):
                    saved_in_parts(sites, fwstore.open(sites.file, site="a", limits=QUICK), 1)
                    acknowledged.add(1)
            settled(sites, acknowledged, {0, 1})
            saved(sites, 2, ranks=("b", "a"))
            settled(sites, {*acknowledged, 2}, {0, 1, 2})
        if not death.came:
            return
