"""What does it cost in processor time? ``python -m benchmarks.cpu``."""

from __future__ import annotations

import os

from benchmarks.common.processes import cpu_seconds
from benchmarks.common.question import Contest, Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change, empty_like, size_of
from benchmarks.common.trial import Figures, Trial

OURS = ("fwstore async", "fwstore sync")
ASYNCHRONOUS = ("dcp async", "dcp process", "torch_checkpointing", "orbax", "torchsnapshot")
SYNCHRONOUS = ("dcp sync", "safetensors")

QUESTION = Question(
    name="cpu",
    title="What does it cost in processor time?",
    subjects=("raw 2 threads", *OURS, *ASYNCHRONOUS, *SYNCHRONOUS),
    floors=("raw 2 threads",),
    figures=(
        Figure("save_s_per_gb", "second save", "s/GB"),
        Figure("load_s_per_gb", "load, warm", "s/GB"),
    ),
    marks=(
        Mark("fwstore async", "save_s_per_gb", 2.0, ("safetensors",)),
        Mark("fwstore sync", "save_s_per_gb", 2.0, ("safetensors",)),
        Mark("fwstore sync", "load_s_per_gb", 2.0, ("safetensors",)),
    ),
    contests=(Contest(OURS[0], ASYNCHRONOUS), Contest(OURS[1], SYNCHRONOUS)),
    note=(
        "User and system seconds of the process and its helpers, until the save is durable. fwstore hashes everything "
        "twice and verifies every byte; safetensors does neither."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save twice and load once."""
    state = trial.state()
    gigabytes = size_of(state) / 1e9
    with trial.prepared(state) as peer:
        trial.save(peer, state, 1)
        change(state)
        into = empty_like(state)
        trial.back_memory()
        begun = cpu_seconds(os.getpid())
        peer.save(state, 2)()
        saved = cpu_seconds(os.getpid())
        peer.load(into, 2)
        loaded = cpu_seconds(os.getpid())
    trial.check(into, state)
    return {
        "save_s_per_gb": (saved - begun) / gigabytes,
        "load_s_per_gb": (loaded - saved) / gigabytes,
    }


if __name__ == "__main__":
    run(QUESTION)
