"""Which chunks a rank brings to a save: computed once per structure of the state, kept between saves.

Invariant: two states with the same `structure` have the same plan, so a repeated save plans nothing; the
chunks of a plan stand in one fixed order, and every table of a save is aligned with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
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
    shards = catalogue.tensors.values()
    # Lists of what shards share: they are made and compared without Python code for each tensor.
    return (
        list(catalogue.tensors),
        list(map(attrgetter("form"), shards)),
        list(map(attrgetter("layout"), shards)),
        tuple(catalogue.aliases.items()),
    )


def make_plan(catalogue: Catalogue, grids: Grids, rank: int, structure: Any) -> SavePlan:
    """Return what a rank brings.

    Args:
        catalogue: The tensors of the rank, every replicated one with its layout.
        grids: Grids that the lineage keeps, by path; others are computed from the layout.
        rank: This rank.
        structure: What `structure_of` returned for the catalogue.
    """
    shards = list(catalogue.tensors.values())
    chosen = _grids(catalogue, grids)
    owned = plan_owned(
        [
            Holding(
                number,
                shard.form.raw.itemsize,
                chosen[number],
                shard.layout,
                tuple([piece.box for piece in shard.pieces]),
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
        numbers=tuple([position[path] for path in catalogue.tensors]),
        segments=segments,
        chunks=sum(len(planned.boxes) for planned in segments),
        size_bytes=sum(planned.segment.size_bytes for planned in segments),
    )


def _grids(catalogue: Catalogue, grids: Grids) -> list[Grid]:
    """Return the grid of every tensor; those that have the same are given one."""
    made: dict[object, Grid] = {}
    found = []
    for path, shard in catalogue.tensors.items():
        kept = grids.get(path)
        if kept is not None and (kept.dtype, kept.shape) == (shard.dtype, shard.shape):
            key: object = (shard.shape, kept.cells)
            if key not in made:
                made[key] = Grid(shard.shape, kept.cells)
        else:
            # The catalogue keeps its layouts, so that no other can get the same identity meanwhile.
            key = (shard.shape, shard.dtype, id(shard.layout))
            if key not in made:
                made[key] = grid_of_layout(shard.shape, itemsize(shard.dtype), shard.layout)
        found.append(made[key])
    return found


def _segments(owned: Owned, shards: Sequence[Shard]) -> Iterator[Segment]:
    """Yield the segments of all tensors; a model has many of one form, which are split once."""
    known: dict[object, list[Segment]] = {}
    for number, cut in owned.by_tensor():
        shard = shards[number]
        arrays = (cut.cells, cut.offsets, cut.sizes, cut.whole)
        key = (shard.form, *(array.tobytes() for array in arrays))
        alike = known.get(key)
        if alike is None:
            chunks = TensorChunks(
                number, itemsize(shard.dtype), cut.cells, cut.offsets, cut.sizes, ~cut.whole
            )
            known[key] = alike = list(split_segments(chunks, shard.form.pieces, SEGMENT_BYTES))
        for segment in alike:
            yield segment.of_tensor(number)


def _planned(segments: Iterator[Segment], grids: Sequence[Grid]) -> Iterator[PlannedSegment]:
    first = 0
    for segment in segments:
        chunks = segment.chunks
        boxes: list[Box | None] = [None] * len(chunks)
        for row in np.flatnonzero(chunks.fragment).tolist() if chunks.fragment.any() else ():
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
    if not catalogue.aliases:
        return tuple(infos.values())
    ties = [
        replace(infos[first], path=path, alias=first) for path, first in catalogue.aliases.items()
    ]
    return tuple(sorted((*infos.values(), *ties), key=lambda info: encode_path(info.path)))
