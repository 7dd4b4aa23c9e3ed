"""How long must the tensors not change? ``python -m benchmarks.blocked``."""

from __future__ import annotations

from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change
from benchmarks.common.trial import Figures, Trial

PEERS = ("dcp async", "dcp process", "torch_checkpointing", "orbax", "torchsnapshot")
OURS = "fwstore async"

QUESTION = Question(
    name="blocked",
    title="How long must the tensors not change?",
    subjects=("memcpy", OURS, *PEERS),
    floors=("memcpy",),
    figures=(
        Figure("first_blocked_s", "blocked, first save"),
        Figure("blocked_s", "blocked, second save on"),
    ),
    marks=(
        Mark(OURS, "blocked_s", 1.15, ("memcpy",)),
        Mark(OURS, "blocked_s", 1.0, PEERS),
        Mark(OURS, "first_blocked_s", 0.5, PEERS),
    ),
    note=(
        "Time from the call of an asynchronous save until the tensors may change, later waits included. Every byte "
        "changes between saves; the third save is the one that counts as later. memcpy is two threads that copy into "
        "warm buffers which they keep. Everybody who can is told of the state before the model is built."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save three times."""
    state = trial.state()
    with trial.prepared(state) as peer:
        first, _ = trial.save(peer, state, 1)
        change(state)
        trial.save(peer, state, 2)
        change(state)
        later, _ = trial.save(peer, state, 3)
    return {"first_blocked_s": first, "blocked_s": later}


if __name__ == "__main__":
    run(QUESTION)
