"""A training job of gloo ranks under FSDP2 that is killed: its weights and moments are functions of the step.

Importable without torch, so that the loop that starts it need not wait for that.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fwstore
from support.kill_jobs import KEEP, LIMITS, Member, acknowledge

if TYPE_CHECKING:
    import torch

WIDTHS = (64, 500, 211, 3)


def training_job(member: Member) -> None:
    """Train from the newest checkpoint and save every step until killed."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meet = member.place.root / f"meet-{member.job}"
    dist.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=member.rank, world_size=member.world_size
    )
    train(member)
    # A rank that leaves early takes its end of the connections with it.
    dist.barrier()
    dist.destroy_process_group()


def train(member: Member) -> None:
    from fwstore_torch import Saver

    model, optimizer = build(member.world_size)
    place = member.place
    repository = fwstore.open(place.url, limits=LIMITS)
    pending: list[fwstore.SaveHandle] = []
    with (
        repository,
        Saver(repository.run("job"), {"model": model, "optimizer": optimizer}, keep=KEEP) as saver,
    ):
        start = saver.resume()
        for name, mine in local_tensors(model, optimizer):
            wanted = share(name, start - 1, member) if start else mine
            assert torch_equal(mine, wanted), f"{name} of step {start - 1} on {member}"
        place.resumed.note(f"{member.job} {member.rank}")
        for step in range(start, start + 20):
            for name, mine in local_tensors(model, optimizer):
                mine.copy_(share(name, step, member))
            pending.append(saver.save(step, position={"next": step + 1}))
            while len(pending) >= 2:
                acknowledge(place, pending.pop(0))
        for handle in pending:
            acknowledge(place, handle)


def build(world_size: int) -> tuple[Any, Any]:
    """Return a sharded model and an optimizer that has its states."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
    model = nn.Sequential(*layers)
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, WIDTHS[0])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def local_tensors(model: Any, optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what this rank holds of every weight and moment, by name."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().to_local()
        state = optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            yield f"{name}.{key}", state[key].to_local()


def whole(name: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return what a tensor holds at a step."""
    import torch

    # The biases are frozen: their bytes repeat from step to step.
    seed = zlib.crc32(name.encode()) + (0 if "bias" in name else step * 1_000_003)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def share(name: str, step: int, member: Member) -> torch.Tensor:
    """Return what a rank holds of it."""
    full = whole(name, step, shape_of(name))
    parts = list(full.chunk(member.world_size))
    return parts[member.rank] if member.rank < len(parts) else full[:0]


def shape_of(name: str) -> tuple[int, ...]:
    """Return the shape of a weight, a bias, or a moment of one."""
    layer = int(name.split(".", 1)[0])
    rows, columns = WIDTHS[layer + 1], WIDTHS[layer]
    return (rows, columns) if "weight" in name else (rows,)


def torch_equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    import torch

    return torch.equal(left, right)


def is_right(checkpoint: fwstore.Checkpoint) -> bool:
    """Return whether one process loads every weight and moment as its step determines."""
    state = checkpoint.load()
    names = [f"{layer}.{kind}" for layer in range(len(WIDTHS) - 1) for kind in ("weight", "bias")]
    wanted = {name: state["model"][name] for name in names}
    for name in names:
        for key in ("exp_avg", "exp_avg_sq"):
            wanted[f"{name}.{key}"] = state["optimizer"]["state"][name][key]
    return checkpoint.position == {"next": checkpoint.step + 1} and all(
        torch_equal(found, whole(name, checkpoint.step, shape_of(name)))
        for name, found in wanted.items()
    )
