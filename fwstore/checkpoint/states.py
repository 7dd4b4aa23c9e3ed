"""The plain part of a snapshot: its skeleton, with a slot where every tensor stands.

Invariant: a skeleton is stored once, by the leader; tensors that only other ranks knew are added to it by
their paths when the state is loaded.
"""

from __future__ import annotations

from typing import Any

from fwstore.checkpoint.access import Access
from fwstore.checkpoint.reserved import STATE_PATH, is_reserved, read_bytes
from fwstore.checkpoint.tree import tensor_slots, unflatten
from fwstore.content.manifest import Manifest, NoSuchTensor
from fwstore.format.paths import TensorPath
from fwstore.format.state import TensorSlot, decode_state
from fwstore.sched import collection_paused

INLINE_STATE_BYTES_MAX = 64 << 10
DEFAULT_KIND = "numpy"


def load_skeleton(access: Access, manifest: Manifest) -> Any:
    """Return the plain state of a snapshot; a snapshot without one has a dict of all its tensors."""
    stored = manifest.root.state
    if stored is None:
        try:
            stored = read_bytes(access, manifest, STATE_PATH)
        except NoSuchTensor:
            return {}
    with collection_paused():
        return decode_state(stored)


def revived(access: Access, skeleton: Any) -> Any:
    """Return a skeleton with the small values of loaded frameworks made again; slots stay."""
    places: dict[TensorPath, Any] = {}
    for path, slot in tensor_slots(skeleton):
        places[path] = slot
        if slot.alias is not None:
            places.setdefault(slot.alias, slot)
    return unflatten(skeleton, places, access.adapters)


def slots_of(skeleton: Any) -> dict[TensorPath, TensorSlot]:
    """Return the slot of every tensor that a skeleton shows."""
    return dict(tensor_slots(skeleton))


def common_kind(slots: dict[TensorPath, TensorSlot]) -> str:
    """Return the framework that the tensors of a state belong to, for those that no skeleton shows."""
    return next((slot.kind for slot in slots.values()), DEFAULT_KIND)


def complete(skeleton: Any, manifest: Manifest, kind: str) -> Any:
    """Return the skeleton with a slot for every tensor of the snapshot, below dicts made as needed."""
    known = slots_of(skeleton)
    for info in manifest.tensors():
        if is_reserved(info.path) or info.path in known:
            continue
        parent = skeleton
        for key in info.path[:-1]:
            parent = parent.setdefault(key, {}) if isinstance(parent, dict) else parent[key]
        parent[info.path[-1]] = TensorSlot(kind, info.alias)
    return skeleton
