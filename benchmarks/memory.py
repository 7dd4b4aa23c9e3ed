"""How much memory does it take beside the state? ``python -m benchmarks.memory``."""

from __future__ import annotations

from benchmarks.common.processes import MemoryWatch
from benchmarks.common.question import Contest, Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change, empty_like, size_of
from benchmarks.common.trial import Figures, Trial

ASYNCHRONOUS = ("dcp async", "dcp process", "torch_checkpointing", "orbax", "torchsnapshot")
SYNCHRONOUS = ("dcp sync", "safetensors")
LOADS = 3
HALF_GIB, QUARTER_GIB = 512.0, 256.0

QUESTION = Question(
    name="memory",
    title="How much memory does it take beside the state?",
    subjects=("fwstore async", "fwstore sync", *ASYNCHRONOUS, *SYNCHRONOUS),
    figures=(
        Figure("save_share", "peak while saving", "x state"),
        Figure("save_mib", "peak while saving", "MiB"),
        Figure("load_mib", "peak while loading", "MiB"),
    ),
    marks=(
        Mark("fwstore async", "save_share", 1.1),
        Mark("fwstore sync", "save_mib", HALF_GIB),
        Mark("fwstore async", "load_mib", QUARTER_GIB),
        Mark("fwstore sync", "load_mib", QUARTER_GIB),
    ),
    contests=(Contest("fwstore async", ASYNCHRONOUS), Contest("fwstore sync", SYNCHRONOUS)),
    note=(
        "Anonymous and shared memory of the process and its helpers, every page counted once (PSS), beyond what "
        "there was before the peer was made; sampled every 10 ms over two saves, and over three loads into existing tensors."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save twice and load thrice."""
    state = trial.state()
    into = empty_like(state)
    with MemoryWatch() as watch:
        with watch.peak() as saving, trial.peer() as peer:
            peer.prepare(state)
            peer.save(state, 1)()
            change(state)
            peer.save(state, 2)()
        with trial.peer() as peer, watch.peak() as loading:
            # A short load may pass between two samples.
            for _ in range(LOADS):
                peer.load(into, 2)
    trial.check(into, state)
    return {
        "save_share": saving.extra_bytes / size_of(state),
        "save_mib": saving.extra_bytes / 2**20,
        "load_mib": loading.extra_bytes / 2**20,
    }


if __name__ == "__main__":
    run(QUESTION)
