"""How long must tensors on a GPU not change, and how fast do they leave it? ``python -m benchmarks.cuda``; needs a GPU."""

from __future__ import annotations

import time

import torch

from benchmarks.common.question import Contest, Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import State, change, size_of
from benchmarks.common.trial import Figures, Trial
from benchmarks.peers.base import Peer

OURS, LAZY, DCP, FLOOR = "fwstore cuda", "fwstore cuda, lazy", "dcp async, pinned", "one copy"

QUESTION = Question(
    name="cuda",
    title="How long must tensors on a GPU not change, and how fast do they leave it?",
    subjects=(FLOOR, OURS, LAZY, DCP),
    floors=(FLOOR,),
    figures=(
        Figure("first_blocked_s", "blocked, first save"),
        Figure("blocked_s", "blocked, second save on"),
        Figure("staged_s_per_gb", "until all bytes have left the GPU, second save on", "s/GB"),
        Figure("durable_s", "durable"),
    ),
    marks=(
        Mark(OURS, "blocked_s", 1.15, (FLOOR,)),
        Mark(OURS, "blocked_s", 1.0, (DCP,)),
        Mark(OURS, "durable_s", 0.85, (DCP,)),
    ),
    contests=(Contest(OURS, (DCP,)),),
    note=(
        "The state lies on one GPU. Blocked: until the call of the save returned; with eager staging and with DCP the "
        "tensors may change then, with lazy staging once the bytes have left the GPU, which the optimizer waits for. The "
        "bandwidth from the device to the host is one over the third figure. One copy is a single cudaMemcpyAsync of as "
        "many bytes into pinned memory that is kept. DCP keeps its stager, with pinned memory and copies that do not wait."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save three times."""
    state = {name: tensor.cuda() for name, tensor in trial.state().items()}
    with trial.peer() as peer:
        peer.prepare(state)
        first, _, _ = _save(trial, peer, state, 1)
        change(state)
        _save(trial, peer, state, 2)
        change(state)
        later, staged, durable = _save(trial, peer, state, 3)
        if trial.subject != FLOOR:
            trial.load(peer, state, 3)
    return figures(first, later, staged, durable, size_of(state))


def figures(first: float, later: float, staged: float, durable: float, size: int) -> Figures:
    """Return the figures of a first save and of a later one; pure."""
    return {
        "first_blocked_s": first,
        "blocked_s": later,
        "staged_s_per_gb": staged / (size / 1e9),
        "durable_s": durable,
    }


def _save(trial: Trial, peer: Peer, state: State, step: int) -> tuple[float, float, float]:
    """Return the seconds until the save returned, until the tensors may change, and until it is durable."""
    trial.back_memory()
    torch.cuda.synchronize()
    started = time.perf_counter()
    wait = peer.save(state, step)
    blocked = time.perf_counter() - started
    peer.staged()()
    staged = time.perf_counter() - started
    wait()
    return blocked, staged, time.perf_counter() - started


def main() -> None:
    """Measure where there is a GPU, and say so where there is none."""
    if torch.cuda.is_available():
        run(QUESTION)
    else:
        print(f"{QUESTION.title}\n  not measured: this needs a GPU, and torch finds none here")


if __name__ == "__main__":
    main()
