"""``make bench-quick``: blocked, durable and load times beside the peers in minutes; no environment is made for it."""

from __future__ import annotations

import resource

from benchmarks.common.question import Contest, Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change, size_of
from benchmarks.common.trial import Figures, Trial

QUESTION = Question(
    name="quick",
    title="Blocked, durable and load times beside DCP and safetensors.",
    subjects=("fwstore async", "dcp async", "fwstore sync", "dcp sync", "safetensors"),
    figures=(
        Figure("first_blocked_s", "first blocked"),
        Figure("blocked_s", "blocked"),
        Figure("durable_s", "durable"),
        Figure("load_s", "load"),
        Figure("peak_rss", "peak RSS", "x state"),
    ),
    marks=(
        Mark("fwstore async", "blocked_s", 1.0, ("dcp async",)),
        Mark("fwstore async", "durable_s", 0.85, ("dcp async",)),
        Mark("fwstore sync", "durable_s", 0.85, ("dcp sync",)),
        Mark("fwstore sync", "durable_s", 1.05, ("safetensors",)),
        Mark("fwstore sync", "load_s", 0.25, ("dcp sync",)),
        Mark("fwstore sync", "load_s", 0.9, ("safetensors",)),
    ),
    contests=(
        Contest("fwstore async", ("dcp async",)),
        Contest("fwstore sync", ("dcp sync", "safetensors")),
    ),
    gigabytes=2.05,
    repeats=3,
    note="The second save is the one that is measured; the load is into existing tensors, with a warm cache.",
)


def measure(trial: Trial) -> Figures:
    """Save twice and load once."""
    with trial.prepared() as (peer, state):
        first, _ = trial.save(peer, state, 1)
        change(state)
        blocked, durable = trial.save(peer, state, 2)
        load = trial.load(peer, state, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "first_blocked_s": first,
        "blocked_s": blocked,
        "durable_s": durable,
        "load_s": load,
        "peak_rss": peak / size_of(state),
    }


if __name__ == "__main__":
    run(QUESTION)
