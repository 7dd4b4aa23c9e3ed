"""What the ranks of a gloo job do in the tests of torch.distributed.checkpoint on fwstore."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.futures import Future

import fwstore
from fwstore_torch.storage_reader import StorageReader
from fwstore_torch.storage_writer import StorageWriter

ROWS = torch.arange(7 * 4, dtype=torch.float32).reshape(7, 4)


def sharded(state: float, placement: Any, world_size: int) -> dict[str, Any]:
    """Return a state with a sharded, a replicated and a plain tensor and plain values."""
    mesh = init_device_mesh("cpu", (world_size,))
    return {
        "model": {
            "weight": distribute_tensor(ROWS + state, mesh, [placement]),
            "everywhere": distribute_tensor(torch.full((3,), state), mesh, [Replicate()]),
        },
        "plain": torch.full((5,), state),
        "step": int(state),
    }


def check_sharded(state: dict[str, Any], expected: float) -> None:
    """Assert that a state holds what `sharded` made."""
    assert torch.equal(state["model"]["weight"].full_tensor(), ROWS + expected)
    assert state["model"]["everywhere"].to_local().tolist() == [expected] * 3
    assert state["plain"].tolist() == [expected] * 5
    assert state["step"] == int(expected)


class CountingWriter(StorageWriter):
    """Counts what this rank writes."""

    written: tuple[str, ...] = ()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Note the names of the items."""
        self.written = tuple(item.index.fqn for item in plan.items)
        return super().write_data(plan, planner)


def save_twice(rank: int, world_size: int, path: str) -> tuple[str, ...]:
    """Save, be refused, replace, load on the other dimension; return what this rank wrote."""
    dcp_save(sharded(1, Shard(0), world_size), storage_writer=StorageWriter(path))
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp_save(
            sharded(9, Shard(0), world_size), storage_writer=StorageWriter(path, overwrite=False)
        )
    writer = CountingWriter()
    dcp_save(sharded(2, Shard(0), world_size), checkpoint_id=path, storage_writer=writer)
    target = sharded(0, Shard(1), world_size)
    dcp_load(target, storage_reader=StorageReader(path))
    check_sharded(target, 2)
    return writer.written


def load_elsewhere(rank: int, world_size: int, path: str, expected: float) -> None:
    """Load what another world saved."""
    target = sharded(0, Shard(0), world_size)
    dcp_load(target, storage_reader=StorageReader(path))
    check_sharded(target, expected)


def save_with_cached_plans(rank: int, world_size: int, repository: str) -> None:
    """Save three steps of one run, the later ones with the plan of the first."""
    for step in range(1, 4):
        dcp_save(
            sharded(step, Shard(0), world_size),
            checkpoint_id=f"{repository}/job/step-{step}",
            storage_writer=StorageWriter(repository=repository),
            planner=DefaultSavePlanner(enable_plan_caching=True),
        )
    for step in range(1, 4):
        target = sharded(0, Shard(1), world_size)
        dcp_load(target, storage_reader=StorageReader(f"{repository}#job@{step}"))
        check_sharded(target, step)


def save_alone(rank: int, world_size: int, path: str) -> None:
    """Save without collectives: each rank has a checkpoint of its own shards."""
    dcp_save(
        sharded(4, Shard(0), world_size),
        storage_writer=StorageWriter(path),
        use_collectives=False,
    )
    target = sharded(0, Shard(0), world_size)
    dcp_load(target, storage_reader=StorageReader(path))
    check_sharded(target, 4)


def fail_on_one_rank(rank: int, world_size: int, path: str) -> None:
    """A save that fails on one rank fails on all, and the older checkpoint stays."""
    dcp_save(sharded(1, Shard(0), world_size), storage_writer=StorageWriter(path))

    class Failing(StorageWriter):
        def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
            if rank == 1:
                raise OSError("this rank fails")
            return super().write_data(plan, planner)

    with pytest.raises(CheckpointException) as caught:
        dcp_save(sharded(2, Shard(0), world_size), storage_writer=Failing(path))
    assert list(caught.value.failures) == [1]
    load_elsewhere(rank, world_size, path, 1)
    dcp_save(sharded(3, Shard(0), world_size), storage_writer=StorageWriter(path))
    load_elsewhere(rank, world_size, path, 3)


def save_in_background(rank: int, world_size: int, path: str, kind: AsyncCheckpointerType) -> None:
    """Save while the tensors change."""
    state = sharded(1, Shard(0), world_size)
    future: Any = async_save(
        state, storage_writer=StorageWriter(path), async_checkpointer_type=kind
    )
    state["plain"].fill_(-1)
    future.result()
    load_elsewhere(rank, world_size, path, 1)


def save_in_a_process(rank: int, world_size: int, port: int, path: str) -> None:
    """Save with DCP's own process; started by spawn, since the rank must be allowed to have children."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    save_in_background(rank, world_size, path, AsyncCheckpointerType.PROCESS)
    dist.barrier()
    dist.destroy_process_group()


def save_stages(rank: int, world_size: int, path: str) -> None:
    """Save through fwstore's own door, every rank a tensor that no other rank knows."""
    with fwstore.open(path) as repository, repository.run("stages").writer() as writer:
        writer.save(5, {"stage": {f"w{rank}": torch.full((2,), float(rank))}, "n": 7}).result()


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Return the losses of some steps on fixed data."""
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = model(torch.randn(4, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def resume_fsdp(rank: int, world_size: int, path: str, first: bool) -> list[float]:
    """Train an FSDP2 model, save or load it with its optimizer, and train on."""
    torch.manual_seed(0 if first else 1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    if first:
        train(model, optimizer, 3)
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    if first:
        dcp_save(state, storage_writer=StorageWriter(path))
    else:
        dcp_load(state, storage_reader=StorageReader(path))
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
    dist.barrier()
    return train(model, optimizer, 3)
