"""Evaluation reads while training goes on, in threads and processes of their own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Keep
from fwstore.sched import ThreadScheduler

PATIENCE_S = 60.0


def make_state(step: int) -> dict[str, Any]:
    return {"w": np.full(30_000, float(step)), "step": step}


def is_whole(checkpoint: fwstore.Checkpoint) -> bool:
    found = checkpoint.load()
    return found["step"] == checkpoint.step and bool((found["w"] == checkpoint.step).all())


@pytest.mark.slow
def test_a_watcher_sees_every_checkpoint_whole_while_they_are_made(tmp_path: Path) -> None:
    url = str(tmp_path)
    steps, seen = 15, list[int]()
    with fwstore.open(url) as training, fwstore.open(url) as evaluation:

        def evaluate() -> None:
            for checkpoint in evaluation.run("run").watch(every=True, poll=0.01):
                assert is_whole(checkpoint)
                seen.append(checkpoint.step)
                if checkpoint.step == steps - 1:
                    return

        scheduler = ThreadScheduler(1)
        watching = scheduler.spawn("watch", evaluate)
        with training.run("run").writer() as writer:
            for step in range(steps):
                writer.save(step, make_state(step))
        watching.result(PATIENCE_S)
    assert seen == list(range(steps))


@pytest.mark.slow
def test_a_watcher_and_retention_get_along(tmp_path: Path) -> None:
    """What is taken away while it is evaluated is `Expired`, never wrong; the newest is always seen."""
    url = str(tmp_path)
    whole: list[int] = []
    expired: list[int] = []
    with fwstore.open(url) as training, fwstore.open(url) as evaluation:

        def evaluate() -> None:
            for checkpoint in evaluation.run("run").watch(poll=0.001):
                try:
                    assert is_whole(checkpoint)
                    whole.append(checkpoint.step)
                except fwstore.Expired:
                    expired.append(checkpoint.step)
                if checkpoint.step == 24:
                    return

        scheduler = ThreadScheduler(1)
        watching = scheduler.spawn("watch", evaluate)
        with training.run("run").writer(keep=Keep(last=1)) as writer:
            for step in range(25):
                writer.save(step, make_state(step)).result(PATIENCE_S)
        watching.result(PATIENCE_S)
        assert [c.step for c in training.run("run").checkpoints()] == [24]
    assert whole[-1] == 24
    assert sorted({*whole, *expired}) == sorted([*whole, *expired])


@pytest.mark.slow
def test_waiting_for_a_step_of_another_process(tmp_path: Path) -> None:
    url = str(tmp_path)
    saved = threading.Event()

    def train() -> None:
        with fwstore.open(url) as repo, repo.run("run").writer() as writer:
            for step in range(3):
                writer.save(step, make_state(step)).result(PATIENCE_S)
            saved.set()

    scheduler = ThreadScheduler(1)
    with fwstore.open(url) as repo:
        training = scheduler.spawn("train", train)
        assert is_whole(repo.run("run").wait(2, timeout=PATIENCE_S, poll=0.01))
        training.result(PATIENCE_S)
        assert saved.is_set()
        with pytest.raises(fwstore.Unavailable, match="step 9"):
            repo.run("run").wait(9, timeout=0)
