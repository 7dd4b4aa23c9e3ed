"""Workers of one link as processes, which say when they took how much.

Invariant: a worker writes every moment and its bytes to a file of its own, whole lines only.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

from fwstore.sched.runtime import system_runtime
from fwstore.store.directory import DirectoryStore
from fwstore.wan.rate import LinkRate
from support.stored import SITE

_ASLEEP_S = 0.4


def take_for_ever(folder: str, name: str, cap: float) -> None:
    """Take pieces as fast as one is let, until killed."""
    runtime = system_runtime()
    rate = LinkRate(DirectoryStore(f"{folder}/store", runtime), runtime, source=SITE, cap=cap)
    with Path(folder, name).open("w", encoding="ascii", buffering=1) as told:
        while True:
            size_bytes = rate.piece_bytes
            rate.take(size_bytes)
            told.write(f"{time.monotonic()} {size_bytes}\n")


def taken(folder: Path, names: list[str]) -> list[tuple[float, int]]:
    """Return what workers took, by time."""
    found = []
    for name in names:
        # A worker that was killed may have been in the middle of a line.
        lines = (folder / name).read_text(encoding="ascii").splitlines(keepends=True)
        found += [line.split() for line in lines if line.endswith("\n")]
    return sorted((float(at_s), int(size)) for at_s, size in found)


def rates(
    events: list[tuple[float, int]], begin_s: float, end_s: float, *, awake: bool = False
) -> list[float]:
    """Return bytes per second of all windows of ten seconds in a time, one begun every quarter of a second.

    Args:
        events: Moments and bytes.
        begin_s: When the first window begins.
        end_s: When the last one ends.
        awake: Leave out windows in which a machine that is busy elsewhere let nobody run for a while.
    """
    window_s, found = 10.0, []
    while begin_s + window_s <= end_s:
        inside = [event for event in events if begin_s <= event[0] < begin_s + window_s]
        if not awake or _longest_pause_s(inside) < _ASLEEP_S:
            found.append(sum(size for _, size in inside) / window_s)
        begin_s += 0.25
    return found


def _longest_pause_s(events: list[tuple[float, int]]) -> float:
    return max((after - before for (before, _), (after, _) in pairwise(events)), default=0.0)
