"""Starts jobs and kills them at random moments, and holds the run against what was acknowledged.

Invariant: moments, world sizes and victims come from a seed; when a loop ends, no process of it is alive.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

import fwstore
from support.kill_jobs import KEEP, Main, Member, Place, collect_forever, run_member
from support.ranks import fork

_RESUMED_S = 120.0


@dataclass
class KillLoop:
    """A run that many jobs extend, each killed before it is done.

    Attributes:
        place: Where.
        main: What one process of a job does.
        is_right: Says whether a checkpoint holds, bit by bit, what its step determines.
        worlds: Numbers of processes of the jobs, in turn.
        longest_s: A job is killed at most so long after its start, or after it has resumed.
        seed: Of everything random but time itself.
    """

    place: Place
    main: Main
    is_right: Callable[[fwstore.Checkpoint], bool]
    worlds: Sequence[int]
    longest_s: float
    seed: int
    _alive: list[BaseProcess] = field(default_factory=list)
    _collector: BaseProcess | None = None

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def run(self, jobs: int, *, check_every: int) -> None:
        """Start and kill so many jobs, a garbage collector beside them, and check the run now and then."""
        try:
            for number, world_size in zip(range(jobs), itertools.cycle(self.worlds)):
                self._renew_collector()
                self._start(f"job-{number}", world_size)
                if number % check_every == check_every - 1:
                    self.check()
            self._kill(self._alive)
        finally:
            for process in self._alive:
                process.kill()
            self._kill_collector()
        self.place.check_failures()

    def check(self) -> None:
        """Look at the run from outside: nothing that was promised is lost, nothing on offer is torn.

        Raises:
            AssertionError: It is.
        """
        self.place.check_failures()
        promised = self.place.acknowledged_steps()
        if not promised:
            return
        with fwstore.open(self.place.url) as repository:
            found = repository.run("job").checkpoints()
            newest = found[-1].step
            assert newest >= max(promised)
            assert kept(promised, newest) <= {checkpoint.step for checkpoint in found}
            for checkpoint in found:
                # Retention may take one away while it is being loaded; then it says so.
                with suppress(fwstore.Expired):
                    assert self.is_right(checkpoint), checkpoint

    def finish(self) -> None:
        """Run one more job of one process to its end."""
        last = fork(run_member, self.main, Member(self.place, "last", 0, 1))
        last.join()
        assert last.exitcode == 0
        self.place.check_failures()

    def _start(self, job: str, world_size: int) -> None:
        members = [Member(self.place, job, rank, world_size) for rank in range(world_size)]
        older, self._alive = (
            self._alive,
            [fork(run_member, self.main, member) for member in members],
        )
        if self._rng.random() < 0.6:
            self._wait_resumed(job)
        time.sleep(self._rng.uniform(0.001, self.longest_s))
        self._kill(older)
        # One job in five meets its successor alive.
        if self._rng.random() < 0.8:
            self._kill(self._alive)

    def _wait_resumed(self, job: str) -> None:
        deadline = time.monotonic() + _RESUMED_S
        while not any(line.split()[0] == job for line in self.place.resumed.lines()):
            self.place.check_failures()
            if not any(process.is_alive() for process in self._alive):
                return
            assert time.monotonic() < deadline, f"{job} did not resume in time"
            time.sleep(0.002)

    def _kill(self, processes: list[BaseProcess]) -> None:
        """Kill the processes of a job, one after the other as a scheduler does."""
        self._rng.shuffle(processes)
        for process in processes:
            process.kill()
            time.sleep(self._rng.choice((0.0, 0.0, 0.02)))
        for process in processes:
            process.join()
        processes.clear()

    def _renew_collector(self) -> None:
        if self._collector is None or self._rng.random() < 0.1:
            self._kill_collector()
            self._collector = fork(run_member, collect_forever, Member(self.place, "gc", 0, 1))

    def _kill_collector(self) -> None:
        if self._collector is not None:
            self._collector.kill()
            self._collector.join()


def kept(steps: set[int], newest: int) -> set[int]:
    """Return which of some steps `KEEP` never gives up, in a run that has saved every step up to the newest."""
    assert KEEP.last is not None
    assert KEEP.every_steps is not None
    return {step for step in steps if step > newest - KEEP.last or step % KEEP.every_steps == 0}
