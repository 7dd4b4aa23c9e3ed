from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fwstore
from fwstore.base.units import MIB


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "busy"), [(0, True), (1, True), (1, False)])
def test_a_large_save_is_hashed_beside_where_threads_wait_unless_that_is_forbidden(
    tmp_path: Path, processes: int, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fwstore.content.lane.waits_for_lock", lambda *_: busy)
    rows = np.random.default_rng(1).integers(0, 256, (70, MIB), np.uint8)
    limits = fwstore.Limits(hashing_processes=processes)
    with fwstore.open(tmp_path / "store", limits=limits) as repository:
        run = repository.run("large")
        with run.writer() as writer:
            writer.save(1, {"w": rows, "small": np.arange(7)}).result()
        hasher = repository.runtime.hasher
        running = hasher._running if hasher is not None else None
        assert (running is not None) == (bool(processes) and busy)
        state = run.latest().load()
    assert np.array_equal(state["w"], rows)
    assert running is None or not Path(f"/proc/{running._process.pid}").exists()


def test_a_small_save_starts_no_process(tmp_path: Path) -> None:
    with fwstore.open(tmp_path / "store") as repository:
        with repository.run("small").writer() as writer:
            writer.save(1, {"w": np.arange(7)}).result()
        assert repository.runtime.hasher is not None
        assert repository.runtime.hasher._running is None
