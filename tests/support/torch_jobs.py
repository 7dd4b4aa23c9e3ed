"""A small data-parallel training job over `Saver`, as one rank of it runs.

Its losses depend on the global batch alone, so they are equal on any number of ranks up to rounding.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

import fwstore
from fwstore_torch import PerRank, Saver
from fwstore_torch.late import LateCopies
from fwstore_torch.parts import make_parts

BATCH = 12


class Samples:
    """Hands out sample ids in a fixed order; its state does not depend on the world."""

    def __init__(self) -> None:
        self.next = 0

    def take(self) -> list[int]:
        self.next += BATCH
        return list(range(self.next - BATCH, self.next))

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.next = state_dict["next"]


@dataclass
class Job:
    """What a rank of the job has, made alike on all of them."""

    rank: int
    world_size: int
    samples: Samples = field(default_factory=Samples)

    def __post_init__(self) -> None:
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 1))
        mesh = init_device_mesh("cpu", (self.world_size,), mesh_dim_names=("dp",))
        for layer in (0, 2, 3):
            fully_shard(self.model[layer], mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, gamma=0.9)

    @property
    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "samples": self.samples,
        }

    def train(self) -> float:
        """Do one step and return the loss of the global batch."""
        ids = self.samples.take()
        mine = ids[self.rank :: self.world_size]
        loss = self._loss(mine)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.scheduler.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        return float(total) / self.world_size

    def _loss(self, ids: list[int]) -> torch.Tensor:
        inputs = torch.tensor([[float((i * k) % 11) / 11 for k in range(1, 6)] for i in ids])
        error: torch.Tensor = self.model(inputs) - inputs.sum(1, keepdim=True)
        return error.square().mean()


def train_to(
    rank: int, world_size: int, url: str, total: int, every: int = 2, staging: Any = "eager"
) -> dict[int, float]:
    """Resume the run and train up to a step; returns the loss of every step that was done."""
    return _train(Job(rank, world_size), fwstore.open(url), total, every, staging)


def train_at(
    rank: int, world_size: int, topology: str, sites: Sequence[str], total: int
) -> dict[int, float]:
    """The same with every rank at its site."""
    return _train(Job(rank, world_size), fwstore.open(topology, site=sites[rank]), total)


def _train(
    job: Job, repository: fwstore.Repository, total: int, every: int = 2, staging: Any = "eager"
) -> dict[int, float]:
    losses = {}
    options: Any = {
        "every": every,
        "keep": fwstore.Keep(last=2),
        "staging": staging,
        "max_failures": 1,
    }
    with Saver(repository.run("job"), job.parts, **options) as saver:
        for step in saver.steps(total):
            losses[step] = job.train()
            saver.step(step, metrics={"loss": losses[step]})
    return losses


def late_tensors(rank: int, world_size: int) -> set[str]:
    """Return the tensors that are copied late, of a sharded model and its optimizer."""
    job = Job(rank, world_size)
    job.train()
    parts: Any = make_parts(job.parts)[0]
    is_late = LateCopies([parts["optimizer"]]).is_late()
    states = parts["optimizer"].state()["state"]
    values = {f"{n}/{key}": value for n, state in states.items() for key, value in state.items()}
    return {name for name, v in (parts["model"].state() | values).items() if is_late(v)}


def train_until_signalled(
    rank: int, world_size: int, url: str, signals: dict[int, list[int]]
) -> tuple[int, bool, int]:
    """Train without end; a rank sends itself SIGTERM at its steps. Returns where and how it stopped."""
    job = Job(rank, world_size)
    with Saver(fwstore.open(url).run("job"), job.parts, grace="30s") as saver:
        for step in saver.steps(1_000_000):
            if step in signals.get(rank, []):
                os.kill(os.getpid(), signal.SIGTERM)
            job.train()
            saver.step(step)
    assert saver.stopped is not None
    return saver.stopped.step, saver.stopped.saved, int(str(saver.stopped.code))


def die_while_others_stop(rank: int, world_size: int, url: str) -> tuple[int, bool]:
    """Rank 1 dies; the others are asked to stop and must leave by themselves."""
    weight = nn.Linear(2, 2)
    run = fwstore.open(url, limits=fwstore.Limits(commit_timeout_s=3.0)).run("job")
    saver = Saver(run, {"model": weight}, grace="3s")
    saver.resume()
    for step in range(1_000_000):
        if rank == 1 and step == 2:
            os._exit(9)
        if rank != 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            saver.step(step)
        except SystemExit:
            assert saver.stopped is not None
            return saver.stopped.step, saver.stopped.saved
    raise AssertionError("nobody asked to stop")


def save_on_a_timer(rank: int, world_size: int, url: str, steps: int) -> list[int]:
    """Save every few milliseconds; returns the steps at which this rank saved."""
    model = nn.Linear(2, 2)
    loader = PerRank(Samples())
    saved = []
    with Saver(
        fwstore.open(url).run("job"), {"model": model, "loader": loader}, every="50ms"
    ) as saver:
        saver.resume()
        for step in range(steps):
            torch.distributed.barrier()
            if saver.step(step) is not None:
                saved.append(step)
            if len(saved) == 2:
                break
    return saved


def train_stages(rank: int, world_size: int, url: str) -> bool:
    """Every rank has a stage of its own, as in a pipeline; returns whether a resume brings it back."""

    def stage() -> dict[str, Any]:
        model = nn.ModuleDict({f"stage{rank}": nn.Linear(3, 2)})
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1 + rank)}

    torch.manual_seed(rank)
    before, after = stage(), stage()
    before["model"][f"stage{rank}"](torch.ones(1, 3)).sum().backward()
    before["optimizer"].step()
    with Saver(fwstore.open(url).run("job"), before) as saver:
        saver.resume()
        saver.save(0)
    with Saver(fwstore.open(url).run("job"), after) as saver:
        saver.resume()
    states = [parts["optimizer"].state_dict()["state"] for parts in (before, after)]
    return all(
        torch.equal(value, states[1][number][key])
        for number, state in states[0].items()
        for key, value in state.items()
    ) and all(
        torch.equal(value, after["model"].state_dict()[name])
        for name, value in before["model"].state_dict().items()
    )


def save_on_parts_of_a_mesh(rank: int, world_size: int, url: str) -> bool:
    """FSDP over one dimension of a mesh: the ranks along the other one hold the same shards."""
    grid = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("dp", "tp"))

    def sharded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Linear(6, 4)
        fully_shard(model, mesh=grid["dp"])
        return model

    before, after = sharded(1), sharded(2)
    with Saver(fwstore.open(url).run("job"), {"model": before}) as saver:
        saver.resume()
        saver.save(0)
    with Saver(fwstore.open(url).run("job"), {"model": after}) as saver:
        assert saver.resume() == 1
    there = after.state_dict()
    return all(
        torch.equal(v.to_local(), there[n].to_local()) for n, v in before.state_dict().items()
    )


def save_shards_on(rank: int, world_size: int, url: str, device: str) -> bool:
    """Save local shards that are not contiguous, change them, and compare what was saved."""
    mesh = init_device_mesh(device, (world_size,))
    rows = torch.arange(world_size * 96 * 80.0).view(-1, 80)
    local = rows.chunk(world_size)[rank].clone().to(device)[:, ::2]
    run = fwstore.open(url).run("shards")
    with run.writer() as writer:
        sharded = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        handle = writer.save(0, {"w": sharded})
        local.zero_()
        handle.result()
    return torch.equal(run[0].load()["w"].cpu(), rows[:, ::2])
