"""Starts, watches and kills training jobs of several ranks.

Invariant: when `run_job` returns or raises, no process that it started is alive.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One start of the training job.

    Attributes:
        store: URL of the store.
        run: Name of the run.
        ranks: Processes.
        steps: Train up to this step.
        every: Steps between saves.
        stands: After which steps it stands still until which file is there.
        environment: Added to the environment of every rank.
    """

    store: str
    run: str
    ranks: int
    steps: int
    every: int
    stands: Mapping[int, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Return the command of one rank."""
        options = ["--store", self.store, "--run", self.run]
        options += ["--steps", str(self.steps), "--every", str(self.every)]
        for step, path in self.stands.items():
            options += ["--stand", f"{step}={path}"]
        return [sys.executable, "-m", "fwstore_demo.train", *options]


class JobFailed(RuntimeError):
    """A rank ended with an error; its output is in the message."""


def run_job(job: Job, on_event: Callable[[Event], bool]) -> list[Event]:
    """Run a job to its end, or until the callback asks to kill it with SIGKILL.

    Args:
        job: What to run.
        on_event: Called with every event of rank 0; True kills all ranks at once.

    Returns:
        The events of rank 0.

    Raises:
        JobFailed: A rank failed without having been killed.
    """
    processes = _start(job)
    events: list[Event] = []
    killed = False
    try:
        assert processes[0].stdout is not None
        for line in processes[0].stdout:
            event = json.loads(line)
            events.append(event)
            if on_event(event):
                killed = True
                break
        if killed:
            _kill(processes)
        outputs = [process.communicate() for process in processes]
    finally:
        _kill(processes)
    if not killed and any(process.returncode for process in processes):
        raise JobFailed("\n".join(error[-4000:] for _, error in outputs))
    return events


def _start(job: Job) -> list[subprocess.Popen[str]]:
    base = {
        **os.environ,
        **job.environment,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    base["WORLD_SIZE"] = str(job.ranks)
    return [
        subprocess.Popen(
            job.command(),
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(job.ranks)
    ]


def _kill(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
