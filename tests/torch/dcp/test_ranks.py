"""DCP on fwstore with real ranks: nothing is lost, nothing is mixed, and nobody waits."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.multiprocessing.spawn import spawn

import fwstore
from fwstore_torch.storage_reader import StorageReader
from support import torch_dcp
from support.ranks import run_ranks

pytestmark = [
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.distributed is"),
]


def test_save_refuse_replace_and_load_on_other_worlds(tmp_path: Path) -> None:
    written = run_ranks(2, torch_dcp.save_twice, str(tmp_path))
    names = [name for of_rank in written for name in of_rank]
    assert sorted(set(names)) == ["model.everywhere", "model.weight", "plain", "step"]
    assert len(names) == 5, "only the sharded tensor is written by both ranks"
    run_ranks(3, torch_dcp.load_elsewhere, str(tmp_path), 2)
    run_ranks(1, torch_dcp.load_elsewhere, str(tmp_path), 2)
    with fwstore.open(str(tmp_path)) as repository:
        checkpoint = repository.run("checkpoint").latest()
        weight = checkpoint.tensors["model", "weight"]
        assert np.array_equal(np.asarray(weight[:]), torch_dcp.ROWS.numpy() + 2)


def test_cached_plans_do_not_carry_an_old_ticket(tmp_path: Path) -> None:
    run_ranks(2, torch_dcp.save_with_cached_plans, str(tmp_path / "store"))


def test_without_collectives_each_rank_loads_its_own(tmp_path: Path) -> None:
    run_ranks(2, torch_dcp.save_alone, str(tmp_path))
    sizes = {
        chunk.sizes[0]
        for rank in range(2)
        for chunk in StorageReader(tmp_path)
        .read_metadata(rank=rank)
        .state_dict_metadata["model.weight"]
        .chunks  # type: ignore[union-attr]  # it is a tensor
    }
    assert sizes == {3, 4}, "the metadata of a rank names its own shard only"


def test_one_failing_rank_fails_the_save_and_spares_the_older_one(tmp_path: Path) -> None:
    run_ranks(2, torch_dcp.fail_on_one_rank, str(tmp_path))


def test_async_save_in_a_thread(tmp_path: Path) -> None:
    run_ranks(2, torch_dcp.save_in_background, str(tmp_path), AsyncCheckpointerType.THREAD)


def test_async_save_in_a_process(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(torch_dcp.save_in_a_process, (1, port, str(tmp_path)))  # type: ignore[no-untyped-call]  # torch's


def test_dcp_loads_tensors_that_only_other_ranks_saved_natively(tmp_path: Path) -> None:
    run_ranks(2, torch_dcp.save_stages, str(tmp_path))
    found: Any = _load_state_dict_from_keys(storage_reader=StorageReader(f"{tmp_path}#stages@5"))
    assert found["stage"]["w0"].tolist() == [0.0, 0.0]
    assert found["stage"]["w1"].tolist() == [1.0, 1.0]
    assert found["n"] == 7


def test_fsdp_resumes_on_another_world(tmp_path: Path) -> None:
    losses = run_ranks(2, torch_dcp.resume_fsdp, str(tmp_path), True)[0]
    resumed = run_ranks(3, torch_dcp.resume_fsdp, str(tmp_path), False)[0]
    assert resumed == pytest.approx(losses, rel=1e-5)
