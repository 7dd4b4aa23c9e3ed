"""Every layout of a world saved at once, and loaded by every rank of another world.

A state holds the same tensors under all layouts, each under the name of its layout, so that one process group
per saving world and one per loading world cover the whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import fwstore

SHAPES = {"even": (24, 16), "uneven": (7, 5), "thin": (2, 3), "vector": (13,), "deep": (5, 4, 6)}


def whole(name: str, form: str) -> torch.Tensor:
    """The content of a tensor, the same everywhere: every element is another number."""
    shape = SHAPES[form]
    count = int(torch.tensor(shape).prod())
    first = sum(map(ord, name + form)) * 1000
    return torch.arange(first, first + count, dtype=torch.float32).reshape(shape)


def layouts(world_size: int) -> Iterator[tuple[str, DeviceMesh, list[Any]]]:
    """Every layout that a world allows, by name; 2-D ones need an even world."""
    row = init_device_mesh("cpu", (world_size,), mesh_dim_names=("dp",))
    yield "rows", row, [Shard(0)]
    yield "columns", row, [Shard(1)]
    yield "replicated", row, [Replicate()]
    if world_size % 2:
        return
    grid = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("dp", "tp"))
    yield "2-D", grid, [Shard(0), Shard(1)]
    yield "HSDP", grid, [Replicate(), Shard(0)]
    yield "HSDP over columns", grid, [Shard(1), Replicate()]
    yield "twice", grid, [Shard(0), Shard(0)]
    yield "FSDP over TP", grid, [_StridedShard(0, split_factor=grid.size(1)), Shard(0)]


def build(world_size: int, *, filled: bool) -> dict[str, Any]:
    """The state of this rank under all layouts, whole or with zeros in place of the content."""
    state: dict[str, Any] = {}
    for name, mesh, placements in layouts(world_size):
        state[name] = {
            form: spread(whole(name, form) if filled else torch.zeros(shape), mesh, placements)
            for form, shape in SHAPES.items()
            if all(getattr(p, "dim", 0) < len(shape) for p in placements)
        }
    plain = whole("plain", "even") if filled else torch.zeros(SHAPES["even"])
    return {**state, "plain": {"even": plain}}


def spread(full: torch.Tensor, mesh: DeviceMesh, placements: list[Any]) -> DTensor:
    """Distribute a tensor; strided shards, which torch makes only itself, by their parts."""
    if not any(isinstance(p, _StridedShard) for p in placements):
        return distribute_tensor(full, mesh, placements)
    strided: Any = placements[0]
    tp, dp = mesh.get_local_rank(1), mesh.get_local_rank(0)
    parts = list(torch.chunk(full, strided.split_factor, 0))
    parts += [full[:0]] * (strided.split_factor - len(parts))
    inner = list(torch.chunk(parts[tp], mesh.size(0), 0))
    inner += [parts[tp][:0]] * (mesh.size(0) - len(inner))
    return DTensor.from_local(
        inner[dp].clone(),
        mesh,
        placements,
        run_check=False,
        shape=full.shape,
        stride=full.stride(),
    )


def save_all(rank: int, world_size: int, url: str, run: str) -> tuple[int, int, int]:
    """Save every layout of this world; return bytes by this rank, and written and logical in all."""
    with (
        fwstore.open(url, limits=fwstore.Limits(threads=2)) as repository,
        repository.run(run).writer() as writer,
    ):
        handle = writer.save(0, build(world_size, filled=True))
        handle.result(60)
        found = handle.statistics()
        return found.rank_bytes_written, found.bytes_written, found.bytes_logical


def load_all(rank: int, world_size: int, url: str, runs: list[str]) -> tuple[int, list[str]]:
    """Load every tensor of several runs under every layout of this world.

    Returns:
        How many were compared, and what was wrong.
    """
    compared, wrong = 0, []
    with fwstore.open(url, limits=fwstore.Limits(threads=2)) as repository:
        for run in runs:
            checkpoint = repository.run(run)[0]
            for name, saved in checkpoint.state().items():
                for layout, made in build(world_size, filled=False).items():
                    state = {form: value for form, value in made.items() if form in saved}
                    checkpoint.load(into={name: state}, only=[f"{name}/{f}" for f in state])
                    compared += len(state)
                    wrong += [
                        f"{run} {name}/{form} as {layout} on rank {rank}"
                        for form, value in state.items()
                        if not holds(value, whole(name, form))
                    ]
    return compared, wrong


def holds(value: torch.Tensor, full: torch.Tensor) -> bool:
    """Whether this rank's part of a tensor is what a whole one has there."""
    if not isinstance(value, DTensor):
        return torch.equal(value, full)
    expected = spread(full, value.device_mesh, list(value.placements))
    return torch.equal(value.to_local(), expected.to_local())
