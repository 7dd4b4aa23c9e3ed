"""Which suites notice which bug: every named bug, switched on, under every suite; for the table of docs/reliability.md.

PYTHONPATH=tests python -m sim.sensitivity [PART_OF_A_NAME ...]

Invariant: a mark in the table is a run that failed; a bug under which tests cannot even be collected is an error here
and no success.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from sim.bugged import SUITES
from sim.bugs import BUGS, Bug, switched_on
from sim.plays import FACADE_EVERY, play
from sim.shrink import failure_of
from support.figures import keep

ROOT = Path(__file__).parents[2]
# How long the simulator looks for what others are known to find.
SEEDS = 200
_SIMULATOR = "simulator"
_HANGS_S = 120


def found(bug: Bug, seeds: int) -> int | None:
    """Return the first seed among so many that finds a bug."""
    every = FACADE_EVERY if bug.facade else 1
    with switched_on(bug):
        tried = range(every - 1, seeds * every, every)
        return next((seed for seed in tried if failure_of(play, seed) is not None), None)


def fails(bug: Bug, options: Sequence[str]) -> bool:
    """Run tests with a bug switched on; say whether one of them failed."""
    command = [sys.executable, "-m", "pytest", "-p", "sim.bugged", "--bug", bug.name, "-q", "-n0"]
    paths = os.pathsep.join(path for path in sys.path if path)
    told = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--hypothesis-seed=0", *options],
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "FWSTORE_PROFILE": "dev"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if told.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"{bug.name}: {told.stdout[-2000:]}{told.stderr[-2000:]}")
    return told.returncode == pytest.ExitCode.TESTS_FAILED


def row(bug: Bug) -> dict[str, int]:
    """Return which suites notice a bug."""
    files = {
        test.partition("::")[0].removesuffix("/") for tests in SUITES.values() for test in tests
    }
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder, "marks")
        fails(bug, ["--marks", str(marks), f"--timeout={_HANGS_S}", *sorted(files)])
        cells: dict[str, int] = json.loads(marks.read_text())
    return cells | {_SIMULATOR: int(found(bug, bug.seeds or SEEDS) is not None)}


def main(parts: Sequence[str]) -> None:
    """Fill the rows of the bugs that are named, or of all."""
    for bug in BUGS:
        if not parts or any(part in bug.name for part in parts):
            cells = row(bug)
            keep("bugs", bug.name, cells)
            print(
                f"{bug.name}: {', '.join(s for s, marked in cells.items() if marked)}", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
