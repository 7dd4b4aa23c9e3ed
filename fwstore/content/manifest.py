"""The manifest of one snapshot: its root, and those of its leaves and pack tables that are asked for.

Invariant: everything that leaves here was compared with the digest in its referrer, from the commit record
down: record, root, leaves and pack tables.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fwstore.base.config import ROOT_BYTES_MAX
from fwstore.base.errors import Corrupt, NotFound
from fwstore.base.units import MIB
from fwstore.content.cache import SharedCache
from fwstore.content.footers import Pack
from fwstore.content.lineages import keys_of
from fwstore.content.verified import Origin, read_object
from fwstore.format.keys import LineageKeys
from fwstore.format.leaf import Leaf, parse_leaf
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.format.paths import TensorPath, display_path, encode_path
from fwstore.format.root import Root, parse_root
from fwstore.format.rows import FragmentTable, RunTable, concat_fragments, concat_runs
from fwstore.format.tensor import TensorInfo
from fwstore.sched import collection_paused

# Parsed tensors and rows take about this many times their stored bytes.
_EXPANSION = 16
_NOTHING = FragmentTable.of()


class NoSuchTensor(NotFound):
    """The snapshot is complete and has no tensor of that path; not to be taken for a missing object."""


@dataclass(frozen=True, slots=True)
class TensorRows:
    """One tensor of a snapshot and where its cells lie.

    Attributes:
        info: The tensor that holds the bytes, also when it was asked for by a tied path.
        runs: Runs of whole cells; packs are numbers in the snapshot's pack table.
        fragments: Parts of cells, likewise.
    """

    info: TensorInfo
    runs: RunTable
    fragments: FragmentTable


@dataclass(frozen=True, slots=True)
class _IndexedLeaf:
    """A leaf, and where the rows of its tensors begin and end."""

    leaf: Leaf
    positions: dict[TensorPath, int]
    run_starts: list[int]
    fragment_starts: list[int]

    def rows(self, position: int) -> tuple[RunTable, FragmentTable]:
        """Return the rows of one of its tensors."""
        runs = slice(*self.run_starts[position : position + 2])
        first, last = self.fragment_starts[position : position + 2]
        fragments = self.leaf.fragments.take(np.arange(first, last)) if first < last else _NOTHING
        return self.leaf.runs.take(runs), fragments


def _index(leaf: Leaf) -> _IndexedLeaf:
    positions = {info.path: position for position, info in enumerate(leaf.tensors)}
    borders = np.arange(leaf.first_tensor, leaf.first_tensor + len(leaf.tensors) + 1)
    runs, fragments = (
        np.searchsorted(table.tensor, borders).tolist() for table in (leaf.runs, leaf.fragments)
    )
    return _IndexedLeaf(leaf, positions, runs, fragments)


def open_manifest(origin: Origin, keys: LineageKeys, snapshot: str, root_digest: bytes) -> Manifest:
    """Return the manifest of a snapshot; only its root is read now.

    Raises:
        NotFound: The snapshot is gone; its log says whether it expired.
        Corrupt: Its root is not the one that was committed.
        Unsupported: It was written by a newer version.
    """
    stored = read_object(origin, keys.root(snapshot), root_digest, ROOT_BYTES_MAX)
    root = parse_root(stored)
    if root.snapshot != snapshot or root.lineage.label != keys.label:
        raise Corrupt(
            f"the root of {keys.label}/{snapshot} belongs to {root.lineage.label}/{root.snapshot}"
        )
    return Manifest(origin, keys, root)


class Manifest:
    """A snapshot's tensors and packs, read when they are needed; safe in threads and forked children.

    Args:
        origin: Where the manifest is.
        keys: The lineage of the snapshot.
        root: Its verified root.
        cache_bytes: Most memory held by parsed leaves and pack tables, by estimate.

    Attributes:
        root: The root of the snapshot.
    """

    def __init__(
        self, origin: Origin, keys: LineageKeys, root: Root, *, cache_bytes: int = 256 * MIB
    ) -> None:
        self.root = root
        self._origin = origin
        self._keys = keys
        self._lineages = [keys_of(lineage) for lineage in root.lineages]
        self._first_paths = [encode_path(leaf.first_path) for leaf in root.leaves]
        self._last_paths = [encode_path(leaf.last_path) for leaf in root.leaves]
        self._first_packs = [part.first_pack for part in root.pack_tables]
        self._leaves: SharedCache[int, _IndexedLeaf] = SharedCache(cache_bytes // 2)
        self._parts: SharedCache[int, tuple[PackInfo, ...]] = SharedCache(cache_bytes // 2)

    @property
    def pack_count(self) -> int:
        """How many packs the snapshot refers to."""
        return sum(part.packs for part in self.root.pack_tables)

    def leaf(self, number: int) -> Leaf:
        """Return one leaf by its number in the root.

        Raises:
            Corrupt: It is not the one that the root names.
        """
        return self._leaf(number).leaf

    def tensors(self) -> list[TensorInfo]:
        """Return all tensors by stored path, tied ones included."""
        found: list[TensorInfo] = []
        for indexed in self._map_leaves(range(len(self.root.leaves))):
            # A tensor whose rows fill several leaves stands in each of them.
            repeated = bool(found) and found[-1].path == indexed.leaf.tensors[0].path
            found.extend(indexed.leaf.tensors[repeated:])
        return found

    def tensor(self, path: TensorPath) -> TensorInfo:
        """Return one tensor as it was saved; `alias` tells whether it is tied to another.

        Raises:
            NoSuchTensor: The snapshot has no tensor of this path.
        """
        return self._find(path)[0]

    def rows(self, path: TensorPath) -> TensorRows:
        """Return where the cells of a tensor lie, following a tie.

        Raises:
            NoSuchTensor: The snapshot has no tensor of this path.
            Corrupt: It is tied to a tensor that is absent or itself tied.
        """
        info, leaves = self._find(path)
        if info.alias is not None:
            info, leaves = self._find_tied(info, info.alias)
        rows = [indexed.rows(indexed.positions[info.path]) for indexed in leaves]
        if len(rows) == 1:
            return TensorRows(info, *rows[0])
        runs, fragments = zip(*rows, strict=True)
        return TensorRows(info, concat_runs(runs), concat_fragments(fragments))

    def rows_of(self, paths: Sequence[TensorPath]) -> list[TensorRows]:
        """Return where the cells of some tensors lie: `rows` of each, found in one leaf without a search for each.

        Raises:
            NoSuchTensor: The snapshot has no tensor of one of these paths.
            Corrupt: One is tied to a tensor that is absent or itself tied.
        """
        if len(self.root.leaves) != 1:
            return [self.rows(path) for path in paths]
        indexed = self._leaf(0)
        tensors, positions = indexed.leaf.tensors, indexed.positions
        found = []
        for path in paths:
            position = positions.get(path)
            if position is None or tensors[position].alias is not None:
                found.append(self.rows(path))
            else:
                found.append(TensorRows(tensors[position], *indexed.rows(position)))
        return found

    def packs(self, numbers: Iterable[int]) -> dict[int, Pack]:
        """Return packs by their number in the snapshot.

        Raises:
            Corrupt: A number is not in the pack table.
        """
        wanted = sorted(set(numbers))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.pack_count:
            raise Corrupt(f"{self._name} refers to pack {wanted[-1]} of {self.pack_count}")
        part_of = {number: bisect.bisect_right(self._first_packs, number) - 1 for number in wanted}
        parts = sorted(set(part_of.values()))
        tables = dict(zip(parts, self._map_parts(parts), strict=True))
        return {
            number: self._pack(tables[part][number - self._first_packs[part]])
            for number, part in part_of.items()
        }

    def all_packs(self) -> list[Pack]:
        """Return every pack that the snapshot refers to, by number."""
        tables = self._map_parts(range(len(self.root.pack_tables)))
        return [self._pack(info) for table in tables for info in table]

    def object_keys(self) -> list[str]:
        """Return the keys of the root, leaves and pack tables."""
        snapshot = self.root.snapshot
        leaves = [self._keys.leaf(snapshot, n) for n in range(len(self.root.leaves))]
        parts = [self._keys.pack_table(snapshot, n) for n in range(len(self.root.pack_tables))]
        return [self._keys.root(snapshot), *leaves, *parts]

    @property
    def _name(self) -> str:
        return f"snapshot {self._keys.label}/{self.root.snapshot}"

    def _pack(self, info: PackInfo) -> Pack:
        return Pack(info.key(self._lineages), info)

    def _find(self, path: TensorPath) -> tuple[TensorInfo, list[_IndexedLeaf]]:
        encoded = encode_path(path)
        first = bisect.bisect_left(self._last_paths, encoded)
        last = bisect.bisect_right(self._first_paths, encoded)
        leaves = self._map_leaves(range(first, last))
        if not leaves or path not in leaves[0].positions:
            raise NoSuchTensor(f"{self._name} has no tensor {display_path(path)}")
        if len(leaves) > 1 and not all(path in indexed.positions for indexed in leaves):
            raise Corrupt(f"{self._name} has leaves that do not hold what their root says")
        return leaves[0].leaf.tensors[leaves[0].positions[path]], leaves

    def _find_tied(
        self, info: TensorInfo, alias: TensorPath
    ) -> tuple[TensorInfo, list[_IndexedLeaf]]:
        tie = f"{display_path(info.path)}, which is tied to {display_path(alias)}"
        try:
            target, leaves = self._find(alias)
        except NoSuchTensor as error:
            raise Corrupt(f"{self._name} has {tie}, but not the latter") from error
        if target.alias is not None:
            raise Corrupt(f"{self._name} has {tie}, which is itself tied")
        if (target.dtype, target.shape) != (info.dtype, info.shape):
            raise Corrupt(f"{self._name} has {tie} of another dtype or shape")
        return target, leaves

    def _map_leaves(self, numbers: Sequence[int]) -> list[_IndexedLeaf]:
        if len(numbers) == 1:
            return [self._leaf(numbers[0])]
        return self._origin.runtime.scheduler.map(self._leaf, numbers)

    def _leaf(self, number: int) -> _IndexedLeaf:
        size_bytes = self.root.leaves[number].size * _EXPANSION
        return self._leaves.get(number, size_bytes, lambda: self._load_leaf(number))

    def _load_leaf(self, number: int) -> _IndexedLeaf:
        ref = self.root.leaves[number]
        key = self._keys.leaf(self.root.snapshot, number)
        stored = read_object(self._origin, key, ref.digest, ref.size)
        with collection_paused():
            leaf = parse_leaf(stored)
        tensors = leaf.tensors
        ends = (tensors[0].path, tensors[-1].path) if tensors else None
        expected = (ref.first_tensor, ref.tensors, (ref.first_path, ref.last_path))
        if (leaf.first_tensor, len(tensors), ends) != expected:
            raise Corrupt(f"{key} does not hold the tensors that its root says")
        return _index(leaf)

    def _map_parts(self, numbers: Sequence[int]) -> list[tuple[PackInfo, ...]]:
        return self._origin.runtime.scheduler.map(self._part, numbers)

    def _part(self, number: int) -> tuple[PackInfo, ...]:
        size_bytes = self.root.pack_tables[number].size * _EXPANSION
        return self._parts.get(number, size_bytes, lambda: self._load_part(number))

    def _load_part(self, number: int) -> tuple[PackInfo, ...]:
        ref = self.root.pack_tables[number]
        key = self._keys.pack_table(self.root.snapshot, number)
        first, packs = parse_pack_table(read_object(self._origin, key, ref.digest, ref.size))
        if (first, len(packs)) != (ref.first_pack, ref.packs):
            raise Corrupt(f"{key} does not hold the packs that its root says")
        return packs
