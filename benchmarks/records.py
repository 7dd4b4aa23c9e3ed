"""How long does it take to open a run of 100,000 records? ``python -m benchmarks.records``."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.common.meter import Meter, open_metered
from benchmarks.common.question import Figure, Mark, Point, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial

URL = "memory://records"
RECORDS = {f"fwstore, {count:,} records": count for count in (1_000, 10_000, 100_000)}
LARGEST = list(RECORDS)[-1]

QUESTION = Question(
    name="records",
    title="How long does it take to open a run of 100,000 records?",
    subjects=tuple(RECORDS),
    figures=(
        Figure("append_ms", "append a record, CPU, mean", "ms"),
        Figure("open_ms", "open the run and find its newest checkpoint, CPU", "ms"),
        Figure("open_rounds", "serial rounds to open it", ""),
        Figure("open_requests", "requests to open it", ""),
        Figure("open_mb", "read to open it", "MB"),
        Figure("bare_rounds", "serial rounds without the hint", ""),
    ),
    marks=(Mark(LARGEST, "open_rounds", 10), Mark(LARGEST, "bare_rounds", 10)),
    axis="records",
    points=tuple(Point(subject, count) for subject, count in RECORDS.items()),
    gigabytes=0.0,
    repeats=3,
    note="One checkpoint, then a tag that is given to it and forgotten in turn. The store is memory; one thread does all of it.",
)


def measure(trial: Trial) -> Figures:
    """Append many records; open the run as somebody who knows nothing of it."""
    count, meter = QUESTION.size(trial.subject), Meter()
    with open_metered(URL, meter) as repository:
        run = repository.run("bench")
        with run.writer() as writer:
            writer.save(1, {"weight": np.zeros(8)}, blocking=True)
        started = time.process_time()
        for number in range(count):
            run.tag("newest", None if number % 2 else 1)
        appended = time.process_time() - started
    figures = {"append_ms": 1000 * appended / count} | _open(meter)
    with open_metered(URL, meter) as repository:
        hints = [entry.key for entry in repository.store.list("meta/") if "/hint" in entry.key]
        if not hints:
            raise SystemExit("the run has no hint to do without")
        repository.store.delete(hints)
    return figures | {"bare_rounds": _open(meter)["open_rounds"]}


def _open(meter: Meter) -> Figures:
    with open_metered(URL, meter) as repository:
        meter.clear()
        started = time.process_time()
        if repository.run("bench").latest().step != 1:
            raise SystemExit("the run lost its checkpoint")
        return {
            "open_ms": 1000 * (time.process_time() - started),
            "open_rounds": meter.rounds,
            "open_requests": meter.requests.total(),
            "open_mb": meter.bytes / 1e6,
        }


if __name__ == "__main__":
    run(QUESTION)
