"""Does a run slow down as it grows? ``python -m benchmarks.history``."""

from __future__ import annotations

import statistics
import time

import fwstore
from benchmarks.common.meter import Meter, metered
from benchmarks.common.question import Figure, Mark, Point, Question
from benchmarks.common.series import run
from benchmarks.common.state import change
from benchmarks.common.trial import Figures, Trial

WINDOW = 25
SAVES = {f"fwstore, {count:,} saves": count for count in (50, 200, 1000)}
LARGEST = list(SAVES)[-1]

QUESTION = Question(
    name="history",
    title="Does a run slow down as it grows?",
    subjects=tuple(SAVES),
    figures=(
        Figure("early_s", f"save, median of the first {WINDOW}"),
        Figure("late_s", f"save, median of the last {WINDOW}"),
        Figure("early_cpu_s", f"CPU of a save, mean of the first {WINDOW}"),
        Figure("late_cpu_s", f"CPU of a save, mean of the last {WINDOW}"),
        Figure("early_requests", "requests of an early save", ""),
        Figure("late_requests", "requests of a late save", ""),
        Figure("open_s", "open and find the newest, afterwards"),
    ),
    marks=(
        Mark(LARGEST, "late_s", 1.05, (LARGEST,), "early_s"),
        Mark(LARGEST, "late_cpu_s", 1.05, (LARGEST,), "early_cpu_s"),
        Mark(LARGEST, "late_requests", 1.05, (LARGEST,), "early_requests"),
    ),
    axis="saves",
    points=tuple(Point(subject, count) for subject, count in SAVES.items()),
    gigabytes=0.01,
    note=(
        "A small state, so that the bytes do not hide the bookkeeping; every byte changes between saves. Requests are "
        "calls of the store. The first save of a run, which also creates the site, is left out."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save many times."""
    state, count = trial.state(), QUESTION.size(trial.subject)
    meter = Meter()
    seconds, processor, requests = [], [], []
    with fwstore.open(trial.folder) as repository:
        # The scheduler stays the one with threads: only the calls are counted.
        repository.store = metered(repository.store, meter)
        with repository.run("bench").writer() as writer:
            for step in range(count + 1):
                change(state)
                before = (meter.rounds, time.process_time(), time.perf_counter())
                writer.save(step, state, blocking=True)
                requests.append(meter.rounds - before[0])
                processor.append(time.process_time() - before[1])
                seconds.append(time.perf_counter() - before[2])
    early, late = slice(1, 1 + WINDOW), slice(-WINDOW, None)
    return {
        "early_s": statistics.median(seconds[early]),
        "late_s": statistics.median(seconds[late]),
        "early_cpu_s": statistics.mean(processor[early]),
        "late_cpu_s": statistics.mean(processor[late]),
        "early_requests": statistics.median(requests[early]),
        "late_requests": statistics.median(requests[late]),
        "open_s": _open_seconds(trial),
    }


def _open_seconds(trial: Trial) -> float:
    started = time.perf_counter()
    with fwstore.open(trial.folder) as repository:
        repository.run("bench").latest()
    return time.perf_counter() - started


if __name__ == "__main__":
    run(QUESTION)
