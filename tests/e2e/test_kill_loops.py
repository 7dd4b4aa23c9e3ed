"""Real jobs killed, or stopped past their successor's fence, at random: nothing acknowledged is lost or torn.

`make soak` kills twenty times as many. What a job saves is a function of its step, and what was acknowledged is
noted outside of the store, so whoever comes later knows what must be there, bit by bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import fwstore
from support import kill_torch
from support.figures import Figures
from support.kill_jobs import KEEP, Place, array_job, whole_of
from support.kill_loop import KillLoop, kept
from support.oracle import same
from support.residue import unneeded

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(14400)]


def is_right(checkpoint: fwstore.Checkpoint) -> bool:
    return same(checkpoint.load(), whole_of(checkpoint.step))


def settle(loop: KillLoop) -> None:
    """All deaths are over: what was promised is there and whole, the run goes on, and the rest can be freed."""
    loop.check()
    loop.finish()
    loop.check()
    with fwstore.open(loop.place.url) as repository:
        assert repository.verify(level="data").problems == ()
        before = steps(repository)
        repository.gc(keep=KEEP)
        assert kept(before, max(before)) <= steps(repository)
        assert unneeded(repository) == set()
        assert not list(loop.place.root.glob("store/.tmp/*"))
    loop.check()


def steps(repository: fwstore.Repository) -> set[int]:
    return {checkpoint.step for checkpoint in repository.run("job").checkpoints()}


def test_jobs_of_arrays(tmp_path: Path, soak: int, figures: Figures) -> None:
    kills, stops = (100, 20) if soak == 1 else (200 * soak, 20 * soak)
    loop = KillLoop(Place(tmp_path), array_job, is_right, (1, 3, 1, 2, 4), longest_s=0.5, seed=1)
    loop.run(kills, stops, check_every=20)
    settle(loop)
    assert len(loop.place.acknowledged_steps()) > kills // 4
    assert len(loop.zombies) > stops // 2
    check_zombies(loop)
    note(figures, "kills of numpy jobs", loop, kills, stops)


def note(figures: Figures, suite: str, loop: KillLoop, kills: int, stops: int) -> None:
    counts = {
        "kills": kills,
        "zombies": stops,
        "steps acknowledged": len(loop.place.acknowledged_steps()),
    }
    figures.note(suite, counts | {"zombies behind a fence": len(loop.zombies)})


def check_zombies(loop: KillLoop) -> None:
    """Each process of a zombie ended as it should; some were really fenced."""
    lines = [line.split() for line in loop.place.endings.lines()]
    endings = [ending for job, _, ending in lines if job in loop.zombies]
    assert set(endings) <= {"done", "fenced"}
    assert endings.count("fenced") > len(loop.zombies) // 4


def test_training_jobs_under_fsdp(tmp_path: Path, soak: int, figures: Figures) -> None:
    jobs = 40 if soak == 1 else 10 * soak  # every other one has two ranks
    loop = KillLoop(
        Place(tmp_path),
        kill_torch.training_job,
        kill_torch.is_right,
        (2, 1, 2, 3),
        longest_s=1.0,
        seed=2,
    )
    loop.run(jobs - jobs // 10, jobs // 10, check_every=10)
    settle(loop)
    assert len(loop.place.acknowledged_steps()) > jobs // 2
    assert loop.zombies
    note(figures, "kills of torch jobs", loop, jobs - jobs // 10, jobs // 10)
