"""Starts jobs, kills or stops them at random moments, and holds the run against what was acknowledged.

A job that is stopped wakes up behind its successor's fence: a zombie, which must end by itself, and harm nothing.

Invariant: moments, world sizes and victims come from a seed; when a loop ends, no process of it is alive.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

import fwstore
from support.kill_jobs import KEEP, Main, Member, Place, collect_forever, run_member
from support.ranks import fork

_RESUMED_S = 120.0
_NAP_S = 0.002
_ENDED_S = 120.0


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
        zombies: Jobs that were stopped, and went on behind the fence of their successor.
    """

    place: Place
    main: Main
    is_right: Callable[[fwstore.Checkpoint], bool]
    worlds: Sequence[int]
    longest_s: float
    seed: int
    zombies: list[str] = field(default_factory=list)
    _alive: list[BaseProcess] = field(default_factory=list)
    _stopped: str = ""
    _collector: BaseProcess | None = None

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def run(self, kills: int, stops: int = 0, *, check_every: int) -> None:
        """Start jobs and kill or stop so many, a garbage collector beside them; check the run now and then."""
        fates = ["kill"] * kills + ["stop"] * stops
        self._rng.shuffle(fates)
        try:
            for number, (fate, world_size) in enumerate(zip(fates, itertools.cycle(self.worlds))):
                self._renew_collector()
                self._start(f"job-{number}", world_size, fate)
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

    def _start(self, job: str, world_size: int, fate: str) -> None:
        members = [Member(self.place, job, rank, world_size) for rank in range(world_size)]
        older, self._alive = (
            self._alive,
            [fork(run_member, self.main, member) for member in members],
        )
        resumed = (bool(self._stopped) or self._rng.random() < 0.6) and self._wait_resumed(job)
        time.sleep(self._rng.uniform(0.001, self.longest_s))
        if self._stopped and resumed:
            self._continue(older)
        self._kill(older)
        self._stopped = ""
        if fate == "stop":
            self._stop(job)
        elif self._rng.random() < 0.8:
            # One job in five meets its successor alive.
            self._kill(self._alive)

    def _stop(self, job: str) -> None:
        """Let the processes of a job sleep, wherever they are, while another job takes the run over."""
        self._stopped = job
        for process in self._alive:
            _signal(process, signal.SIGSTOP)

    def _continue(self, zombie: list[BaseProcess]) -> None:
        """Wake a job up behind the fence of its successor: it must end by itself, and properly."""
        for process in zombie:
            _signal(process, signal.SIGCONT)
        for process in zombie:
            process.join(_ENDED_S)
            assert process.exitcode == 0, f"{self._stopped} did not end: {process.exitcode}"
        self.place.check_failures()
        self.zombies.append(self._stopped)

    def _wait_resumed(self, job: str) -> bool:
        # Naps are counted, not hours: where the whole machine stood still, nobody was late.
        for _ in range(int(_RESUMED_S / _NAP_S)):
            if any(line.split()[0] == job for line in self.place.resumed.lines()):
                return True
            self.place.check_failures()
            if not any(process.is_alive() for process in self._alive):
                return False
            time.sleep(_NAP_S)
        raise AssertionError(f"{job} did not resume in time")

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


def _signal(process: BaseProcess, number: int) -> None:
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def kept(steps: set[int], newest: int) -> set[int]:
    """Return which of some steps `KEEP` never gives up, in a run that has saved every step up to the newest."""
    assert KEEP.last is not None
    assert KEEP.every_steps is not None
    return {step for step in steps if step > newest - KEEP.last or step % KEEP.every_steps == 0}
