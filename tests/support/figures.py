"""What long runs count, kept for docs/reliability.md: one file for each test, so that workers never meet in one.

Invariant: a figure is what a run counted, with the commit it ran on; nothing here is typed by hand. Tests keep figures
under `make soak` alone, so that a quick run never stands in place of a full one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]
FOLDER = _ROOT / "build" / "reliability"

Counts = Mapping[str, int | float]


@dataclass(frozen=True)
class Figures:
    """What one test counts.

    Args:
        test: Its name.
        soak: How many times the usual number of rounds it makes; 0: nothing is kept.
    """

    test: str
    soak: int

    def note(self, suite: str, counts: Counts) -> None:
        """Keep what a test of a suite counted."""
        if self.soak:
            keep(suite, self.test, counts)


def keep(suite: str, run: str, counts: Counts) -> None:
    """Write down what a run counted, in place of what the same run counted before."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2s(f"{suite} {run}".encode(), digest_size=8).hexdigest()
    found = {"suite": suite, "run": run, "commit": commit(), "counts": dict(counts)}
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def main(report: str) -> None:
    """Keep the sums of a report of coverage."""
    totals = json.loads(Path(report).read_text())["totals"]
    names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
    keep("coverage", "all tests", {name.replace("_", " "): totals[name] for name in names})


@cache
def commit() -> str:
    """Return which sources these are."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
