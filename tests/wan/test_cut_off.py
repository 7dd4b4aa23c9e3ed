"""A job that is cut off from its witnesses: it goes on, or stops after a while, as the topology says."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import fwstore
from fwstore.base.errors import Fenced, Unavailable
from fwstore.base.topology import Topology
from fwstore.checkpoint.coordinator import Coordinator
from fwstore.sched import Runtime
from fwstore.wan.sites import Sites
from fwstore.wan.vigil import Vigil
from support.coordinators import Board, SharedCoordinator, together
from support.lineages import TestClock, make_runtime
from support.topologies import Places, places

AFTER_S = 100.0
STOP = 'cut_off = "stop"\ncut_off_after = "0.2s"'


@pytest.fixture
def trains(tmp_path: Path) -> Iterator[Places]:
    """Three sites that train and vote."""
    with places(tmp_path, ("a", "b", "c"), {}) as sites, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="site . is silent|the job at . is cut off")
        yield sites


@pytest.fixture
def runtime() -> Runtime:
    """Time that passes only when a test lets it, and a little of it for a request."""
    made = make_runtime(3)
    return replace(made, limits=replace(made.limits, request_timeout_s=0.1, site_timeout_s=0.1))


def vigil_of(sites: Places, runtime: Runtime) -> Vigil:
    topology = Topology.load(sites.file)
    known = Sites(topology, topology.local("a"), sites.store("a"), runtime, None)
    return Vigil(known, known.join(), runtime, AFTER_S)


def later(runtime: Runtime, seconds: float) -> None:
    assert isinstance(runtime.clock, TestClock)
    runtime.clock.now += seconds


def test_a_job_whose_witnesses_are_silent_for_too_long_is_stopped_for_good(
    trains: Places, runtime: Runtime
) -> None:
    vigil = vigil_of(trains, runtime)
    trains.cut = {"b", "c"}
    for _ in range(5):
        later(runtime, 25)
        vigil.check()
    with pytest.raises(Fenced, match=r"cut off from a majority.*b, c silent.*nothing more"):
        vigil.check()
    # Whoever has taken the run meanwhile may have gone by now.
    trains.cut = set()
    later(runtime, 1000)
    with pytest.raises(Fenced, match="cut off"):
        vigil.check()


def test_a_majority_is_enough(trains: Places, runtime: Runtime) -> None:
    vigil = vigil_of(trains, runtime)
    trains.cut = {"c"}
    for _ in range(20):
        later(runtime, 60)
        vigil.check()


def test_who_answers_again_in_time_ends_it(trains: Places, runtime: Runtime) -> None:
    vigil = vigil_of(trains, runtime)
    for _ in range(4):
        trains.cut = {"b", "c"}
        for _ in range(4):
            later(runtime, 25)
            vigil.check()
        trains.cut = {"b"}
        later(runtime, 25)
        vigil.check()


def test_one_silent_moment_after_a_long_pause_stops_nobody(
    trains: Places, runtime: Runtime
) -> None:
    """Nobody was asked between two saves that are hours apart, so nothing is known of that time."""
    vigil = vigil_of(trains, runtime)
    trains.cut = {"b", "c"}
    later(runtime, 50 * AFTER_S)
    vigil.check()
    vigil.check()
    trains.cut = set()
    later(runtime, 50 * AFTER_S)
    vigil.check()
    vigil.check()


def test_witnesses_are_asked_now_and_then_only(trains: Places, runtime: Runtime) -> None:
    vigil = vigil_of(trains, runtime)
    trains.asked.clear()
    for _ in range(100):
        later(runtime, 1)
        vigil.check()
    # Four times in the time that it may be cut off: who it is, and whether it knows of a retirement.
    assert trains.asked == {"b": 8, "c": 8}


def test_a_witness_that_was_wiped_does_not_stand_by_a_job(trains: Places, runtime: Runtime) -> None:
    vigil = vigil_of(trains, runtime)
    trains.wipe("b")
    trains.cut = {"c"}
    for _ in range(5):
        later(runtime, 25)
        vigil.check()
    with pytest.raises(Fenced):
        vigil.check()


def test_a_witness_that_was_silent_at_the_start_may_come(trains: Places, runtime: Runtime) -> None:
    vigil_of(trains, runtime)
    trains.cut = {"c"}
    vigil = vigil_of(trains, runtime)
    trains.cut = {"b"}
    for _ in range(20):
        later(runtime, 60)
        vigil.check()


def test_a_job_whose_site_was_retired_is_stopped_when_it_asks(
    trains: Places, runtime: Runtime
) -> None:
    vigil = vigil_of(trains, runtime)
    with trains.open("b") as repository:
        repository.sites.join()
        trains.cut = {"a"}
        repository.sites.lose("a", Unavailable("test"))
        repository.retire_site("a", reason="burnt down")
    trains.cut = set()
    later(runtime, 25)
    vigil.check()
    with pytest.raises(Fenced, match="was retired: burnt down"):
        vigil.check()


def save_until_refused(repository: fwstore.Repository, writer: fwstore.Writer) -> list[int]:
    """Save again and again, for a while at most; return the steps that were committed."""
    clock, done = repository.runtime.clock, list[int]()
    end = clock.monotonic() + 20
    while clock.monotonic() < end:
        step = len(done)
        try:
            writer.save(step, {"w": np.arange(4.0) + step}).result()
        except Fenced:
            return done
        done.append(step)
        clock.sleep(0.05)
    raise AssertionError("nothing was refused")


def test_saves_are_refused_once_a_job_was_cut_off_for_too_long(trains: Places) -> None:
    trains.write(STOP)
    with trains.open("a") as repository, repository.run("run").writer() as writer:
        trains.cut = {"b", "c"}
        done = save_until_refused(repository, writer)
        assert done
        trains.cut = set()
        with pytest.raises(Fenced, match="cut off"):
            writer.save(1000, {"w": np.arange(4.0)}).result()
        assert [c.step for c in repository.run("run").checkpoints()] == done
    # It is the writer that has stopped: the next one has the witnesses.
    with trains.open("a") as repository, repository.run("run").writer() as writer:
        writer.save(1000, {"w": np.arange(4.0)}).result()


def test_every_rank_is_told(trains: Places) -> None:
    trains.write(STOP)
    board = Board()

    def rank(number: int) -> str:
        channel: Coordinator = SharedCoordinator(board, number, 2)
        with (
            trains.open("a") as repository,
            repository.run("run").writer(coordinator=channel) as writer,
        ):
            for step in range(200):
                trains.cut = {"b", "c"}
                try:
                    writer.save(step, {"x": np.arange(3.0)}).result()
                except Fenced as error:
                    return error.message
                repository.runtime.clock.sleep(0.05)
        return ""

    told = together([partial(rank, 0), partial(rank, 1)])
    assert told[0] == told[1]
    assert "cut off" in told[0]


def test_without_a_word_a_job_goes_on_and_asks_nobody(trains: Places) -> None:
    trains.write('cut_off = "continue"')
    with trains.open("a") as repository, repository.run("run").writer() as writer:
        trains.cut = {"b", "c"}
        trains.asked.clear()
        for step in range(10):
            writer.save(step, {"w": np.arange(4.0)}).result()
            repository.runtime.clock.sleep(0.05)
        assert trains.asked == {}
