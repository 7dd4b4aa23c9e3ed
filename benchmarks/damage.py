"""What comes of damage, here and elsewhere: ``python -m benchmarks.damage``; tests/ must be on the path.

Every byte of every kind of object of a repository through everything that users do, and the same flips of single bits
in the checkpoints of others. Writes docs/reliability.json and the section of docs/reliability.md that is made from it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.common.damage_page import placed, section
from benchmarks.common.environments import Absent, interpreter, last_line
from benchmarks.common.flips import ADAPTERS, OURS
from support.corruption import ACTS, KINDS, WAYS, Gallery, tabulate
from support.gallery import hang, one_thread

FIGURES = Path("docs/reliability.json")
PAGE = Path("docs/reliability.md")
SUBJECTS = (OURS, "dcp sync", "torch.save", "safetensors", "orbax", "torchsnapshot")
_CRASHES_MAX = 200
_LIMIT_S = 3600


def main() -> None:
    """Damage everything and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2000, help="of each kind of byte, per peer")
    parser.add_argument("--every", type=int, default=1, help="one byte of so many, in repositories")
    parser.add_argument("--only", nargs="*", default=["repository", *SUBJECTS])
    arguments = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    damage = figures.setdefault("damage", {"peers": {}})
    for subject in arguments.only:
        if subject == "repository":
            damage["repository"] = {"every": arguments.every, "cells": cells(arguments.every)}
        else:
            damage["peers"][subject] = flipped(subject, arguments.flips)
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(placed(PAGE.read_text(), section(damage)))
        print(f"{subject}: done")


def cells(every: int) -> list[dict[str, object]]:
    """Return what came of damage to each kind of object, by way of damage and by act."""
    found: list[dict[str, object]] = []
    warnings.simplefilter("ignore")
    with pytest.MonkeyPatch.context() as monkeypatch, one_thread(monkeypatch):
        gallery = Gallery(hang())
        for kind in KINDS:
            for way in WAYS:
                for act in ACTS:
                    outcomes = tabulate(gallery, kind, way, act, every)
                    found.append({"kind": kind, "way": way, "act": act, "outcomes": outcomes})
    return found


def flipped(subject: str, count: int) -> dict[str, object]:
    """Return what came of flipped bits in a checkpoint of a peer, or why there is no answer."""
    adapter = ADAPTERS[subject]
    try:
        python = interpreter(adapter.requirement)
    except Absent as reason:
        return {"absent": str(reason)}
    with tempfile.TemporaryDirectory(dir=".") as folder:
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
