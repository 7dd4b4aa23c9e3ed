"""A training loop that is cut off from the witnesses of its run, and told to stop."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest
import torch

from fwstore import Fenced
from fwstore_torch import Saver
from support.topologies import places

_LAST = 400


def train(saver: Saver) -> None:
    for step in range(2, _LAST):
        saver.step(step)
        time.sleep(0.05)


def test_the_loop_stops_at_a_step_once_it_was_cut_off_for_too_long(tmp_path: Path) -> None:
    with places(tmp_path, ("a", "b", "c"), {}) as sites, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the job at a is cut off")
        sites.write('cut_off = "stop"\ncut_off_after = "0.2s"')
        with sites.open("a") as repository:
            saver = Saver(repository.run("job"), {"model": torch.nn.Linear(2, 2)}, every=1)
            saver.resume()
            saver.step(1)
            sites.cut = {"b", "c"}
            with pytest.raises(Fenced, match="cut off from a majority"):
                train(saver)
            saver.close()
            assert 1 < repository.run("job").latest().step < _LAST
