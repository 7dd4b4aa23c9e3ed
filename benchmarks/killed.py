"""What does a copy cost that was killed half-way? ``python -m benchmarks.killed``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fwstore
from benchmarks.common.bed import Bed, Wire, make_bed
from benchmarks.common.gateway import warm_gateway
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.movers import COPIERS, FLOOR, MOVERS, OURS
from benchmarks.movers.base import half_changed, same_bytes

LINK = 300e6, 0.020
KILLED_AT = 0.5
# What the link takes in before a piece is out, and the requests.
LINE_MB = 8
_LOOK_S = 0.02
_PART_MB = fwstore.Limits().part_bytes / 1e6

QUESTION = Question(
    name="killed",
    title="What does a copy cost that was killed half-way?",
    subjects=(OURS, FLOOR, *COPIERS),
    floors=(FLOOR,),
    figures=(
        Figure("again_mb", "sent again after the kill", "MB"),
        Figure("strangers", "objects at the target that the source does not have", ""),
    ),
    marks=(Mark(OURS, "again_mb", _PART_MB + LINE_MB), Mark(OURS, "strangers", 0)),
    gigabytes=0.3,
    repeats=5,
    note=(
        "One checkpoint of random bytes over 300 Mbit/s and 20 ms. SIGKILL once half of it has crossed, then the same command "
        f"again. The mark is one part of a pack, {_PART_MB:.0f} MB, and {LINE_MB} MB of requests and of what is on the line."
    ),
)


def measure(trial: Trial) -> Figures:
    """Kill a copy, repeat it, and compare what crossed with what there was."""
    mover = MOVERS[trial.subject].make(trial.folder)
    state = half_changed([], trial.size_bytes, np.random.default_rng(1))
    with warm_gateway() as gateway, make_bed(gateway, *LINK) as (bed, wire):
        mover.save(bed, state, 0)
        before = wire.passed()
        _kill_at(trial, bed, wire, lambda: wire.passed() - before > KILLED_AT * trial.size_bytes)
        mover.copy(bed)
        sent = wire.passed() - before
        if not same_bytes(mover.newest(bed), state, 0):
            raise SystemExit(f"{trial.subject} did not bring what was saved")
        return {
            "again_mb": (sent - trial.size_bytes) / 1e6,
            "strangers": float(mover.strangers(bed)),
        }


def _kill_at(trial: Trial, bed: Bed, wire: Wire, is_time: Callable[[], bool]) -> None:
    """Begin to copy in a process, and kill it with all that it started once it is time."""
    command = [sys.executable, "-m", "benchmarks.movers", trial.subject, str(trial.folder)]
    process = subprocess.Popen(
        [*command, bed.as_json()],
        start_new_session=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    while not is_time():
        if process.poll() is not None:
            raise SystemExit(f"{trial.subject} ended before it was killed")
        time.sleep(_LOOK_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    run(QUESTION)
