"""Where the chunks of some tensors lie, one row per chunk.

Invariant: a row names a chunk that is durable, or that is durable before the row leaves this rank; its id
and digest are those of the raw bytes of the cell or part of a cell that the row stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fwstore.content.lineages import join_lineages
from fwstore.format.packtable import PackInfo
from fwstore.format.root import LineageRef
from fwstore.format.rows import (
    Boxes,
    FragmentTable,
    Index,
    RunTable,
    merge_runs,
    sort_fragments,
    sort_runs,
    starts_of,
)

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Rows of (tensor, cell or part of it, pack, chunk) with what tells the content of each.

    Attributes:
        lineages: The lineages that packs name by their position here.
        packs: The packs that rows name by their position here.
        tensor: Index of the tensor in a list of the caller's.
        cell: Cell number in the grid of the tensor.
        fragment: True where the row is only a part of its cell.
        boxes: That part, relative to the box of the cell; without dimensions for a whole cell.
        pack: Index into `packs`.
        chunk: Number of the chunk in its pack.
        ids: Content hash of the raw bytes, shape (rows, 32).
        digests: XXH3-128 of the raw bytes, shape (rows, 16); zeros where it is not known.
    """

    lineages: tuple[LineageRef, ...]
    packs: tuple[PackInfo, ...]
    tensor: U32
    cell: U64
    fragment: npt.NDArray[np.bool_]
    boxes: Boxes
    pack: U32
    chunk: U32
    ids: Bytes
    digests: Bytes

    def __len__(self) -> int:
        return len(self.tensor)

    def take(self, index: Index) -> Places:
        """Return some rows, in the order of the index."""
        return Places(
            self.lineages,
            self.packs,
            self.tensor[index],
            self.cell[index],
            self.fragment[index],
            self.boxes.take(index),
            self.pack[index],
            self.chunk[index],
            self.ids[index],
            self.digests[index],
        )

    def used(self) -> Places:
        """Return the same rows with only those packs that some row names."""
        numbers, pack = np.unique(self.pack, return_inverse=True)
        packs = tuple(self.packs[number] for number in numbers.tolist())
        return replace(self, packs=packs, pack=pack.astype(np.uint32))

    def tables(self) -> tuple[RunTable, FragmentTable]:
        """Return the rows as runs of whole cells and as fragments, both sorted."""
        whole, parts = np.flatnonzero(~self.fragment), np.flatnonzero(self.fragment)
        singles = RunTable(
            self.tensor[whole],
            self.cell[whole],
            np.ones(len(whole), np.uint64),
            self.pack[whole],
            self.chunk[whole],
        )
        fragments = FragmentTable(
            self.tensor[parts],
            self.cell[parts],
            self.pack[parts],
            self.chunk[parts],
            self.boxes.take(parts),
        )
        return merge_runs(sort_runs(singles)), sort_fragments(fragments)


def no_places() -> Places:
    """Return a table without rows."""
    return Places(
        (),
        (),
        np.zeros(0, np.uint32),
        np.zeros(0, np.uint64),
        np.zeros(0, np.bool_),
        Boxes.of([]),
        np.zeros(0, np.uint32),
        np.zeros(0, np.uint32),
        np.zeros((0, 32), np.uint8),
        np.zeros((0, 16), np.uint8),
    )


def concat_places(parts: Sequence[Places]) -> Places:
    """Return all rows in their order, with the packs that they name, each once.

    Packs without rows must not be carried along: over the saves of a job they would pile up.
    """
    parts = [no_places(), *(part.used() for part in parts)]
    lineages, renumbered = join_lineages([part.lineages for part in parts])
    numbers: dict[PackInfo, int] = {}
    pack_columns = []
    for part, lineage_numbers in zip(parts, renumbered, strict=True):
        packs = (replace(pack, lineage=lineage_numbers[pack.lineage]) for pack in part.packs)
        new = np.array([numbers.setdefault(pack, len(numbers)) for pack in packs], np.uint32)
        pack_columns.append(new[part.pack])
    return Places(
        lineages,
        tuple(numbers),
        np.concatenate([part.tensor for part in parts]),
        np.concatenate([part.cell for part in parts]),
        np.concatenate([part.fragment for part in parts]),
        concat_boxes([part.boxes for part in parts]),
        np.concatenate(pack_columns),
        np.concatenate([part.chunk for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.digests for part in parts]),
    )


def concat_boxes(parts: Sequence[Boxes]) -> Boxes:
    """Return all boxes of some tables, in order."""
    ranks = np.concatenate([np.diff(boxes.starts) for boxes in parts])
    return Boxes(
        starts_of(ranks),
        np.concatenate([boxes.offsets for boxes in parts]),
        np.concatenate([boxes.sizes for boxes in parts]),
    )
