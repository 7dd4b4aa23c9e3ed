"""Small snapshots of numpy arrays, saved and loaded by the content layer alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwstore.base.clock import SystemClock
from fwstore.base.config import Environment, Limits
from fwstore.base.ids import SeededIds
from fwstore.codec.hashing import ContentHash
from fwstore.codec.registry import Codec
from fwstore.content.build import BuiltSnapshot, build_snapshot, write_manifest
from fwstore.content.contribution import (
    Contribution,
    contribution_of,
    encode_contribution,
    parse_contribution,
)
from fwstore.content.footers import FooterCache
from fwstore.content.manifest import Manifest, open_manifest
from fwstore.content.packing import PackNaming
from fwstore.content.places import Places, no_places
from fwstore.content.read import ContentReader, ReadStatistics
from fwstore.content.sources import ChunkSource, SourceBatch
from fwstore.content.verified import Origin
from fwstore.content.write import WriteRequest, Written, write_chunks
from fwstore.format.keys import LineageKeys, SnapshotId
from fwstore.format.paths import TensorPath, encode_path
from fwstore.format.root import LineageRef, Root
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid
from fwstore.sched import BufferPool, InlineScheduler, Runtime, Scheduler
from fwstore.store.base import Store

LINEAGE = LineageRef("test/run@1", "00112233445566778899aabbccddeeff")
KEYS = LineageKeys("test/run", 1)
Cells = tuple[tuple[int, int], ...]
Arrays = Mapping[TensorPath, NDArray[Any]]


def make_runtime(scheduler: Scheduler | None = None, seed: int = 1, **limits: Any) -> Runtime:
    """Return a runtime that repeats itself."""
    return Runtime(
        SystemClock(),
        SeededIds(seed),
        scheduler or InlineScheduler(),
        Limits(**limits),
        Environment({}),
    )


@dataclass(frozen=True)
class Held:
    """What one rank holds of a tensor: parts of the whole array by box."""

    array: NDArray[Any]
    boxes: Sequence[Box] | None = None
    cells: Cells | None = None

    @property
    def grid(self) -> Grid:
        cells = self.cells or tuple((1, max(1, size)) for size in self.array.shape)
        return Grid(self.array.shape, cells)


@dataclass(frozen=True)
class Piece:
    """A destination."""

    box: Box
    array: NDArray[Any]


@dataclass
class Site:
    """One lineage in one store, and what saving and loading it takes."""

    store: Store
    runtime: Runtime = field(default_factory=make_runtime)
    content_hash: ContentHash = field(default_factory=ContentHash)
    codec: Codec | None = None
    released: list[int] = field(default_factory=list)
    saves: int = 0

    @property
    def origin(self) -> Origin:
        return Origin(stores=(self.store,), runtime=self.runtime, content_hash=self.content_hash)

    def write(
        self,
        held: Mapping[Any, Held],
        *,
        rank: int = 0,
        known: Places | None = None,
        chunks_per_batch: int = 3,
        **request: Any,
    ) -> tuple[tuple[TensorInfo, ...], Written]:
        """Write the chunks of one rank."""
        paths = sorted(held, key=encode_path)
        tensors = tuple(info_of(path, held[path]) for path in paths)
        sources = list(chunk_sources([held[path] for path in paths], known=known is not None))
        batches = (
            SourceBatch(sources[i : i + chunks_per_batch], lambda i=i: self.released.append(i))  # type: ignore[misc]
            for i in range(0, len(sources), chunks_per_batch)
        )
        codecs = {} if self.codec is None else dict.fromkeys(range(len(tensors)), self.codec)
        written = write_chunks(
            self.store,
            self.runtime,
            WriteRequest(
                batches=batches,
                total_bytes=sum(source.buffer.nbytes for source in sources),
                tensors=tensors,
                naming=PackNaming(lineage=LINEAGE, term=1, save=self.saves, rank=rank, spread=4),
                content_hash=self.content_hash,
                codecs=codecs,
                known=known or no_places(),
                **request,
            ),
        )
        return tensors, written

    def contribution(self, held: Mapping[Any, Held], rank: int = 0) -> Contribution:
        """Write the chunks of one rank and return its contribution as the leader gets it."""
        tensors, written = self.write(held, rank=rank)
        part = contribution_of(
            rank,
            tensors,
            written.places,
            bytes_written=written.tally.bytes_stored,
            bytes_reused=written.tally.bytes_reused,
        )
        return parse_contribution(encode_contribution(part), {})

    def draft(self) -> Root:
        """Return a root without content."""
        snapshot = SnapshotId(10 * self.saves, 1, self.saves, self.runtime.ids.token(8))
        return Root(
            lineage=LINEAGE, snapshot=str(snapshot), step=10 * self.saves, term=1, save=self.saves
        )

    def commit(self, contributions: Sequence[Contribution]) -> BuiltSnapshot:
        """Build and write a manifest."""
        built = build_snapshot(self.draft(), contributions, self.content_hash)
        write_manifest(self.store, self.runtime, built)
        self.saves += 1
        return built

    def save(
        self, arrays: Arrays, cells: Mapping[TensorPath, Cells] | None = None
    ) -> BuiltSnapshot:
        """Save whole arrays from one rank."""
        cells = cells or {}
        held = {path: Held(array, None, cells.get(path)) for path, array in arrays.items()}
        return self.commit([self.contribution(held)])

    def open(self, built: BuiltSnapshot) -> Manifest:
        """Open a snapshot."""
        return self.open_at(built, self.origin)

    def open_at(self, built: BuiltSnapshot, origin: Origin) -> Manifest:
        """Open a snapshot from some stores."""
        return open_manifest(origin, KEYS, built.root.snapshot, built.root_digest)

    def load(
        self, built: BuiltSnapshot, origin: Origin | None = None
    ) -> dict[TensorPath, NDArray[Any]]:
        """Load every tensor whole, as raw bytes of unsigned integers."""
        origin = origin or self.origin
        manifest = self.open_at(built, origin)
        arrays = {}
        for info in manifest.tensors():
            arrays[info.path] = np.zeros(info.shape, raw_dtype(info))
        read_pieces(origin, manifest, {path: [whole(array)] for path, array in arrays.items()})
        return arrays


def read_pieces(
    origin: Origin, manifest: Manifest, pieces: Mapping[TensorPath, Sequence[Piece]]
) -> ReadStatistics:
    """Fill some pieces of some tensors."""
    reader = ContentReader(origin, FooterCache(origin), BufferPool())
    return reader.read(manifest, pieces.items())


def whole(array: NDArray[Any]) -> Piece:
    """Return an array as the destination of a whole tensor."""
    return Piece(Box.whole(array.shape), array)


def info_of(path: TensorPath, held: Held) -> TensorInfo:
    """Return the dictionary entry of a tensor."""
    return TensorInfo(path, str(held.array.dtype), held.array.shape, held.grid.cells)


def raw_dtype(info: TensorInfo) -> np.dtype[Any]:
    """Return the unsigned integers that hold the bytes of a tensor."""
    return np.dtype(f"u{np.dtype(info.dtype).itemsize}")


def raw(array: NDArray[Any]) -> NDArray[Any]:
    """Return the bytes of an array as unsigned integers."""
    flat = np.ascontiguousarray(array).reshape(array.shape)
    return flat.view(f"u{array.dtype.itemsize}")


def chunk_sources(held: Sequence[Held], *, known: bool = False) -> Iterator[ChunkSource]:
    """Yield the chunks of some tensors; their rows in the known places are their positions."""
    position = 0
    for number, tensor in enumerate(held):
        whole_box = Box.whole(tensor.array.shape)
        for box in tensor.boxes if tensor.boxes is not None else [whole_box]:
            cut = tensor.grid.cut(box)
            for row in range(len(cut)):
                part = Box(tuple(cut.offsets[row].tolist()), tuple(cut.sizes[row].tolist()))
                cell = int(cut.cells[row])
                fragment = None if cut.whole[row] else part.relative_to(tensor.grid.cell_box(cell))
                index: tuple[Any, ...] = (*part.slices(), ...)
                content = memoryview(tensor.array[index].tobytes())
                yield ChunkSource(number, cell, fragment, content, position if known else -1)
                position += 1
