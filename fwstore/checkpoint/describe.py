"""What a checkpoint consists of, for people and tools.

Invariant: descriptions are values; they are read from verified manifests and footers, never from data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fwstore.checkpoint.access import Access
from fwstore.codec.registry import codec_of_number
from fwstore.content.manifest import Manifest
from fwstore.format.keys import parse_pack_key
from fwstore.format.paths import TensorPath
from fwstore.format.summary import SnapshotEntry
from fwstore.plan.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDescription:
    """What the root of a checkpoint says; sizes in bytes."""

    run: str
    step: int
    id: str
    term: int
    parent: str | None
    wall_time: float
    metrics: Mapping[str, float]
    tensors: int
    bytes_logical: int
    bytes_written: int
    bytes_reused: int
    bytes_fragments: int
    chunks: int
    fragments: int
    packs: int
    leaves: int
    software: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackDescription:
    """One pack that a checkpoint refers to."""

    key: str
    size_bytes: int
    chunks: int
    lineage: str
    term: int
    save: int
    rank: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkTable:
    """The chunks of one tensor, as columns; row i is one chunk.

    Attributes:
        cells: Cell numbers, uint64, shape (n,).
        offsets: Start of the chunk in the global tensor, int64, shape (n, dimensions).
        sizes: Its extent, int64, shape (n, dimensions).
        ids: BLAKE3 of the raw bytes, uint8, shape (n, 32).
        codecs: Codec numbers, uint8, shape (n,).
        codec_names: Name of every codec number that occurs.
        packs: Pack numbers as in `Checkpoint.packs`, uint32, shape (n,).
        indexes: Chunk number in the pack, uint32, shape (n,).
        positions: Byte offset of the stored bytes in the pack, uint64, shape (n,).
        raw_lengths: Bytes after decoding, uint64, shape (n,).
        stored_lengths: Bytes in the pack, uint64, shape (n,).
    """

    cells: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint8]
    codecs: npt.NDArray[np.uint8]
    codec_names: Mapping[int, str]
    packs: npt.NDArray[np.uint32]
    indexes: npt.NDArray[np.uint32]
    positions: npt.NDArray[np.uint64]
    raw_lengths: npt.NDArray[np.uint64]
    stored_lengths: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.cells)


def describe(manifest: Manifest, entry: SnapshotEntry, run: str) -> CheckpointDescription:
    """Return what the root and the log say of a snapshot."""
    root = manifest.root
    return CheckpointDescription(
        run=run,
        step=root.step,
        id=root.snapshot,
        term=root.term,
        parent=None if root.parent is None else root.parent.snapshot,
        wall_time=entry.wall_time,
        metrics=dict(entry.metrics),
        tensors=root.totals.tensors,
        bytes_logical=root.totals.bytes_logical,
        bytes_written=root.totals.bytes_written,
        bytes_reused=root.totals.bytes_reused,
        bytes_fragments=root.totals.bytes_fragments,
        chunks=root.totals.chunks,
        fragments=root.totals.fragments,
        packs=root.totals.packs,
        leaves=len(root.leaves),
        software=dict(root.software),
    )


def pack_descriptions(manifest: Manifest) -> tuple[PackDescription, ...]:
    """Return all packs of a snapshot by number."""
    labels = [lineage.label for lineage in manifest.root.lineages]
    found = []
    for pack in manifest.all_packs():
        name = parse_pack_key(pack.key)
        found.append(
            PackDescription(
                key=pack.key,
                size_bytes=pack.info.size,
                chunks=pack.info.chunks,
                lineage=labels[pack.info.lineage],
                term=name.term,
                save=name.save,
                rank=name.rank,
                number=name.number,
            )
        )
    return tuple(found)


def chunk_table(access: Access, manifest: Manifest, path: TensorPath) -> ChunkTable:
    """Return where every chunk of a tensor lies."""
    rows = manifest.rows(path)
    grid = Grid(rows.info.shape, rows.info.cells)
    runs, parts = rows.runs, rows.fragments
    counts = runs.count.astype(np.int64)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    cells = np.repeat(runs.first_cell, counts) + within.astype(np.uint64)
    offsets, sizes = grid.cell_boxes(cells)
    origin, _ = grid.cell_boxes(parts.cell)
    shape = (len(parts), len(grid.shape))
    cells = np.concatenate([cells, parts.cell])
    offsets = np.concatenate([offsets, origin + parts.boxes.offsets.reshape(shape)])
    sizes = np.concatenate([sizes, parts.boxes.sizes.reshape(shape)])
    packs = np.concatenate([np.repeat(runs.pack, counts), parts.pack])
    chunks = np.repeat(runs.first_chunk, counts) + within.astype(np.uint32)
    return _with_footers(
        access,
        manifest,
        {"cells": cells, "offsets": offsets, "sizes": sizes},
        packs,
        np.concatenate([chunks, parts.chunk]).astype(np.uint32),
    )


def _with_footers(
    access: Access,
    manifest: Manifest,
    columns: dict[str, Any],
    packs: npt.NDArray[np.uint32],
    chunks: npt.NDArray[np.uint32],
) -> ChunkTable:
    """Return the table with what the footers of the packs say of every chunk."""
    count = len(packs)
    ids = np.zeros((count, 32), np.uint8)
    codecs = np.zeros(count, np.uint8)
    positions, raw, stored = (np.zeros(count, np.uint64) for _ in range(3))
    found = manifest.packs(np.unique(packs).tolist())
    footers = dict(zip(found, access.footers.get_many(list(found.values())), strict=True))
    for number, footer in footers.items():
        here = packs == number
        rows = chunks[here]
        ids[here], codecs[here] = footer.ids[rows], footer.codecs[rows]
        positions[here] = footer.offsets[rows]
        raw[here], stored[here] = footer.raw_lengths[rows], footer.stored_lengths[rows]
    return ChunkTable(
        **columns,
        ids=ids,
        codecs=codecs,
        codec_names={int(c): codec_of_number(int(c)).name for c in np.unique(codecs)},
        packs=packs.astype(np.uint32),
        indexes=chunks,
        positions=positions,
        raw_lengths=raw,
        stored_lengths=stored,
    )
