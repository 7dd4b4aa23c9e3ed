"""How long must the tensors not change, and how soon are the bytes safe? ``python -m benchmarks.save``."""

from __future__ import annotations

import os

from benchmarks.common.processes import cpu_seconds
from benchmarks.common.question import Contest, Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change, size_of
from benchmarks.common.trial import Figures, Trial

OURS = ("fwstore async", "fwstore sync")
ASYNCHRONOUS = ("dcp async", "dcp process", "torch_checkpointing", "orbax", "torchsnapshot")
SYNCHRONOUS = ("dcp sync", "safetensors")
COPY = "memcpy"
WRITES = ("raw 2 threads", "raw sequential", "raw O_DIRECT")

QUESTION = Question(
    name="save",
    title="How long must the tensors not change, how soon are the bytes safe, and what does it cost?",
    subjects=(COPY, *WRITES, *OURS, *ASYNCHRONOUS, *SYNCHRONOUS),
    floors=(COPY, *WRITES),
    figures=(
        Figure("first_blocked_s", "blocked, first save"),
        Figure("blocked_s", "blocked, second save"),
        Figure("durable_s", "durable, second save"),
        Figure("cpu_s_per_gb", "processor time, second save", "s/GB"),
    ),
    marks=(
        Mark(OURS[0], "blocked_s", 1.15, (COPY,)),
        Mark(OURS[0], "blocked_s", 1.0, ASYNCHRONOUS),
        Mark(OURS[0], "first_blocked_s", 0.5, ASYNCHRONOUS),
        Mark(OURS[0], "durable_s", 1.15, WRITES),
        Mark(OURS[0], "durable_s", 0.85, ASYNCHRONOUS),
        Mark(OURS[1], "durable_s", 1.05, ("safetensors",)),
        Mark(OURS[1], "durable_s", 0.85, ("dcp sync",)),
        Mark(OURS[0], "cpu_s_per_gb", 2.0, ("safetensors",)),
        Mark(OURS[1], "cpu_s_per_gb", 2.0, ("safetensors",)),
    ),
    contests=(Contest(OURS[0], ASYNCHRONOUS), Contest(OURS[1], SYNCHRONOUS)),
    note=(
        "Blocked: from the call of a save until the tensors may change, later waits included. Durable: from the call "
        "until every byte is on the disk and the checkpoint can be found; files are fsynced by the peer, or for it "
        "where it does not. A synchronous save blocks until it is durable. Every byte changes between the saves. "
        "Everybody who can is told of the state before it is built. Processor time: user and system seconds of the process "
        "and its helpers until the save is durable; fwstore hashes everything twice, safetensors never. memcpy is two "
        "threads that copy into warm buffers which they keep."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save twice."""
    with trial.prepared() as (peer, state):
        first, _ = trial.save(peer, state, 1)
        change(state)
        begun = cpu_seconds(os.getpid())
        blocked, durable = trial.save(peer, state, 2)
        spent = cpu_seconds(os.getpid()) - begun
    times = {"first_blocked_s": first, "blocked_s": blocked}
    if trial.subject == COPY:
        return times
    costs = {"durable_s": durable, "cpu_s_per_gb": spent / (size_of(state) / 1e9)}
    return times | costs if trial.subject in (OURS[0], *ASYNCHRONOUS) else costs


if __name__ == "__main__":
    run(QUESTION)
