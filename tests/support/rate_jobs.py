"""Workers of one link as processes, which say when they took how much, and one that says when nobody could run.

Invariant: a process writes what it has to tell to a file of its own, whole lines only. Whether the machine stood still is told by
one that takes nothing, for a worker that pauses may be what is looked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fwstore.sched.runtime import system_runtime
from fwstore.store.directory import DirectoryStore
from fwstore.wan.rate import LinkRate
from support.stored import SITE

WINDOW_S = 10.0
GUARD = "guard"
_ASLEEP_S = 0.4
# Of the cap of a second, as requests are cut for links with a cap.
_PIECE_S = 0.02

Span = tuple[float, float]


def take_for_ever(folder: str, name: str, cap: float) -> None:
    """Take pieces as fast as one is let, until killed."""
    runtime = system_runtime()
    rate = LinkRate(DirectoryStore(f"{folder}/store", runtime), runtime, source=SITE, cap=cap)
    size_bytes = int(cap * _PIECE_S)
    with Path(folder, name).open("w", encoding="ascii", buffering=1) as told:
        while True:
            rate.take(size_bytes)
            told.write(f"{time.monotonic()} {size_bytes}\n")


def stand_guard(folder: str) -> None:
    """Tell all the time that the machine lets processes run, until killed."""
    with Path(folder, GUARD).open("w", encoding="ascii", buffering=1) as told:
        while True:
            told.write(f"{time.monotonic()}\n")
            time.sleep(0.05)


def taken(folder: Path, names: list[str]) -> list[tuple[float, int]]:
    """Return what workers took, by time."""
    found = [line.split() for name in names for line in _whole_lines(folder / name)]
    return sorted((float(at_s), int(size)) for at_s, size in found)


def standstills(folder: Path) -> list[Span]:
    """Return from when to when the machine let nobody run."""
    moments = [float(line) for line in _whole_lines(folder / GUARD)]
    return [span for span in pairwise(moments) if span[1] - span[0] >= _ASLEEP_S]


def rates(
    events: list[tuple[float, int]], begin_s: float, end_s: float, without: Sequence[Span] = ()
) -> list[float]:
    """Return bytes per second of all windows of ten seconds in a time, one begun every quarter of a second.

    Args:
        events: Moments and bytes.
        begin_s: When the first window begins.
        end_s: When the last one ends.
        without: Leave out windows that meet one of these times.
    """
    found = []
    while begin_s + WINDOW_S <= end_s:
        if not any(from_s < begin_s + WINDOW_S and begin_s < to_s for from_s, to_s in without):
            inside = (size for at_s, size in events if begin_s <= at_s < begin_s + WINDOW_S)
            found.append(sum(inside) / WINDOW_S)
        begin_s += 0.25
    return found


def _whole_lines(file: Path) -> list[str]:
    # Who was killed may have been in the middle of a line.
    lines = file.read_text(encoding="ascii").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]
