"""Which suites notice which bug: every named bug, switched on, under every suite; for the table of docs/reliability.md.

PYTHONPATH=tests python -m sim.sensitivity [PART_OF_A_NAME ...]

Invariant: a mark in the table is a run that failed. A suite stops at its first failure, and a bug under which tests
cannot even be collected is an error here and no success.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sim.bugs import BUGS, Bug, switched_on
from sim.plays import play
from sim.shrink import failure_of
from support.figures import keep

ROOT = Path(__file__).parents[2]
SEEDS = 2000
SIMULATOR = "simulator"

# What a suite is asked with. Loops of real processes and of real servers take too long to be run once for each bug.
SUITES: Mapping[str, Sequence[str]] = {
    "log": ("tests/log",),
    "collection": (
        "tests/care",
        "--deselect=tests/care/test_gc_scale.py",
        "--deselect=tests/care/test_interleaving.py",
    ),
    "interleaving": ("tests/care/test_interleaving.py",),
    "crash points": ("tests/e2e/test_crash_points.py", "-k=save or collection"),
    "ranks": ("tests/e2e/test_rank_deaths.py", "tests/e2e/test_thread_ranks.py"),
    "checkpoints": ("tests/checkpoint",),
    "content": ("tests/content",),
    "formats": ("tests/format",),
    "any order": ("tests/e2e/test_stateful.py",),
    "corruption": ("tests/e2e/test_corruption.py", "-k=flipped_byte or not_ours or whatever"),
    "hostile input": ("tests/e2e/test_hostile_input.py",),
    "power loss": ("tests/store/test_power_loss.py", "tests/store/test_power_loss_saves.py"),
    "conformance": ("tests/store/test_conformance.py", "-m=not s3 and not rgw"),
}


def seed_of(bug: Bug) -> int | None:
    """Return the first seed that finds a bug, among those that CI plays."""
    with switched_on(bug):
        return next((seed for seed in range(SEEDS) if failure_of(play, seed) is not None), None)


def fails(bug: Bug, tests: Sequence[str]) -> bool:
    """Run tests with a bug switched on; say whether one of them failed."""
    command = [sys.executable, "-m", "pytest", "-p", "sim.bugged", "--bug", bug.name, "-qx", "-n0"]
    paths = os.pathsep.join(path for path in sys.path if path)
    told = subprocess.run(
        [*command, "-p", "no:cacheprovider", *tests],
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "FWSTORE_PROFILE": "ci"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if told.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"{bug.name}: {told.stdout[-2000:]}{told.stderr[-2000:]}")
    return told.returncode == pytest.ExitCode.TESTS_FAILED


def main(parts: Sequence[str]) -> None:
    """Fill the rows of the bugs that are named, or of all."""
    for bug in BUGS:
        if parts and not any(part in bug.name for part in parts):
            continue
        seed = seed_of(bug)
        cells = {suite: int(fails(bug, tests)) for suite, tests in SUITES.items()}
        keep("bugs", bug.name, {SIMULATOR: int(seed is not None), **cells})
        caught = [suite for suite, failed in cells.items() if failed]
        print(f"{bug.name}: seed {seed}; {', '.join(caught)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
