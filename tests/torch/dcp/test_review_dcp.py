"""What a save through DCP's door must not fail for."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import fwstore
from fwstore_torch import StorageReader, StorageWriter


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_cannot_be_freed_fails_no_save_where_warnings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise fwstore.Unavailable("the store does not delete today")

    state = {"w": torch.ones(3)}
    save(state, storage_writer=StorageWriter(tmp_path), no_dist=True)
    monkeypatch.setattr(fwstore.Repository, "gc", broken)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "what earlier saves")
        save({"w": torch.full((3,), 2.0)}, storage_writer=StorageWriter(tmp_path), no_dist=True)
    load(state, storage_reader=StorageReader(tmp_path), no_dist=True)
    assert state["w"].tolist() == [2, 2, 2]
