"""The leader's half of a save: the manifest of a snapshot out of what the ranks brought.

Invariant: a root is built only when every element of every tensor is covered exactly once; objects are
written in the order in which `BuiltSnapshot` holds them, the root last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fwstore.codec.hashing import ContentHash
from fwstore.content.contribution import Contribution
from fwstore.content.lineages import keys_of
from fwstore.content.union import Union, unite
from fwstore.format.dtypes import itemsize
from fwstore.format.keys import LineageKeys
from fwstore.format.leaf import Leaf, encode_leaves
from fwstore.format.packtable import PACKS_PER_PART, PackInfo, encode_pack_table
from fwstore.format.paths import display_path
from fwstore.format.root import LeafRef, LineageRef, PackTableRef, Root, Totals, encode_root
from fwstore.plan.coverage import check_coverage
from fwstore.plan.grid import Grid
from fwstore.sched import Runtime
from fwstore.store.base import Store

# Leaves are cut before they are encoded, so that few attempts turn out too large.
_TENSORS_PER_LEAF = 1 << 13
_ROWS_PER_LEAF = 1 << 18
_SMALL_PARTS = 96
_PACKS_PER_SMALL_PART = 1024


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a manifest, ready to be written."""

    key: str
    content: bytes


@dataclass(frozen=True, slots=True)
class BuiltSnapshot:
    """The manifest of a snapshot.

    Attributes:
        objects: Leaves and parts of the pack table, in any order, to be written before the root.
        root_object: The root.
        root_digest: Its BLAKE3, which the commit record names.
        root: What it says.
        lineages: The lineages of the packs, that of the snapshot first.
        packs: All packs, by number.
    """

    objects: tuple[StoredObject, ...]
    root_object: StoredObject
    root_digest: bytes
    root: Root
    lineages: tuple[LineageRef, ...]
    packs: tuple[PackInfo, ...]

    def groups(self, lineage: LineageRef) -> set[tuple[int, int]]:
        """Return the groups (term, save) of a lineage whose packs the snapshot uses."""
        return {
            (pack.term, pack.save) for pack in self.packs if self.lineages[pack.lineage] == lineage
        }


def build_snapshot(
    draft: Root, contributions: Sequence[Contribution], content_hash: ContentHash
) -> BuiltSnapshot:
    """Return the manifest of a snapshot.

    Args:
        draft: The root without leaves, pack tables, lineages and totals.
        contributions: What every rank brings.
        content_hash: The hash that proves objects.

    Raises:
        InvalidInput: Ranks disagree on a tensor.
        Corrupt: Some element of a tensor is missing or comes twice; the tensor is named.
        LimitExceeded: The root would be too large.
    """
    keys = keys_of(draft.lineage)
    union = unite(draft.lineage, contributions)
    _check_tensors(union)
    leaves = [part for leaf in _cut_leaves(union) for part in encode_leaves(leaf)]
    parts = list(_encode_parts(union.packs))
    root = msgspec.structs.replace(
        draft,
        leaves=tuple(_leaf_ref(leaf, stored, content_hash) for leaf, stored in leaves),
        pack_tables=tuple(
            PackTableRef(first, count, len(stored), content_hash.digest(stored))
            for first, count, stored in parts
        ),
        lineages=union.lineages,
        totals=_totals(union, contributions),
    )
    objects = _name_objects(keys, draft.snapshot, [s for _, s in leaves], [s for _, _, s in parts])
    stored = encode_root(root)
    return BuiltSnapshot(
        objects,
        StoredObject(keys.root(draft.snapshot), stored),
        content_hash.digest(stored),
        root,
        union.lineages,
        union.packs,
    )


def write_manifest(store: Store, runtime: Runtime, built: BuiltSnapshot) -> None:
    """Write the objects of a manifest, the root after all others.

    The keys carry the random token of the snapshot id, so nobody else writes them and writing again
    what may have arrived is harmless.
    """

    def write(stored: StoredObject) -> None:
        store.put(stored.key, [stored.content], mode="overwrite")

    runtime.scheduler.map(write, built.objects)
    write(built.root_object)


def _check_tensors(union: Union) -> None:
    # Tied and empty tensors have no chunks of their own.
    grids = [
        None if info.alias is not None or 0 in info.shape else Grid(info.shape, info.cells)
        for info in union.tensors
    ]
    check_coverage(
        grids,
        union.runs,
        union.fragments,
        name=lambda number: f"tensor {display_path(union.tensors[number].path)}",
    )


def _cut_leaves(union: Union) -> Iterator[Leaf]:
    runs = np.searchsorted(union.runs.tensor, np.arange(len(union.tensors) + 1))
    fragments = np.searchsorted(union.fragments.tensor, np.arange(len(union.tensors) + 1))
    rows = runs + fragments
    first = 0
    while first < len(union.tensors):
        fits = int(np.searchsorted(rows, rows[first] + _ROWS_PER_LEAF, side="right")) - 1
        last = min(max(first + 1, fits), first + _TENSORS_PER_LEAF, len(union.tensors))
        yield Leaf(
            first,
            union.tensors[first:last],
            union.runs.take(np.arange(runs[first], runs[last])),
            union.fragments.take(np.arange(fragments[first], fragments[last])),
        )
        first = last


def _leaf_ref(leaf: Leaf, stored: bytes, content_hash: ContentHash) -> LeafRef:
    return LeafRef(
        leaf.first_tensor,
        len(leaf.tensors),
        leaf.tensors[0].path,
        leaf.tensors[-1].path,
        len(stored),
        content_hash.digest(stored),
    )


def _encode_parts(packs: Sequence[PackInfo]) -> Iterator[tuple[int, int, bytes]]:
    # A load reads the parts that hold its packs, and the record of the snapshot names every part.
    length = min(PACKS_PER_PART, max(_PACKS_PER_SMALL_PART, -(-len(packs) // _SMALL_PARTS)))
    for first in range(0, len(packs), length):
        part = packs[first : first + length]
        yield first, len(part), encode_pack_table(first, part)


def _name_objects(
    keys: LineageKeys, snapshot: str, leaves: Sequence[bytes], parts: Sequence[bytes]
) -> tuple[StoredObject, ...]:
    return (
        *(StoredObject(keys.leaf(snapshot, n), stored) for n, stored in enumerate(leaves)),
        *(StoredObject(keys.pack_table(snapshot, n), stored) for n, stored in enumerate(parts)),
    )


def _totals(union: Union, contributions: Sequence[Contribution]) -> Totals:
    sizes = np.array([itemsize(info.dtype) for info in union.tensors], np.int64)
    fragment_bytes = union.fragments.boxes.volumes() * sizes[union.fragments.tensor]
    return Totals(
        tensors=len(union.tensors),
        packs=len(union.packs),
        chunks=int(union.runs.count.sum()) + len(union.fragments),
        fragments=len(union.fragments),
        bytes_logical=sum(info.size_bytes for info in union.tensors if info.alias is None),
        bytes_fragments=int(fragment_bytes.sum()),
        bytes_written=sum(part.bytes_written for part in contributions),
        bytes_reused=sum(part.bytes_reused for part in contributions),
    )
