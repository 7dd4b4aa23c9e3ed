"""How soon is a checkpoint at another site? ``python -m benchmarks.wan``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common.bed import make_bed
from benchmarks.common.gateway import warm_gateway
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.movers import COPIERS, FLOOR, MOVERS, OURS
from benchmarks.movers.base import half_changed, same_bytes
from benchmarks.peers.floors import Bytes

SLOW, FAST = 300e6, 1e9
NEAR, FAR = 0.020, 0.080
SERIES = 8

QUESTION = Question(
    name="wan",
    title="How soon is a checkpoint at another site?",
    subjects=(OURS, FLOOR, *COPIERS),
    floors=(FLOOR,),
    figures=(
        Figure("cold_s", "one checkpoint, 300 Mbit/s, 20 ms"),
        Figure("cold_line", "the same against the line", "x line"),
        Figure("far_s", "300 Mbit/s, 80 ms"),
        Figure("fast_s", "1 Gbit/s, 20 ms"),
        Figure("series_s", "8 checkpoints of which half is frozen"),
        Figure("series_bytes", "bytes on the link for them", "x logical"),
    ),
    marks=(
        Mark(OURS, "cold_s", 1.05, COPIERS),
        Mark(OURS, "cold_line", 1.15),
        Mark(OURS, "far_s", 1.05, COPIERS),
        Mark(OURS, "fast_s", 1.05, COPIERS),
        Mark(OURS, "series_s", 0.6, COPIERS),
        Mark(OURS, "series_bytes", 0.6, COPIERS),
    ),
    gigabytes=0.3,
    repeats=5,
    note=(
        "From one bucket of a Ceph gateway to another over a shaping proxy, which counts what crosses it. Random bytes. The tools move the files of "
        "checkpoints, fwstore moves checkpoints: it verifies them, publishes each when it is whole, and knows bytes that it has. s5cmd and aws "
        "copy in two hops by way of a folder. The line is what the bytes take at the rate of the link."
    ),
)


@dataclass(frozen=True)
class Cost:
    """What a copy took."""

    seconds: float
    bytes: int


def measure(trial: Trial) -> Figures:
    """Copy one checkpoint over three links, and a series over one."""
    size = trial.size_bytes
    with warm_gateway() as gateway:
        cold = _copy(trial, gateway, [size], (SLOW, NEAR))
        far = _copy(trial, gateway, [size], (SLOW, FAR))
        fast = _copy(trial, gateway, [size], (FAST, NEAR))
        series = _copy(trial, gateway, [size // 4] * SERIES, (SLOW, NEAR))
    return {
        "cold_s": cold.seconds,
        "cold_line": cold.seconds / (size * 8 / SLOW),
        "far_s": far.seconds,
        "fast_s": fast.seconds,
        "series_s": series.seconds,
        "series_bytes": series.bytes / (size // 4 * SERIES),
    }


def _copy(trial: Trial, gateway: Any, sizes: Sequence[int], link: tuple[float, float]) -> Cost:
    """Save checkpoints at the source, then copy them all; every byte of the newest is compared."""
    mover = MOVERS[trial.subject].make(trial.folder)
    random = np.random.default_rng(len(sizes))
    state: list[Bytes] = []
    with make_bed(gateway, *link) as (bed, wire):
        for step, size in enumerate(sizes):
            state = half_changed(state, size, random)
            mover.save(bed, state, step)
        before, started = wire.passed(), time.perf_counter()
        mover.copy(bed)
        cost = Cost(time.perf_counter() - started, wire.passed() - before)
        if not same_bytes(mover.newest(bed), state, len(sizes) - 1):
            raise SystemExit(f"{trial.subject} did not bring what was saved")
    return cost


if __name__ == "__main__":
    run(QUESTION)
