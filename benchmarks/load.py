"""How fast is a state back? ``python -m benchmarks.load``."""

from __future__ import annotations

from benchmarks.common.cache import drop_cache
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import State
from benchmarks.common.trial import Figures, Trial

OURS, FLOOR, DCP = "fwstore sync", "raw 2 threads", "dcp sync"
PEERS = (DCP, "safetensors", "torch_checkpointing", "orbax", "torchsnapshot")

QUESTION = Question(
    name="load",
    title="How fast is a state back?",
    subjects=(FLOOR, OURS, *PEERS),
    floors=(FLOOR,),
    figures=(
        Figure("warm_s", "load, files in the page cache"),
        Figure("cold_s", "load, files on the disk only"),
    ),
    marks=(
        Mark(OURS, "warm_s", 1.4, (FLOOR,)),
        Mark(OURS, "warm_s", 0.9, ("safetensors",)),
        Mark(OURS, "warm_s", 0.25, (DCP,)),
        Mark(OURS, "cold_s", 1.15, (FLOOR,)),
        Mark(OURS, "cold_s", 1.0, PEERS),
    ),
    note=(
        "Into existing tensors, by a peer that was just made. fwstore verifies every byte; of the peers only Orbax verifies anything. The raw floor "
        "is preadv on two threads. For the cold figure the pages of the files are dropped; what the host of a virtual "
        "machine keeps of the disk cannot be."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save once and load warm, then cold."""
    state = trial.state()
    with trial.peer() as peer:
        trial.save(peer, state, 1)
    warm = _load(trial, state)
    drop_cache(trial.folder)
    cold = _load(trial, state)
    return {"warm_s": warm, "cold_s": cold}


def _load(trial: Trial, state: State) -> float:
    """Load as a job that has just started: by a peer that remembers nothing."""
    with trial.peer() as peer:
        return trial.load(peer, state, 1)


if __name__ == "__main__":
    run(QUESTION)
