"""What comes of flipped bits in checkpoints, ours and those of others: ``python -m benchmarks.damage``.

Every byte of a repository, through everything that users do, is the matter of tests/e2e/test_corruption.py. Writes
docs/reliability.json and docs/reliability.md; tests/ must be on the path.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.common.environments import Absent, interpreter, last_line
from benchmarks.common.flips import ADAPTERS, OURS
from benchmarks.reliability import read_figures, write_figures

SUBJECTS = (OURS, "dcp sync", "torch.save", "safetensors", "orbax", "torchsnapshot")
_CRASHES_MAX = 200
_LIMIT_S = 3600


def main() -> None:
    """Damage everything and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2000, help="of each kind of byte, per peer")
    parser.add_argument("--only", nargs="*", default=SUBJECTS)
    arguments = parser.parse_args()
    figures = read_figures()
    for subject in arguments.only:
        figures["peers"][subject] = flipped(subject, arguments.flips)
        write_figures(figures)
        print(f"{subject}: done")


def flipped(subject: str, count: int) -> dict[str, object]:
    """Return what came of flipped bits in a checkpoint of a peer, or why there is no answer."""
    adapter = ADAPTERS[subject]
    try:
        python = interpreter(adapter.requirement)
    except Absent as reason:
        return {"absent": str(reason)}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        answers, plan = Path(folder, "answers"), Path(folder, "plan.json")
        for _ in range(_CRASHES_MAX):
            command = [python, "-m", "benchmarks.common.flips", subject, folder, str(count)]
            ended = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_LIMIT_S
            )
            if not plan.exists():
                return {"absent": last_line(ended.stderr)}
            lines = answers.read_text().splitlines() if answers.exists() else []
            chosen = json.loads(plan.read_text())
            if len(lines) == len(chosen):
                return {
                    "flips": dict(sorted(Counter(lines).items())),
                    "version": _version(python, adapter.distribution),
                }
            with answers.open("a") as file:
                file.write(f"{chosen[len(lines)][2]}: crash\n")
    return {"absent": f"more than {_CRASHES_MAX} crashes"}


def _version(python: str, distribution: str) -> str:
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
