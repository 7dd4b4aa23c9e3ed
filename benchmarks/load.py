"""How fast is a state back, and what does it cost? ``python -m benchmarks.load``."""

from __future__ import annotations

import os
import time

from benchmarks.common.cache import drop_cache, fill_cache
from benchmarks.common.processes import cpu_seconds
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import State, empty_like, size_of
from benchmarks.common.trial import Figures, Trial

OURS, FLOOR, DCP = "fwstore sync", "raw 2 threads", "dcp sync"
PEERS = (DCP, "safetensors", "torch_checkpointing", "orbax", "torchsnapshot")

QUESTION = Question(
    name="load",
    title="How fast is a state back, and what does it cost?",
    subjects=(FLOOR, OURS, *PEERS),
    floors=(FLOOR,),
    figures=(
        Figure("warm_s", "load, files in the page cache"),
        Figure("cold_s", "load, files on the disk only"),
        Figure("cpu_s_per_gb", "processor time, files in the page cache", "s/GB"),
    ),
    marks=(
        Mark(OURS, "warm_s", 1.4, (FLOOR,)),
        Mark(OURS, "warm_s", 0.9, ("safetensors",)),
        Mark(OURS, "warm_s", 0.25, (DCP,)),
        Mark(OURS, "cold_s", 1.15, (FLOOR,)),
        Mark(OURS, "cold_s", 1.0, PEERS),
        Mark(OURS, "cpu_s_per_gb", 2.0, ("safetensors",)),
    ),
    note=(
        "Into existing tensors, by a peer that was just made. fwstore verifies every byte; of the peers only Orbax "
        "verifies anything. The raw floor is preadv on two threads. For the warm figure every file is read right before, "
        "for the cold one its pages are dropped; what the host of a virtual machine keeps of the disk cannot be."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save once and load warm, then cold."""
    state = trial.state()
    with trial.peer() as peer:
        trial.save(peer, state, 1)
    into = empty_like(state)
    trial.back_memory()
    fill_cache(trial.folder)
    warm, spent = _load(trial, state, into)
    drop_cache(trial.folder)
    trial.back_memory()
    cold, _ = _load(trial, state, into)
    return {"warm_s": warm, "cold_s": cold, "cpu_s_per_gb": spent / (size_of(state) / 1e9)}


def _load(trial: Trial, state: State, into: State) -> tuple[float, float]:
    """Load as a job that has just started, by a peer that remembers nothing; return seconds and processor seconds."""
    with trial.peer() as peer:
        begun, started = cpu_seconds(os.getpid()), time.perf_counter()
        peer.load(into, 1)
        seconds, spent = time.perf_counter() - started, cpu_seconds(os.getpid()) - begun
    trial.check(into, state)
    for tensor in into.values():
        tensor.zero_()
    return seconds, spent


if __name__ == "__main__":
    run(QUESTION)
