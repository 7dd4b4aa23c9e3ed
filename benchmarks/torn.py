"""Is the newest checkpoint at another site ever torn? ``python -m benchmarks.torn``."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common.bed import Bed, make_bed
from benchmarks.common.gateway import warm_gateway
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.movers import COPIERS, MOVERS, OURS
from benchmarks.movers.base import half_changed, same_bytes
from benchmarks.peers.floors import Bytes

LINK = 300e6, 0.020
EVERY_S = 5.0
TRIES = 200
PAUSE_S = 0.2

QUESTION = Question(
    name="torn",
    title="Is the newest checkpoint at another site ever torn?",
    subjects=(OURS, *COPIERS),
    figures=(
        Figure("torn", f"torn, of {TRIES} that were loaded", ""),
        Figure("behind_s", "age of what was loaded, median"),
    ),
    marks=(Mark(OURS, "torn", 0),),
    gigabytes=0.05,
    repeats=1,
    note=(
        f"A writer commits every {EVERY_S:.0f} s, the copier runs again and again, and a reader at the target loads what is newest "
        "there, time after time. With the tools that is the highest step of which there is a file. Torn is what is not "
        "byte for byte what was saved at its step."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save, copy and read side by side."""
    mover = MOVERS[trial.subject].make(trial.folder)
    saved: dict[int, tuple[float, list[Bytes]]] = {}
    random = np.random.default_rng(2)
    over = threading.Event()

    def save(bed: Bed) -> None:
        while not over.wait(EVERY_S):
            state = half_changed([], trial.size_bytes, random)
            saved[len(saved)] = time.perf_counter(), state
            mover.save(bed, state, len(saved) - 1)

    def copy(bed: Bed) -> None:
        while not over.is_set():
            mover.copy(bed)

    torn = 0
    ages: list[float] = []
    with (
        warm_gateway() as gateway,
        make_bed(gateway, *LINK) as (bed, _),
        ThreadPoolExecutor() as pool,
    ):
        works = [pool.submit(work, bed) for work in (save, copy)]
        try:
            while len(ages) < TRIES and not any(work.done() for work in works):
                time.sleep(PAUSE_S)
                if (found := mover.newest(bed)) is not None:
                    at, state = saved[found[0]]
                    ages.append(time.perf_counter() - at)
                    torn += not same_bytes(found, state, found[0])
        finally:
            over.set()
        for work in works:
            work.result()
    return {"torn": float(torn), "behind_s": float(np.median(ages))}


if __name__ == "__main__":
    run(QUESTION)
