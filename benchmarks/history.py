"""Does a run slow down as it grows? ``python -m benchmarks.history``."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

import fwstore
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change
from benchmarks.common.trial import Figures, Trial

OURS = "fwstore sync"
SAVES = 1000
WINDOW = 25

QUESTION = Question(
    name="history",
    title="Does a run slow down as it grows?",
    subjects=(OURS,),
    figures=(
        Figure("early_s", f"save, median of the first {WINDOW}"),
        Figure("late_s", f"save, median of the last {WINDOW} of {SAVES}"),
        Figure("early_requests", "requests of an early save", ""),
        Figure("late_requests", "requests of a late save", ""),
        Figure("early_open_s", "open and find the newest, early"),
        Figure("late_open_s", "open and find the newest, late"),
    ),
    marks=(
        Mark(OURS, "late_s", 1.05, (OURS,), "early_s"),
        Mark(OURS, "late_requests", 1.05, (OURS,), "early_requests"),
    ),
    gigabytes=0.01,
    note=(
        "A small state, so that the bytes do not hide the bookkeeping; every byte changes between saves. Requests are "
        "calls of the store. The first save of a run, which also creates the site, is left out."
    ),
)


class CountingStore:
    """Passes every call on and counts it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if callable(found):
            self.calls[name] += 1
        return found


def measure(trial: Trial) -> Figures:
    """Save a thousand times."""
    state = trial.state()
    seconds, requests = [], []
    opened: list[float] = []
    with fwstore.open(trial.folder) as repository:
        counting: Any = CountingStore(repository.store)
        repository.store = counting
        with repository.run("bench").writer() as writer:
            for step in range(SAVES + 1):
                change(state)
                before, started = counting.calls.total(), time.perf_counter()
                writer.save(step, state, blocking=True)
                seconds.append(time.perf_counter() - started)
                requests.append(counting.calls.total() - before)
                if step in (WINDOW, SAVES):
                    opened.append(_open_seconds(trial))
    early, late = slice(1, 1 + WINDOW), slice(-WINDOW, None)
    return {
        "early_s": statistics.median(seconds[early]),
        "late_s": statistics.median(seconds[late]),
        "early_requests": statistics.median(requests[early]),
        "late_requests": statistics.median(requests[late]),
        "early_open_s": opened[0],
        "late_open_s": opened[1],
    }


def _open_seconds(trial: Trial) -> float:
    started = time.perf_counter()
    with fwstore.open(trial.folder) as repository:
        repository.run("bench").latest()
    return time.perf_counter() - started


if __name__ == "__main__":
    run(QUESTION)
