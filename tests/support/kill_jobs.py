"""Jobs of several processes that are killed or stopped at random moments, and what they were promised.

Every process is forked from a warm server. A job resumes the run, checks what it loads, saves step after step
and notes every step that `result` acknowledged in an oracle outside of the store. No process ever ends by
itself in an error: that would be noted too, and fails the test.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fwstore
from support.oracle import Oracle, frozen, same, trained

KEEP = fwstore.Keep(last=3, every_steps=10)
LIMITS = fwstore.Limits(commit_timeout_s=60.0, threads=2)
ROWS, COLUMNS = 509, 1024  # 2 MiB in a number of rows that no world divides
_PIPELINED = 2


@dataclass(frozen=True)
class Place:
    """Where the processes of one kill loop meet.

    Attributes:
        root: A directory of the loop, which holds the store.
    """

    root: Path

    @property
    def url(self) -> str:
        return str(self.root / "store")

    @property
    def acknowledged(self) -> Oracle:
        """One line `step` for every acknowledgement of a rank."""
        return Oracle(self.root / "acknowledged")

    @property
    def resumed(self) -> Oracle:
        """One line `job rank` for every writer that was made."""
        return Oracle(self.root / "resumed")

    @property
    def endings(self) -> Oracle:
        """One line `job rank ending` for every process that was not killed: "done" or "fenced"."""
        return Oracle(self.root / "endings")

    @property
    def failures(self) -> Oracle:
        """The traceback of every process that failed."""
        return Oracle(self.root / "failures")

    def acknowledged_steps(self) -> set[int]:
        return {int(line) for line in self.acknowledged.lines()}

    def check_failures(self) -> None:
        """Fail if a process has failed.

        Raises:
            AssertionError: Its traceback.
        """
        lines = self.failures.lines()
        assert not lines, "\n".join(lines)


@dataclass(frozen=True)
class Member:
    """One process of one job."""

    place: Place
    job: str
    rank: int
    world_size: int


Main = Callable[[Member], None]


def run_member(main: Main, member: Member) -> None:
    """Run one process of a job; however it ends but by a kill is noted."""
    os.environ.update(
        FWSTORE_JOB=member.job, RANK=str(member.rank), WORLD_SIZE=str(member.world_size)
    )
    try:
        main(member)
        member.place.endings.note(f"{member.job} {member.rank} done")
    except fwstore.Fenced:
        # A newer job has taken the run over: the proper end of this one.
        member.place.endings.note(f"{member.job} {member.rank} fenced")
    except BaseException:  # noqa: BLE001 - whatever it is, the loop must hear of it
        member.place.failures.note(f"{member}\n{traceback.format_exc()}")


def array_job(member: Member) -> None:
    """Save numpy arrays, one of them divided over the ranks, until killed or done."""
    place, rng = member.place, random.Random(f"{member.job}")
    repository = fwstore.open(place.url, limits=LIMITS)
    with repository, repository.run("job").writer(keep=KEEP) as writer:
        start = 0
        if writer.base is not None:
            check_share(writer.base, member)
            start = writer.base.step + 1
        place.resumed.note(f"{member.job} {member.rank}")
        pending: list[fwstore.SaveHandle] = []
        for step in range(start, start + rng.randrange(2, 12)):
            pending.append(writer.save(step, share_of(step, member), metrics={"loss": 1.0}))
            while len(pending) >= _PIPELINED:
                acknowledge(place, pending.pop(0))
        for handle in pending:
            acknowledge(place, handle)


def acknowledge(place: Place, handle: fwstore.SaveHandle) -> None:
    """Wait for a save and note that it was promised."""
    if handle.result() is not None:
        place.acknowledged.note(str(handle.step))


def share_of(step: int, member: Member) -> dict[str, Any]:
    """What a rank holds of the state of a step: replicas, and its rows of a divided tensor."""
    layout = fwstore.Layout(
        (member.world_size,), (fwstore.Split(0),), tuple(range(member.world_size))
    )
    whole = trained(step, ROWS, COLUMNS)
    boxes = layout.boxes(whole.shape, member.rank)
    pieces = tuple(fwstore.Piece(box, whole[box.slices()].copy()) for box in boxes)
    return {
        "frozen": frozen(ROWS, COLUMNS),
        "replicated": trained(step + 10**6, 61, 1024),
        "divided": fwstore.Shard("float32", whole.shape, pieces, layout),
        "step": step,
    }


def whole_of(step: int) -> dict[str, Any]:
    """The state of a step as one process loads it."""
    return {
        "frozen": frozen(ROWS, COLUMNS),
        "replicated": trained(step + 10**6, 61, 1024),
        "divided": trained(step, ROWS, COLUMNS),
        "step": step,
    }


def check_share(checkpoint: fwstore.Checkpoint, member: Member) -> None:
    """Load a checkpoint into what this rank holds, and compare."""
    wanted, found = share_of(checkpoint.step, member), share_of(checkpoint.step + 1, member)
    found["frozen"][:] = 0
    loaded = checkpoint.load(into=found)
    for key in ("frozen", "replicated", "step"):
        assert same(loaded[key], wanted[key]), (checkpoint, key)
    for left, right in zip(found["divided"].pieces, wanted["divided"].pieces, strict=True):
        assert np.array_equal(left.array, right.array), checkpoint


def collect_forever(member: Member) -> None:
    """Free what retention gave up, again and again, beside jobs and readers."""
    with fwstore.open(member.place.url, limits=LIMITS) as repository:
        while True:
            # There is no run yet, or jobs change it faster than it can be marked.
            with suppress(fwstore.NotFound, fwstore.Conflict):
                repository.gc(keep=KEEP)
            time.sleep(0.05)
