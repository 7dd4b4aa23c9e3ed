"""How soon is a checkpoint at another site? ``python -m benchmarks.wan``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common.bed import make_bed
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.movers import MOVERS
from benchmarks.peers.floors import Bytes

OURS, FLOOR = "fwstore", "plain requests"
PEERS = ("rclone", "rclone tuned", "s5cmd", "s5cmd tuned", "aws s3 sync", "aws s3 sync tuned")
SLOW, FAST = 300e6, 1e9
NEAR, FAR = 0.020, 0.080
TENSORS = 32
SERIES = 8

QUESTION = Question(
    name="wan",
    title="How soon is a checkpoint at another site?",
    subjects=(OURS, FLOOR, *PEERS),
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
        Mark(OURS, "cold_s", 1.05, PEERS),
        Mark(OURS, "cold_line", 1.15),
        Mark(OURS, "far_s", 1.05, PEERS),
        Mark(OURS, "fast_s", 1.05, PEERS),
        Mark(OURS, "series_s", 0.6, PEERS),
        Mark(OURS, "series_bytes", 0.6, PEERS),
    ),
    gigabytes=0.3,
    repeats=5,
    note=(
        "From one moto server to another over a shaping proxy, which counts what crosses it. Random bytes. The tools move the files of "
        "checkpoints, fwstore moves checkpoints: it verifies them, publishes each when it is whole, and knows bytes that it has. s5cmd and aws "
        "copy in two hops through memory. The line is what the bytes take at the rate of the link."
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
    cold = _copy(trial, [size], SLOW, NEAR)
    far = _copy(trial, [size], SLOW, FAR)
    fast = _copy(trial, [size], FAST, NEAR)
    series = _copy(trial, [size // 4] * SERIES, SLOW, NEAR)
    return {
        "cold_s": cold.seconds,
        "cold_line": cold.seconds / (size * 8 / SLOW),
        "far_s": far.seconds,
        "fast_s": fast.seconds,
        "series_s": series.seconds,
        "series_bytes": series.bytes / (size // 4 * SERIES),
    }


def _copy(trial: Trial, sizes: Sequence[int], bits_per_s: float, round_trip_s: float) -> Cost:
    """Save checkpoints at the source, then copy them all; every byte of the newest is compared."""
    mover = MOVERS[trial.subject].make(trial.folder)
    random = np.random.default_rng(len(sizes))
    state: list[Bytes] = []
    with make_bed(bits_per_s=bits_per_s, round_trip_s=round_trip_s) as bed:
        for step, size in enumerate(sizes):
            state = _changed(state, size, random)
            mover.save(bed, state, step)
        before, started = bed.wire.passed(), time.perf_counter()
        mover.copy(bed)
        cost = Cost(time.perf_counter() - started, bed.wire.passed() - before)
        if not mover.check(bed, state, len(sizes) - 1):
            raise SystemExit(f"{trial.subject} did not bring what was saved")
    return cost


def _changed(state: Sequence[Bytes], size: int, random: np.random.Generator) -> list[Bytes]:
    """Return tensors of random bytes of which every second one is what it was."""
    fresh = [random.integers(0, 256, size // TENSORS, np.uint8) for _ in range(TENSORS)]
    return [
        state[number] if state and number % 2 else tensor for number, tensor in enumerate(fresh)
    ]


if __name__ == "__main__":
    run(QUESTION)
