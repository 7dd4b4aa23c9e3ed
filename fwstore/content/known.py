"""What a snapshot holds of the chunks that a rank is about to save.

Invariant: a place is found only for the same cell, or the same part of it, of a tensor with the same path,
dtype, shape and grid; whether the bytes are still the same is for ids and digests to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import Corrupt, NotFound
from fwstore.codec.registry import RAW
from fwstore.content.footers import FooterCache
from fwstore.content.manifest import Manifest, TensorRows
from fwstore.content.places import Places
from fwstore.format.blocks import DIGEST_BYTES
from fwstore.format.footer import ID_BYTES
from fwstore.format.rows import U32, U64, Boxes
from fwstore.format.tensor import TensorInfo

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTable:
    """Chunks by what they are of, sorted by tensor.

    Attributes:
        tensor: Index in a list of tensors.
        cell: Cell number in the grid of the tensor.
        fragment: True where the chunk is only a part of its cell.
        boxes: That part, relative to the box of the cell; without dimensions for a whole cell.
    """

    tensor: U32
    cell: U64
    fragment: npt.NDArray[np.bool_]
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.tensor)


def find_known(
    manifest: Manifest,
    footers: FooterCache,
    tensors: Sequence[TensorInfo],
    chunks: ChunkTable,
) -> tuple[Places, I64]:
    """Return the places of those chunks that a snapshot holds.

    Only the leaves and footers that the chunks need are read.

    Args:
        manifest: The snapshot.
        footers: Footers of its packs.
        tensors: The tensors that the chunks index.
        chunks: What is about to be saved.

    Returns:
        The places found, and for every chunk its row there or -1.
    """
    pack = np.full(len(chunks), -1, np.int64)
    number = np.zeros(len(chunks), np.uint32)
    borders = np.searchsorted(chunks.tensor, np.arange(len(tensors) + 1))
    for index in np.unique(chunks.tensor).tolist():
        rows = _rows_of(manifest, tensors[index])
        if rows is not None:
            mine = slice(int(borders[index]), int(borders[index + 1]))
            pack[mine], number[mine] = _locate(rows, chunks, mine)
    found = np.flatnonzero(pack >= 0)
    row_of = np.full(len(chunks), -1, np.int64)
    row_of[found] = np.arange(len(found))
    return _places(manifest, footers, chunks, found, pack[found], number[found]), row_of


def _rows_of(manifest: Manifest, info: TensorInfo) -> TensorRows | None:
    try:
        rows = manifest.rows(info.path)
    except NotFound:
        return None
    before = rows.info
    same = (before.dtype, before.shape, before.cells) == (info.dtype, info.shape, info.cells)
    return rows if same else None


def _locate(rows: TensorRows, chunks: ChunkTable, where: slice) -> tuple[I64, U32]:
    """Return pack and chunk number of some chunks of one tensor; pack -1 for those not found."""
    cell, fragment = chunks.cell[where], chunks.fragment[where]
    pack = np.full(len(cell), -1, np.int64)
    number = np.zeros(len(cell), np.uint32)
    runs = rows.runs
    if len(runs):
        run = np.searchsorted(runs.first_cell, cell, side="right") - 1
        step = cell - runs.first_cell[run]
        found = ~fragment & (run >= 0) & (step < runs.count[run])
        pack[found] = runs.pack[run[found]]
        number[found] = (runs.first_chunk[run[found]] + step[found]).astype(np.uint32)
    parts = rows.fragments
    if len(parts) and bool(fragment.any()):
        places = {(int(parts.cell[row]), parts.boxes.row(row)): row for row in range(len(parts))}
        for position in np.flatnonzero(fragment).tolist():
            box = chunks.boxes.row(where.start + position)
            row = places.get((int(cell[position]), box))
            if row is not None:
                pack[position], number[position] = parts.pack[row], parts.chunk[row]
    return pack, number


def _places(
    manifest: Manifest,
    footers: FooterCache,
    chunks: ChunkTable,
    found: I64,
    pack: I64,
    number: U32,
) -> Places:
    numbers, position = np.unique(pack, return_inverse=True)
    packs = manifest.packs(numbers.tolist())
    ordered = list(packs.values())
    ids = np.zeros((len(found), ID_BYTES), np.uint8)
    digests = np.zeros((len(found), DIGEST_BYTES), np.uint8)
    for index, footer in enumerate(footers.get_many(ordered)):
        rows = np.flatnonzero(position == index)
        if int(number[rows].max()) >= len(footer):
            raise Corrupt(f"a snapshot refers to a chunk that {ordered[index].key} lacks")
        ids[rows] = footer.ids[number[rows]]
        # The digest of encoded bytes says nothing of the raw ones.
        raw = rows[footer.codecs[number[rows]] == RAW.number]
        digests[raw] = footer.digests[number[raw]]
    return Places(
        manifest.root.lineages,
        tuple(info for _, info in ordered),
        chunks.tensor[found],
        chunks.cell[found],
        chunks.fragment[found],
        chunks.boxes.take(found),
        position.astype(np.uint32),
        number,
        ids,
        digests,
    )
