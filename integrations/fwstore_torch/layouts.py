"""DTensor placements as fwstore layouts.

Invariant: the boxes of a layout, read in ascending order along every dimension, are the local tensor of a
rank in order; `boxes_with_slices` relies on it and refuses boxes that do not fill the local tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from fwstore.plan.box import Box
from fwstore.plan.layout import Layout, Placement, Split
from torch.distributed.tensor.placement_types import Placement as TorchPlacement
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

from fwstore.base.errors import InternalError, UnsupportedValue

# Mesh dimensions that split a tensor into parts of its own meaning, by the names that trainers give them.
OUTER_DIMENSIONS = frozenset({"tp", "ep", "etp", "tensor", "expert", "model"})

_ranks: WeakKeyDictionary[Any, tuple[int, ...]] = WeakKeyDictionary()


def layout_of(value: Any) -> Layout:
    """Return the layout of a DTensor.

    Raises:
        UnsupportedValue: A placement is a pending sum or unknown.
    """
    mesh = value.device_mesh
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    placements = tuple(
        _placement(placement, outer=name in OUTER_DIMENSIONS)
        for placement, name in zip(value.placements, names, strict=True)
    )
    return Layout(tuple(mesh.shape), placements, _mesh_ranks(mesh))


def _placement(placement: TorchPlacement, *, outer: bool) -> Placement:
    if isinstance(placement, Replicate):
        return None
    if isinstance(placement, _StridedShard):
        return Split(placement.dim, int(placement.split_factor), outer)
    if isinstance(placement, Shard):
        return Split(placement.dim, outer=outer)
    raise UnsupportedValue(
        f"a DTensor with the placement {placement} cannot be stored; redistribute it first"
    )


def _mesh_ranks(mesh: Any) -> tuple[int, ...]:
    ranks = _ranks.get(mesh)
    if ranks is None:
        ranks = tuple(mesh.mesh.flatten().tolist())
        _ranks[mesh] = ranks
    return ranks


def boxes_with_slices(
    boxes: Sequence[Box], local_shape: tuple[int, ...]
) -> list[tuple[Box, tuple[slice, ...]]]:
    """Return for every global box where it lies in the local tensor.

    Raises:
        InternalError: The boxes do not fill the local tensor.
    """
    filled = [box for box in boxes if box.volume]
    if not filled:
        return []
    starts = [_local_starts(filled, axis) for axis in range(len(local_shape))]
    if tuple(end for _, end in starts) != local_shape:
        raise InternalError(
            f"the boxes {tuple(boxes)[:4]} do not fill a local tensor of shape {local_shape}"
        )
    return [(box, _local_slices(box, [known for known, _ in starts])) for box in filled]


def _local_starts(boxes: Sequence[Box], axis: int) -> tuple[dict[int, int], int]:
    """Return where every global interval along one axis begins locally, and where the last one ends."""
    starts: dict[int, int] = {}
    end = 0
    for offset, size in sorted({(box.offsets[axis], box.sizes[axis]) for box in boxes}):
        starts[offset] = end
        end += size
    return starts, end


def _local_slices(box: Box, starts: Sequence[dict[int, int]]) -> tuple[slice, ...]:
    return tuple(
        slice(known[offset], known[offset] + size)
        for known, offset, size in zip(starts, box.offsets, box.sizes, strict=True)
    )
