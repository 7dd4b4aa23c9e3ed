"""What does a save cost when 90 % of the bytes did not change? ``python -m benchmarks.unchanged``."""

from __future__ import annotations

import fwstore
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import State, change, size_of
from benchmarks.common.trial import Figures, Trial
from benchmarks.peers.base import Peer
from benchmarks.peers.ours import Fwstore

OURS = "fwstore async"
EVERY = 10

QUESTION = Question(
    name="unchanged",
    title="What does a save cost when 90 % of the bytes did not change?",
    subjects=(OURS,),
    figures=(
        Figure("full_blocked_s", "blocked, all changed"),
        Figure("full_durable_s", "durable, all changed"),
        Figure("turn_blocked_s", "blocked, first save with 10 % changed"),
        Figure("turn_durable_s", "durable, first save with 10 % changed"),
        Figure("part_blocked_s", "blocked, later saves with 10 % changed"),
        Figure("part_durable_s", "durable, later saves with 10 % changed"),
        Figure("part_written", "bytes written, later saves with 10 % changed", "x state"),
    ),
    marks=(
        Mark(OURS, "part_blocked_s", 1 / 3, (OURS,), "full_blocked_s"),
        Mark(OURS, "part_durable_s", 1 / 6, (OURS,), "full_durable_s"),
        Mark(OURS, "part_written", 0.11),
    ),
    note=(
        "One weight of ten changes, with its master copy and its moments, as when layers are frozen. The first such "
        "save after full ones still copies everything, because what changed fully last time is not compared. No peer "
        "keeps unchanged bytes from step to step, so fwstore is compared with itself."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save twice with everything changed and three times with a tenth."""
    with trial.prepared() as (peer, state):
        trial.save(peer, state, 1)
        change(state)
        full = trial.save(peer, state, 2)
        change(state, EVERY)
        turn = trial.save(peer, state, 3)
        change(state, EVERY)
        trial.save(peer, state, 4)
        change(state, EVERY)
        part = trial.save(peer, state, 5)
        trial.load(peer, state, 5)
        written = _bytes_written(peer, state)
    return {
        "full_blocked_s": full[0],
        "full_durable_s": full[1],
        "turn_blocked_s": turn[0],
        "turn_durable_s": turn[1],
        "part_blocked_s": part[0],
        "part_durable_s": part[1],
        "part_written": written / size_of(state),
    }


def _bytes_written(peer: Peer, state: State) -> int:
    """Return the bytes of packs that one more save of the same kind writes."""
    assert isinstance(peer, Fwstore)
    change(state, EVERY)
    handle = peer.begin(state, 6)
    handle.result()
    statistics: fwstore.SaveStatistics = handle.statistics()
    return statistics.bytes_written


if __name__ == "__main__":
    run(QUESTION)
