"""How much does a loop in Python slow down while a save runs? ``python -m benchmarks.gil``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import change
from benchmarks.common.trial import Figures, Trial

OURS = ("fwstore async", "fwstore async, 1 thread")
PEERS = ("dcp async", "dcp process", "torch_checkpointing", "orbax", "torchsnapshot")
CALIBRATION_S = 2.0

QUESTION = Question(
    name="gil",
    title="How much does a loop in Python slow down while a save runs?",
    subjects=(*OURS, *PEERS),
    figures=(
        Figure("slowdown_percent", "slowdown", "%"),
        Figure("stall_ms", "longest stall", "ms"),
        Figure("durable_s", "durable beside the loop"),
    ),
    marks=(Mark("fwstore async, 1 thread", "slowdown_percent", 5.0),),
    note=(
        "A loop of pure Python on the main thread, from the moment the tensors may change until the save is durable, "
        "beside the same loop alone. With one worker thread of the save a second core is free for it; with the "
        "default of one thread per core none is, and what is lost then is processor time as well as the interpreter's lock. "
        "A save that waits for the lock at every step slows nobody and is durable late: hence the last column."
    ),
)


def step() -> int:
    """Do about 0.1 ms of what the Python of a training step does."""
    table = {f"layer.{number}": number for number in range(200)}
    return sum(value for name, value in table.items() if name.endswith("7"))


def loop(goes_on: Callable[[], bool]) -> tuple[float, float]:
    """Return steps per second, and the longest step in seconds."""
    steps, longest = 0, 0.0
    started = last = time.perf_counter()
    while goes_on():
        step()
        now = time.perf_counter()
        steps, longest, last = steps + 1, max(longest, now - last), now
    return steps / max(last - started, 1e-9), longest


def measure(trial: Trial) -> Figures:
    """Run the loop alone, then beside the second save."""
    with trial.prepared() as (peer, state):
        trial.save(peer, state, 1)
        change(state)
        end = time.perf_counter() + CALIBRATION_S
        alone, _ = loop(lambda: time.perf_counter() < end)
        trial.back_memory()
        began = time.perf_counter()
        waiting = threading.Thread(target=peer.save(state, 2))
        waiting.start()
        beside, longest = loop(waiting.is_alive)
        waiting.join()
        durable = time.perf_counter() - began
        trial.load(peer, state, 2)
    return {
        "slowdown_percent": 100 * (1 - beside / alone),
        "stall_ms": longest * 1e3,
        "durable_s": durable,
    }


if __name__ == "__main__":
    run(QUESTION)
