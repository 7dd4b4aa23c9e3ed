"""Which chunks a rank brings to a save: computed once per structure of the state, kept between saves.

Invariant: two states with the same `structure` have the same plan, so a repeated save plans nothing; the
chunks of a plan stand in one fixed order, and every table of a save is aligned with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fwstore.checkpoint.catalogue import Catalogue
from fwstore.checkpoint.grids import Grids
from fwstore.checkpoint.segments import Segment, TensorChunks, split_segments
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.format.dtypes import itemsize
from fwstore.format.paths import TensorPath, encode_path
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.owner import Holding, Owned, plan_owned

SEGMENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A segment and where it stands in its plan.

    Attributes:
        segment: The chunks and where they lie in their piece.
        first: Number of its first chunk in the plan.
        boxes: For every chunk the part of its cell, or None for the whole cell.
    """

    segment: Segment
    first: int
    boxes: tuple[Box | None, ...]

    @property
    def rows(self) -> slice:
        """The chunk numbers of the segment."""
        return slice(self.first, self.first + len(self.segment.chunks))

    def without(self, skip: npt.NDArray[np.bool_]) -> Iterator[PlannedSegment]:
        """Yield the parts of the segment between the chunks that are skipped."""
        if not skip.any():
            yield self
            return
        edges = np.flatnonzero(np.diff(np.concatenate(([True], skip, [True]))))
        ends = np.concatenate(([0], np.cumsum(self.segment.chunks.lengths)))
        for first, last in edges.reshape(-1, 2).tolist():
            start = self.segment.start + int(ends[first]) if self.segment.start >= 0 else -1
            chunks = self.segment.chunks.take(np.arange(first, last))
            part = Segment(chunks, self.segment.piece, start)
            yield PlannedSegment(part, self.first + first, self.boxes[first:last])


@dataclass(frozen=True, eq=False)
class SavePlan:
    """What one rank brings.

    Attributes:
        structure: What the plan was computed from.
        tensors: The tensors of the rank's catalogue and its aliases, sorted by stored path.
        paths: The tensors that are not aliases, in the order of their numbers in segments.
        numbers: Their positions in `tensors`.
        segments: What to write, in order.
        chunks: Chunks in all segments.
        size_bytes: Raw bytes in all segments.
    """

    structure: Any
    tensors: tuple[TensorInfo, ...]
    paths: tuple[TensorPath, ...]
    numbers: tuple[int, ...]
    segments: tuple[PlannedSegment, ...]
    chunks: int
    size_bytes: int

    @cached_property
    def tensor_of_chunk(self) -> npt.NDArray[np.uint32]:
        """Position in `tensors` of the tensor of every chunk."""
        parts = [
            np.full(len(s.segment.chunks), self.numbers[s.segment.chunks.tensor], np.uint32)
            for s in self.segments
        ]
        return np.concatenate([np.zeros(0, np.uint32), *parts])

    def live(self, catalogue: Catalogue) -> list[tuple[PlannedSegment, Piece]]:
        """Return the segments with the live pieces that hold their bytes now."""
        shards = list(catalogue.tensors.values())
        return [
            (planned, shards[planned.segment.chunks.tensor].pieces[planned.segment.piece])
            for planned in self.segments
        ]


def structure_of(catalogue: Catalogue) -> Any:
    """Return a value that is equal for catalogues with the same plan, as long as grids are kept."""
    tensors = tuple(
        (path, shard.dtype, shard.shape, shard.layout, tuple(_geometry(p) for p in shard.pieces))
        for path, shard in catalogue.tensors.items()
    )
    return tensors, tuple(catalogue.aliases.items())


def _geometry(piece: Piece) -> tuple[Box, bool]:
    return piece.box, _is_flat(piece)


def _is_flat(piece: Piece) -> bool:
    return isinstance(piece.array, np.ndarray) and piece.array.flags.c_contiguous


def make_plan(catalogue: Catalogue, grids: Grids, rank: int, structure: Any) -> SavePlan:
    """Return what a rank brings.

    Args:
        catalogue: The tensors of the rank, every replicated one with its layout.
        grids: Grids that the lineage keeps, by path; others are computed from the layout.
        rank: This rank.
        structure: What `structure_of` returned for the catalogue.
    """
    chosen = [_grid(path, shard, grids) for path, shard in catalogue.tensors.items()]
    shards = list(catalogue.tensors.values())
    owned = plan_owned(
        [
            Holding(
                number,
                itemsize(shard.dtype),
                chosen[number],
                shard.layout,
                tuple(piece.box for piece in shard.pieces),
            )
            for number, shard in enumerate(shards)
        ],
        rank,
    )
    segments = tuple(_planned(_segments(owned, shards), chosen))
    dictionary = _dictionary(catalogue, chosen)
    position = {info.path: number for number, info in enumerate(dictionary)}
    return SavePlan(
        structure=structure,
        tensors=dictionary,
        paths=tuple(catalogue.tensors),
        numbers=tuple(position[path] for path in catalogue.tensors),
        segments=segments,
        chunks=sum(len(planned.segment.chunks) for planned in segments),
        size_bytes=sum(planned.segment.size_bytes for planned in segments),
    )


def _grid(path: TensorPath, shard: Shard, grids: Grids) -> Grid:
    kept = grids.get(path)
    if kept is not None and (kept.dtype, kept.shape) == (shard.dtype, shard.shape):
        return Grid(shard.shape, kept.cells)
    return grid_of_layout(shard.shape, itemsize(shard.dtype), shard.layout)


def _segments(owned: Owned, shards: Sequence[Shard]) -> Iterator[Segment]:
    for number in np.unique(owned.tensor).tolist():
        cut = owned.of_tensor(number)
        shard = shards[number]
        chunks = TensorChunks(
            number, itemsize(shard.dtype), cut.cells, cut.offsets, cut.sizes, ~cut.whole
        )
        yield from split_segments(chunks, [_geometry(p) for p in shard.pieces], SEGMENT_BYTES)


def _planned(segments: Iterator[Segment], grids: Sequence[Grid]) -> Iterator[PlannedSegment]:
    first = 0
    for segment in segments:
        chunks = segment.chunks
        boxes: list[Box | None] = [None] * len(chunks)
        for row in np.flatnonzero(chunks.fragment).tolist():
            cell = grids[chunks.tensor].cell_box(int(chunks.cells[row]))
            boxes[row] = chunks.box(row).relative_to(cell)
        yield PlannedSegment(segment, first, tuple(boxes))
        first += len(chunks)


def _dictionary(catalogue: Catalogue, grids: Sequence[Grid]) -> tuple[TensorInfo, ...]:
    """Return what is known of every tensor and alias, sorted by stored path."""
    infos = {
        path: TensorInfo(path, shard.dtype, shard.shape, grid.cells)
        for (path, shard), grid in zip(catalogue.tensors.items(), grids, strict=True)
    }
    ties = [
        replace(infos[first], path=path, alias=first) for path, first in catalogue.aliases.items()
    ]
    return tuple(sorted((*infos.values(), *ties), key=lambda info: encode_path(info.path)))
