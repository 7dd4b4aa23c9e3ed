"""Workers that are killed by the system, over and over: what they have sent is not sent again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fwstore
from support import copy_jobs
from support.copy_jobs import LIMITS, PACKS_AT_ONCE, PART

_FOOTERS = 8192


def replicate(near: Path, far: Path, *, kill_after: int | None) -> int:
    """Let a process replicate, killed after so many bytes; return how many it asked for."""
    command = [sys.executable, copy_jobs.__file__, str(near), str(far)]
    asked = 0
    with subprocess.Popen(
        [*command, "0.002" if kill_after else "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    ) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if line == "done\n":
                break
            asked += int(line)
            if kill_after and asked >= kill_after:
                worker.kill()
                # What it had asked for before it died counts as well.
                asked += sum(int(late) for late in worker.stdout.read().split() if late != "done")
                break
    return asked


@pytest.mark.slow
def test_killed_again_and_again_it_sends_a_part_per_stream_again_at_most(tmp_path: Path) -> None:
    near, far, whole_at = tmp_path / "near", tmp_path / "far", tmp_path / "whole"
    state = {"w": np.random.default_rng(5).integers(0, 255, 40 * PART, np.uint8)}
    with fwstore.open(near, limits=LIMITS) as repo, repo.run("gpt").writer() as writer:
        writer.save(0, state).result()
    whole = replicate(near, whole_at, kill_after=None)
    assert whole >= 40 * PART
    asked, kills = 0, 3
    for _ in range(kills):
        asked += replicate(near, far, kill_after=10 * PART)
    asked += replicate(near, far, kill_after=None)
    again = asked - whole
    assert again <= kills * (PACKS_AT_ONCE * PART + _FOOTERS)
    with fwstore.open(far) as repo:
        assert np.array_equal(repo.run("gpt").latest().load()["w"], state["w"])
        assert repo.verify(level="data").problems == ()
        left = [a.key for a in repo.gc(dry_run=True).actions if a.action == "delete"]
        # Nothing but what dead writers of this directory leave behind, whoever they are.
        assert all(key.startswith(".tmp/") for key in left)
