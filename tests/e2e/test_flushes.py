"""How often the first saves into a new directory flush: as often as there are new names, and no oftener."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fwstore
from support.power import Disk


def test_saves_flush_a_directory_once_per_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, counts = Disk(monkeypatch), []
    with fwstore.open(tmp_path / "new" / "store", limits=fwstore.Limits(threads=1)) as repo:
        run = repo.run("group/run")
        with run.writer() as writer:
            for step in range(3):
                writer.save(step, {"w": np.full(1000, step)}).result(60)
                writer.wait()
                assert disk.wasted == []
                counts.append(len(disk.flushes))
                disk.forget()
        keys = [info.key for info in repo.store.list("")]
        assert all(disk.keeps(tmp_path / "new" / "store", key) for key in keys)
    # Pack, leaf, pack table, root and record, and the name of the directory of the manifest.
    assert counts[1:] == [6, 6]
    # With the names of all directories, and what makes the site, the name, the lineage and the term.
    assert counts[0] == 30
