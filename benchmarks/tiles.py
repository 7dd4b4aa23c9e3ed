"""How large should a cell of a tensor be? ``python -m benchmarks.tiles``.

The bounds of the grid's rule are set to others in the process of a trial; everything else is as it is shipped.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.common.question import Figure, Point, Question
from benchmarks.common.series import run
from benchmarks.common.state import change, empty_like, size_of
from benchmarks.common.trial import Figures, Trial
from benchmarks.fragments import SHOWN, changed
from benchmarks.fragments import figures as count_fragments
from benchmarks.peers.ours import Fwstore
from fwstore.base.units import KIB, MIB
from fwstore.plan import grid

BOUNDS = {
    f"fwstore, {low} KiB to {high} MiB": (low, high)
    for high in (1, 4, 16)
    for low in (64, 256, 1024, 4096)
    if low * KIB <= high * MIB
}

QUESTION = Question(
    name="tiles",
    title="How large should a cell of a tensor be?",
    subjects=tuple(BOUNDS),
    figures=(
        Figure("kib_per_chunk", "KiB per chunk, three models", ""),
        Figure("percent", "in fragments, worst of all worlds", "%"),
        Figure("changed_percent", "in fragments after a change of the world, mean", "%"),
        Figure("save_cpu", "CPU of a synchronous save", "s/GB"),
        Figure("load_cpu", "CPU of a verified load", "s/GB"),
        Figure("load_s", "load into existing tensors, warm"),
    ),
    axis="lower bound, KiB",
    points=tuple(
        Point(subject, low, f"at most {high} MiB") for subject, (low, high) in BOUNDS.items()
    ),
    gigabytes=1.0,
    repeats=3,
    note=(
        "The format cuts tensors into cells of 256 KiB to 4 MiB. Chunks and fragments: Llama-3-405B, Mixtral-8x22B "
        "and DeepSeek-V3 in the worlds of `benchmarks.fragments`, and after every change of FSDP or EP by a power of "
        "two, up to 8. Speed: a state like that of the other questions, whose cells the upper bound does not touch."
    ),
)


def measure(trial: Trial) -> Figures:
    """Set the bounds; count chunks, then save and load."""
    low, high = BOUNDS[trial.subject]
    # Constants of a module in a process that ends with the trial.
    grid.CELL_BYTES_LOW, grid.CELL_BYTES_HIGH = low * KIB, high * MIB
    return _counted() | _timed(trial)


def _counted() -> Figures:
    worlds = [(model, world) for model, worlds in SHOWN.items() for world in worlds]
    found = [count_fragments(model, world) for model, world in worlds]
    after = [
        count_fragments(model, to, world).percent
        for model, world in worlds
        for to in changed(world)
    ]
    return {
        "kib_per_chunk": sum(one.bytes_total for one in found)
        / sum(one.chunks for one in found)
        / KIB,
        "percent": max(one.percent for one in found),
        "changed_percent": statistics.mean(after),
    }


def _timed(trial: Trial) -> Figures:
    state = trial.state()
    gigabytes = size_of(state) / 1e9
    with Fwstore(str(trial.folder / "store"), blocking=True) as peer:
        trial.save(peer, state, 1)
        change(state)
        started = time.process_time()
        trial.save(peer, state, 2)
        saved = time.process_time() - started
        into = empty_like(state)
        trial.load(peer, state, 2)
        trial.back_memory()
        started, began = time.process_time(), time.perf_counter()
        peer.load(into, 2)
        load_s, loaded = time.perf_counter() - began, time.process_time() - started
    trial.check(into, state)
    return {"save_cpu": saved / gigabytes, "load_cpu": loaded / gigabytes, "load_s": load_s}


if __name__ == "__main__":
    run(QUESTION)
