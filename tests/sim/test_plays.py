"""Two thousand plays: no seed breaks a promise, each repeats itself, and every kind of event is among them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from sim.baton import Baton, Task
from sim.plays import play
from sim.shrink import check
from sim.weather import RATES
from support.faults import Crash
from support.figures import Figures

SEEDS, BLOCK = 2000, 100


@pytest.mark.slow
@pytest.mark.parametrize("block", range(SEEDS // BLOCK))
def test_no_seed_breaks_a_promise(block: int, soak: int, figures: Figures) -> None:
    tally: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    counts = {"seeds": BLOCK * soak, "simulated hours": 0.0, "store operations": 0}
    for turn in range(soak):
        for seed in range(BLOCK):
            world = check(play, (turn * SEEDS) + block * BLOCK + seed)
            tally += world.tally
            faults.update(kind_of(name) for name in world.weather.struck)
            counts["simulated hours"] += world.baton.now / 3600
            counts["store operations"] += len(world.trace)
    figures.note("simulator", counts)
    figures.note("simulator: faults", faults)
    figures.note("simulator: events", tally)


@pytest.mark.slow
def test_every_kind_of_event_is_among_them() -> None:
    """What never occurs is never shown to be survived."""
    awaited = {"fenced", "acked", "collected", "read", "deaths", "Fenced", "pause", *RATES}
    for seed in range(SEEDS):
        world = check(play, seed)
        awaited -= world.tally.keys() | {kind_of(name) for name in world.weather.struck}
        if not awaited:
            return
    raise AssertionError(f"never in {SEEDS} plays: {sorted(awaited)}")


def kind_of(fault: str) -> str:
    """Return the kind of a fault that struck: the last part of `job1.36.lose`, `cut` of `cut2`."""
    return fault.rpartition(".")[2].rstrip("0123456789")


def test_a_seed_repeats_itself_in_any_process() -> None:
    script = "from sim.plays import play; print(play(23).trace)"
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert f"{play(23).trace}\n" in told


def test_a_play_without_faults_has_none() -> None:
    world = play(7, frozenset())
    assert world.weather.struck == []
    assert not world.tally["deaths"]


def test_one_task_runs_at_a_time_and_the_earliest_first() -> None:
    baton, order = Baton(), []

    def waits(name: str, seconds: float) -> Task:
        def main() -> None:
            for _ in range(2):
                baton.wait(seconds)
                order.append((name, baton.now))

        return Task(name, main)

    baton.start(0.0, waits("slow", 2.0))
    baton.start(0.5, waits("fast", 1.0))
    baton.at(1.7, lambda: order.append(("event", baton.now)))
    baton.run()
    assert order == [("fast", 1.5), ("event", 1.7), ("slow", 2.0), ("fast", 2.5), ("slow", 4.0)]


def test_a_task_that_was_killed_ends_at_its_turn() -> None:
    baton, met = Baton(), []

    def main() -> None:
        try:
            baton.wait(5.0)
        except Crash:
            met.append(baton.now)
            raise

    victim = Task("victim", main)
    baton.start(0.0, victim)
    baton.at(1.0, lambda: setattr(victim, "dead", True))
    baton.run()
    assert (met, baton.failure) == ([5.0], None)
