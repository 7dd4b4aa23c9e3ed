"""What a rank knows of where its chunks lie in the store.

Invariant: a known place was listed by a snapshot that this log recorded as committed; it is a hint until the
commit that reuses it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fwstore.checkpoint.saveplan import PlannedSegment, SavePlan
from fwstore.codec.registry import RAW
from fwstore.content.footers import FooterCache
from fwstore.content.manifest import Manifest, NoSuchTensor, TensorRows
from fwstore.content.places import Places, concat_places, no_places
from fwstore.format.paths import TensorPath
from fwstore.format.rows import Boxes
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box

Rows = npt.NDArray[np.int64]
_ChunkKey = tuple[TensorPath, int, Box | None]


@dataclass(frozen=True, eq=False)
class Known:
    """Places of chunks of a plan.

    Attributes:
        places: One row per known chunk.
        row: For every chunk of the plan its row in `places`, or -1.
    """

    places: Places
    row: Rows

    @staticmethod
    def nothing(plan: SavePlan) -> Known:
        """Return the knowledge of a new run."""
        return Known(no_places(), np.full(plan.chunks, -1, np.int64))

    @staticmethod
    def all_of(places: Places) -> Known:
        """Return the knowledge after a save whose places are in the order of the plan."""
        return Known(places, np.arange(len(places), dtype=np.int64))

    def digests(self, rows: slice) -> npt.NDArray[np.uint8] | None:
        """Return the digests of some chunks, zeros where there is none; None when there is none at all."""
        where = self.row[rows]
        if not (where >= 0).any():
            return None
        found = self.places.digests[np.maximum(where, 0)].copy()
        found[where < 0] = 0
        return found if found.any() else None


def chunk_keys(plan: SavePlan) -> list[_ChunkKey]:
    """Return what identifies every chunk of a plan beyond it."""
    keys: list[_ChunkKey] = []
    for planned in plan.segments:
        path = plan.paths[planned.segment.chunks.tensor]
        cells = planned.segment.chunks.cells.tolist()
        keys += [(path, cell, box) for cell, box in zip(cells, planned.boxes, strict=True)]
    return keys


def carry_over(known: Known, before: SavePlan, after: SavePlan) -> Known:
    """Return what is known of the chunks of a new plan from what was known of those of an old one.

    A tensor whose grid, dtype or shape changed keeps nothing: its cells mean other bytes.
    """
    same = {info.path: info for info in before.tensors}
    kept = {info.path for info in after.tensors if same.get(info.path) == info}
    row_of = dict(zip(chunk_keys(before), known.row.tolist(), strict=True))
    rows = [row_of.get(key, -1) if key[0] in kept else -1 for key in chunk_keys(after)]
    return Known(known.places, np.array(rows, np.int64))


def known_from(manifests: Sequence[Manifest], footers: FooterCache, plan: SavePlan) -> Known:
    """Return what some snapshots know of the chunks of a plan.

    Whole cells and fragments are found where the snapshot has them cut alike; the rest is written anew.

    Args:
        manifests: The parent and declared bases, the preferred one last.
        footers: Reads the ids of chunks.
        plan: What this rank brings.
    """
    known = Known.nothing(plan)
    parts: list[Places] = []
    row = known.row.copy()
    count = 0
    for manifest in manifests:
        places, chunks = _find(manifest, footers, plan)
        parts.append(places)
        row[chunks] = np.arange(count, count + len(places))
        count += len(places)
    return Known(concat_places(parts), row)


def _find(manifest: Manifest, footers: FooterCache, plan: SavePlan) -> tuple[Places, Rows]:
    """Return the places of those chunks of a plan that a snapshot has, and their numbers."""
    infos = {info.path: info for info in plan.tensors}
    hits: list[_Hits] = []
    cached: dict[TensorPath, TensorRows | None] = {}
    for planned in plan.segments:
        path = plan.paths[planned.segment.chunks.tensor]
        if path not in cached:
            cached[path] = _same_tensor(manifest, infos[path])
        rows = cached[path]
        if rows is not None:
            hits.append(_whole_cells(rows, planned))
            hits.append(_fragments(rows, planned))
    return _places(manifest, footers, plan, _concat(hits))


@dataclass(frozen=True, eq=False)
class _Hits:
    """Chunks of a plan and where a snapshot has them."""

    number: Rows
    pack: Rows
    chunk: Rows


def _concat(hits: Sequence[_Hits]) -> _Hits:
    empty = np.zeros(0, np.int64)
    return _Hits(
        np.concatenate([empty, *(h.number for h in hits)]),
        np.concatenate([empty, *(h.pack for h in hits)]),
        np.concatenate([empty, *(h.chunk for h in hits)]),
    )


def _same_tensor(manifest: Manifest, info: TensorInfo) -> TensorRows | None:
    try:
        rows = manifest.rows(info.path)
    except NoSuchTensor:
        return None
    form = (rows.info.dtype, rows.info.shape, rows.info.cells)
    return rows if form == (info.dtype, info.shape, info.cells) else None


def _whole_cells(rows: TensorRows, planned: PlannedSegment) -> _Hits:
    cells, runs = planned.segment.chunks.cells, rows.runs
    run = np.searchsorted(runs.first_cell, cells, side="right") - 1
    inside = (run >= 0) & ~planned.segment.chunks.fragment
    within = cells - runs.first_cell[np.maximum(run, 0)] if len(runs) else cells
    if len(runs):
        inside &= within < runs.count[np.maximum(run, 0)]
    else:
        inside &= False
    here = np.flatnonzero(inside)
    return _Hits(
        planned.first + here,
        runs.pack[run[here]].astype(np.int64),
        runs.first_chunk[run[here]].astype(np.int64) + within[here].astype(np.int64),
    )


def _fragments(rows: TensorRows, planned: PlannedSegment) -> _Hits:
    parts = rows.fragments
    stored = {
        (int(parts.cell[row]), Box(*parts.boxes.row(row))): row
        for row in (range(len(parts)) if planned.segment.chunks.fragment.any() else ())
    }
    found = [
        (planned.first + number, stored[int(planned.segment.chunks.cells[number]), box])
        for number, box in enumerate(planned.boxes)
        if box is not None and (int(planned.segment.chunks.cells[number]), box) in stored
    ]
    numbers, where = (
        (np.array(column, np.int64) for column in zip(*found, strict=True))
        if found
        else (
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
        )
    )
    return _Hits(numbers, parts.pack[where].astype(np.int64), parts.chunk[where].astype(np.int64))


def _places(
    manifest: Manifest, footers: FooterCache, plan: SavePlan, hits: _Hits
) -> tuple[Places, Rows]:
    packs = manifest.packs(np.unique(hits.pack).tolist())
    order = list(packs)
    found = dict(zip(order, footers.get_many([packs[n] for n in order]), strict=True))
    ids = np.zeros((len(hits.number), 32), np.uint8)
    digests = np.zeros((len(hits.number), 16), np.uint8)
    position = np.zeros(len(hits.number), np.uint32)
    for index, number in enumerate(order):
        here = np.flatnonzero(hits.pack == number)
        footer, chunks = found[number], hits.chunk[here]
        ids[here] = footer.ids[chunks]
        raw = footer.codecs[chunks] == RAW.number
        digests[here[raw]] = footer.digests[chunks[raw]]
        position[here] = index
    tensor, cell, boxes = _identity(plan, hits.number)
    places = Places(
        tuple(manifest.root.lineages),
        tuple(packs[number].info for number in order),
        tensor,
        cell,
        np.array([box is not None for box in boxes], np.bool_),
        Boxes.of([((), ()) if box is None else (box.offsets, box.sizes) for box in boxes]),
        position,
        hits.chunk.astype(np.uint32),
        ids,
        digests,
    )
    return places, hits.number


def _identity(
    plan: SavePlan, numbers: Rows
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64], list[Box | None]]:
    """Return tensor, cell and part of cell of some chunks of a plan."""
    cells = (planned.segment.chunks.cells for planned in plan.segments)
    cell = np.concatenate([np.zeros(0, np.uint64), *cells])
    boxes = [box for planned in plan.segments for box in planned.boxes]
    chosen = [boxes[number] for number in numbers.tolist()]
    return plan.tensor_of_chunk[numbers], cell[numbers], chosen
