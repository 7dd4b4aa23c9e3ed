"""DTensor placements as fwstore layouts.

Invariant: tensors of one mesh with equal placements share one `Layout`, which may hold a long list of
ranks.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch.distributed.tensor.placement_types import Placement as TorchPlacement
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

from fwstore import Layout, Split, UnsupportedValue

# Mesh dimensions that split a tensor into parts of its own meaning, by the names that trainers give them.
OUTER_DIMENSIONS = frozenset({"tp", "ep", "etp", "tensor", "expert", "model"})

_layouts: WeakKeyDictionary[Any, dict[tuple[Split | None, ...], Layout]] = WeakKeyDictionary()


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
    known = _layouts.setdefault(mesh, {})
    if placements not in known:
        ranks = next((layout.ranks for layout in known.values()), None)
        known[placements] = Layout(
            tuple(mesh.shape), placements, ranks or tuple(mesh.mesh.flatten().tolist())
        )
    return known[placements]


def _placement(placement: TorchPlacement, *, outer: bool) -> Split | None:
    if isinstance(placement, Replicate):
        return None
    if isinstance(placement, _StridedShard):
        return Split(placement.dim, int(placement.split_factor), outer)
    if isinstance(placement, Shard):
        return Split(placement.dim, outer=outer)
    raise UnsupportedValue(
        f"a DTensor with the placement {placement} cannot be stored; redistribute it first"
    )
