"""How soon are the bytes safe? ``python -m benchmarks.durable``."""

from __future__ import annotations

from benchmarks.common.question import Contest, Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change
from benchmarks.common.trial import Figures, Trial

ASYNCHRONOUS = ("dcp async", "dcp process", "torch_checkpointing", "orbax", "torchsnapshot")
SYNCHRONOUS = ("dcp sync", "safetensors")
FLOORS = ("raw 2 threads", "raw sequential", "raw O_DIRECT")

QUESTION = Question(
    name="durable",
    title="How soon are the bytes safe?",
    subjects=(*FLOORS, "fwstore async", "fwstore sync", *ASYNCHRONOUS, *SYNCHRONOUS),
    floors=FLOORS,
    figures=(Figure("durable_s", "durable, second save"),),
    marks=(
        Mark("fwstore async", "durable_s", 1.15, FLOORS),
        Mark("fwstore async", "durable_s", 0.85, ASYNCHRONOUS),
        Mark("fwstore sync", "durable_s", 1.05, ("safetensors",)),
        Mark("fwstore sync", "durable_s", 0.85, ("dcp sync",)),
    ),
    contests=(Contest("fwstore async", ASYNCHRONOUS), Contest("fwstore sync", SYNCHRONOUS)),
    note=(
        "Time from the call of a save until every byte is on the disk and the checkpoint can be found. Every byte "
        "changes between saves. Files are fsynced by the peer, or for it where it does not."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save twice."""
    state = trial.state()
    with trial.prepared(state) as peer:
        trial.save(peer, state, 1)
        change(state)
        _, durable = trial.save(peer, state, 2)
        trial.load(peer, state, 2)
    return {"durable_s": durable}


if __name__ == "__main__":
    run(QUESTION)
