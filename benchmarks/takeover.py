"""How soon has a job at another site its state, while bytes are missing there? ``python -m benchmarks.takeover``."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.common.bed import make_bed
from benchmarks.common.gateway import warm_gateway
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.movers import COPIERS, FLOOR, MOVERS, OURS
from benchmarks.movers.base import half_changed, same_bytes
from benchmarks.peers.floors import Bytes

LINK = 300e6, 0.020
SAVES = 2

QUESTION = Question(
    name="takeover",
    title="How soon has a job at another site its state, while bytes are missing there?",
    subjects=(OURS, FLOOR, *COPIERS),
    floors=(FLOOR,),
    figures=(
        Figure("state_s", "from the decision to go on until the newest state is in memory"),
        Figure("bytes", "bytes on the link meanwhile", "x state"),
    ),
    marks=(Mark(OURS, "state_s", 0.5, COPIERS),),
    gigabytes=0.3,
    repeats=5,
    note=(
        f"{SAVES} checkpoints of random bytes, of which half is frozen; only the first had arrived when the site was given up. "
        "The tools copy what is missing, which the job then reads from its own store; fwstore takes the run over, election "
        "included, and loads while it fetches. Link: 300 Mbit/s, 20 ms."
    ),
)


def measure(trial: Trial) -> Figures:
    """Take a run over of which only the first checkpoint has arrived."""
    mover = MOVERS[trial.subject].make(trial.folder)
    random = np.random.default_rng(SAVES)
    state: list[Bytes] = []
    with warm_gateway() as gateway, make_bed(gateway, *LINK) as (bed, wire):
        for step in range(SAVES):
            state = half_changed(state, trial.size_bytes, random)
            mover.save(bed, state, step)
            if step == 0:
                mover.copy(bed)
        before, started = wire.passed(), time.perf_counter()
        found = mover.take_over(bed)
        seconds = time.perf_counter() - started
        if not same_bytes(found, state, SAVES - 1):
            raise SystemExit(f"{trial.subject} did not bring what was saved")
        return {"state_s": seconds, "bytes": (wire.passed() - before) / trial.size_bytes}


if __name__ == "__main__":
    run(QUESTION)
