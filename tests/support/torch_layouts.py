"""What the ranks of a mesh say they hold of known tensors, for the tests of DTensor layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fwstore.base.errors import UnsupportedValue
from fwstore_torch.tensors import adapter


def described_equals_full(value: DTensor, full: torch.Tensor) -> bool:
    """Return whether the pieces of this rank hold exactly what the whole tensor has in their boxes."""
    shard = adapter.describe(value)
    assert shard.shape == tuple(full.shape)
    assert sum(piece.box.volume for piece in shard.pieces) == value.to_local().numel()
    return all(
        np.array_equal(
            np.asarray(piece.array).view(np.float32), full.detach().numpy()[piece.box.slices()]
        )
        for piece in shard.pieces
    )


def check_placements(rank: int, world_size: int) -> None:
    """Describe tensors under every placement, on whole meshes and on a part of one."""
    full = torch.arange(7 * 5 * 3, dtype=torch.float32).reshape(7, 5, 3)
    row: DeviceMesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("dp",))
    grid = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("dp", "tp"))
    for mesh, placements in (
        (row, [Shard(0)]),
        (row, [Shard(1)]),
        (row, [Replicate()]),
        (grid, [Shard(0), Shard(0)]),
        (grid, [Shard(1), Shard(0)]),
        (grid, [Replicate(), Shard(2)]),
        (grid["tp"], [Shard(0)]),
    ):
        assert described_equals_full(distribute_tensor(full, mesh, placements), full), placements
    tiny = torch.ones(1, 2)
    assert described_equals_full(distribute_tensor(tiny, row, [Shard(0)]), tiny)
    assert adapter.describe(distribute_tensor(full, grid, [Shard(0), Shard(1)])).layout == (
        adapter.describe(distribute_tensor(full + 1, grid, [Shard(0), Shard(1)])).layout
    )
    pending = DTensor.from_local(full, row, [Partial()], run_check=False)
    with pytest.raises(UnsupportedValue, match="redistribute"):
        adapter.describe(pending)


def check_strided(rank: int, world_size: int) -> None:
    """Describe FSDP over TP, whose local tensors are strided shards of the whole."""
    grid = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("dp", "tp"))
    for rows in (8, 6, 7):
        layout = None
        torch.manual_seed(rows)
        model = nn.Sequential(nn.Linear(5, rows), nn.Linear(rows, 3))
        full = {name: value.detach().clone() for name, value in model.state_dict().items()}
        parallelize_module(model, grid["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        fully_shard(model, mesh=grid["dp"])
        for name, value in model.state_dict().items():
            assert isinstance(value, DTensor)
            assert described_equals_full(value, full[name]), (rows, name, value.placements)
            layout = layout or adapter.describe(value).layout
        assert layout is not None
        assert layout.mesh == (2, world_size // 2)
        assert [split is not None and split.outer for split in layout.placements] == [False, True]


def check_destinations(rank: int, world_size: int) -> None:
    """Write to described memory and to what meta DTensors are given."""
    mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("dp",))
    full = torch.arange(10, dtype=torch.float32).reshape(5, 2)
    source = distribute_tensor(full, mesh, [Shard(0)])
    local = torch.empty_like(source.to_local(), device="meta")
    meta = nn.Parameter(
        DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.stride()
        )
    )
    real: Any = adapter.materialise(meta)
    assert isinstance(real, nn.Parameter)
    loaded: Any = real
    for there, here in zip(
        adapter.describe(real, writable=True).pieces, adapter.describe(source).pieces, strict=True
    ):
        np.copyto(np.asarray(there.array), np.asarray(here.array))
    assert torch.equal(loaded.to_local(), source.to_local())
    assert adapter.identity(source) != adapter.identity(real)
