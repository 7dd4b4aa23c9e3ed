"""Hands the bytes of a prepared save to the packs, in the order of the plan.

Invariant: every chunk of the given segments comes out once, in order; memory that had to be made for it lives
only until its batch is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fwstore.checkpoint.known import Known
from fwstore.checkpoint.saveplan import PlannedSegment, SavePlan
from fwstore.checkpoint.shard import Piece
from fwstore.checkpoint.stage import StagedSegment, copy_segment, live_bytes
from fwstore.content.sources import ChunkSource, SourceBatch

Source = Piece | StagedSegment


def batches_of(
    plan: SavePlan,
    sources: Sequence[tuple[PlannedSegment, Source]],
    known: Known | None,
    first_tensor: int = 0,
) -> Iterator[SourceBatch]:
    """Yield the chunks of some segments; live pieces are read as they are drawn.

    Args:
        plan: The plan of the segments.
        sources: The segments, and their staged bytes or live pieces.
        known: Rows of known places for the chunks of the plan.
        first_tensor: Added to tensor numbers.
    """
    for planned, source in sources:
        memory = _memory(planned, source)
        release = source.release if isinstance(source, StagedSegment) else None
        tensor = plan.numbers[planned.segment.chunks.tensor] + first_tensor
        yield SourceBatch(list(_chunks(planned, memory, tensor, known)), release, memory)


def _memory(planned: PlannedSegment, source: Source) -> memoryview:
    if isinstance(source, StagedSegment):
        return source.memory
    live = live_bytes(planned.segment, source)
    if live is None:
        live = np.empty(planned.segment.size_bytes, np.uint8)
        copy_segment(planned.segment, source, live)
    return live.data


def _chunks(
    planned: PlannedSegment, memory: memoryview, tensor: int, known: Known | None
) -> Iterator[ChunkSource]:
    chunks = planned.segment.chunks
    count = len(chunks)
    rows = [-1] * count if known is None else known.row[planned.rows].tolist()
    position = 0
    columns = zip(chunks.cells.tolist(), chunks.lengths.tolist(), planned.boxes, rows, strict=True)
    for cell, length, box, row in columns:
        yield ChunkSource(tensor, cell, box, memory[position : position + length], row)
        position += length
