"""One of the lanes that write chunks side by side, each into packs of its own.

Invariant: a row is recorded only for a chunk whose id was computed from the bytes handed in; what is stored
encoded was decoded and compared first, so a broken codec cannot lose data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import FwstoreError
from fwstore.codec.hashing import ContentHash, Hashes, hash_chunks, xxh3_128
from fwstore.codec.registry import RAW, Codec, encode_verified
from fwstore.content.lineages import join_lineages
from fwstore.content.packing import OpenPack, PackNaming
from fwstore.content.places import Places
from fwstore.content.sources import ChunkSource, Feed, Group
from fwstore.format.blocks import DIGEST_BYTES
from fwstore.format.footer import ID_BYTES
from fwstore.format.pack import ChunkEntry
from fwstore.format.packtable import PackInfo
from fwstore.format.rows import Boxes
from fwstore.format.tensor import TensorInfo
from fwstore.sched import Budget, Hasher, Runtime, waits_for_lock
from fwstore.store.base import Store

_Box = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the chunks of one group lie, by columns.

    Attributes:
        first: Position of the first chunk among all chunks of the write.
        tensors: Tensor number of every chunk.
        cells: Its cell.
        boxes: Offsets and sizes of the part of the cell, or None for the whole cell.
        places: Pack and number of the chunk in it; the pack is the number of an own one, or ~n for pack n of the
            known places.
        hashes: Of the raw bytes.
    """

    first: int
    tensors: list[int]
    cells: list[int]
    boxes: list[_Box | None]
    places: list[tuple[int, int]]
    hashes: Sequence[Hashes]


@dataclass
class Tally:
    """Counts of one lane.

    Attributes:
        chunks: Chunks handed in.
        bytes_raw: Their raw bytes.
        chunks_written: Chunks put into packs.
        bytes_written_raw: Raw bytes of those.
        bytes_stored: Their bytes as stored, without headers.
        bytes_reused: Raw bytes found among the known chunks.
        bytes_repeated: Raw bytes that stood in this write before.
    """

    chunks: int = 0
    bytes_raw: int = 0
    chunks_written: int = 0
    bytes_written_raw: int = 0
    bytes_stored: int = 0
    bytes_reused: int = 0
    bytes_repeated: int = 0


def add_tallies(tallies: Sequence[Tally]) -> Tally:
    """Return the sums of the counts of some lanes."""
    rows = [astuple(tally) for tally in tallies]
    return Tally(*(sum(column) for column in zip(*rows, strict=True)))


@dataclass
class Shared:
    """What the lanes of one write have in common.

    Attributes:
        store: Receives the packs.
        runtime: Identifiers and limits.
        naming: Makes the keys of the packs.
        dictionary: The tensors, sorted by stored path.
        position: For every tensor number of the sources its position in the dictionary.
        content_hash: Names the chunks.
        codecs: Codec by tensor index; tensors that are absent are stored raw.
        known: Chunks that the store holds already.
        feed: Where the chunks come from.
        budget: Bounds what is in work.
        hasher: Hashes what lies in shared memory, once that is wanted; None where all is hashed here.
        seen: Own pack and chunk by id. Lanes that meet the same new id at once both write it: that
            costs its bytes twice and nothing else.
        numbers: Numbers of the packs.
    """

    store: Store
    runtime: Runtime
    naming: PackNaming
    dictionary: Sequence[TensorInfo]
    position: Sequence[int]
    content_hash: ContentHash
    codecs: Mapping[int, Codec]
    known: Places
    feed: Feed
    budget: Budget
    hasher: Hasher | None = None
    seen: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    numbers: Callable[[], int] = field(default_factory=lambda: itertools.count().__next__)


class Lane:
    """Takes groups of chunks until none is left; `run` in a thread of its own."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pack: OpenPack | None = None
        self._closing: tuple[OpenPack, Future[PackInfo]] | None = None
        self.rows: list[Rows] = []
        self.packs: list[PackInfo] = []
        self.keys: list[str] = []
        self.tally = Tally()

    def run(self) -> None:
        """Write until the feed ends.

        Raises:
            FwstoreError: The store failed, or the write was abandoned; the open pack was aborted.
        """
        try:
            for group in self._shared.feed.groups():
                self._take(group)
            if not self._shared.feed.stopped:
                self._finish_pack()
                self._await_pack()
        except BaseException:
            self._shared.feed.stop()
            raise
        finally:
            if self._pack is not None:
                self._pack.abort()
            # A pack that becomes durable after the write has failed is among those to be discarded.
            with suppress(FwstoreError):
                self._await_pack()

    def _take(self, group: Group) -> None:
        try:
            with self._shared.budget.reserve(group.size_bytes):
                self._add(group)
                if self._pack is not None:
                    self._pack.flush()
        finally:
            group.release()

    def _add(self, group: Group) -> None:
        sources = group.chunks
        hashes = self._hash(group, sources)
        self.tally.chunks += len(sources)
        self.tally.bytes_raw += group.size_bytes
        self.rows.append(
            Rows(
                group.first,
                [source.tensor for source in sources],
                [source.cell for source in sources],
                [_box(source) for source in sources],
                self._place(sources, hashes),
                hashes,
            )
        )

    def _hash(self, group: Group, sources: Sequence[ChunkSource]) -> Sequence[Hashes]:
        hasher, content_hash = self._shared.hasher, self._shared.content_hash
        stretches = group.stretches
        beside = hasher.hash(content_hash, stretches) if hasher and stretches else None
        if beside is not None:
            return beside
        clock = self._shared.runtime.clock
        started = clock.monotonic()
        hashes = hash_chunks(content_hash, (source.buffer for source in sources))
        if hasher and waits_for_lock(group.size_bytes, len(sources), clock.monotonic() - started):
            hasher.want()
        return hashes

    def _place(
        self, sources: Sequence[ChunkSource], hashes: Sequence[Hashes]
    ) -> list[tuple[int, int]]:
        """Return where chunks lie; those that lie nowhere yet are appended to packs."""
        known, seen = self._shared.known, self._shared.seen
        kept: dict[int, tuple[int, int]] = {}
        new: dict[bytes, int] = {}
        for number, (source, (chunk_id, _)) in enumerate(zip(sources, hashes, strict=True)):
            row = source.known
            if row >= 0 and known.ids[row].tobytes() == chunk_id:
                kept[number] = ~int(known.pack[row]), int(known.chunk[row])
                self.tally.bytes_reused += source.buffer.nbytes
            elif chunk_id in seen or chunk_id in new:
                self.tally.bytes_repeated += source.buffer.nbytes
            else:
                new[chunk_id] = number
        self._append(sources, hashes, list(new.values()))
        return [kept.get(number) or seen[found.id] for number, found in enumerate(hashes)]

    def _append(
        self, sources: Sequence[ChunkSource], hashes: Sequence[Hashes], numbers: Sequence[int]
    ) -> None:
        """Append some of the chunks to the pack, and to the next ones when it is full."""
        shared, position = self._shared, self._shared.position
        coded = [self._encode(sources[number], hashes[number].digest) for number in numbers]
        entries = [
            ChunkEntry(
                hashes[number].id,
                digest,
                codec,
                sources[number].buffer.nbytes,
                stored.nbytes,
                position[sources[number].tensor],
                sources[number].cell,
                _box(sources[number]),
            )
            for number, (codec, digest, stored) in zip(numbers, coded, strict=True)
        ]
        stored = [buffer for _, _, buffer in coded]
        done = 0
        while done < len(entries):
            pack = self._pack = self._pack or self._open_pack()
            pack_bytes = shared.runtime.limits.pack_bytes
            for number in pack.extend(entries[done:], stored[done:], pack_bytes):
                shared.seen[entries[done].id] = pack.number, number
                done += 1
            if done < len(entries):
                self._finish_pack()
        self.tally.chunks_written += len(entries)
        self.tally.bytes_written_raw += sum([entry.raw_length for entry in entries])
        self.tally.bytes_stored += sum([entry.stored_length for entry in entries])

    def _encode(self, source: ChunkSource, digest: bytes) -> tuple[int, bytes, memoryview]:
        """Return the codec, the digest of what is stored, and that."""
        codec = self._shared.codecs.get(source.tensor)
        encoded = None if codec is None else encode_verified(codec, source.buffer)
        if codec is None or encoded is None:
            return RAW.number, digest, source.buffer
        stored = memoryview(encoded)
        return codec.number, xxh3_128(stored), stored

    def _open_pack(self) -> OpenPack:
        shared = self._shared
        identity = shared.naming.identity(shared.numbers(), shared.runtime.ids)
        return OpenPack(
            shared.store, shared.naming, identity, shared.dictionary, shared.content_hash
        )

    def _finish_pack(self) -> None:
        """Let the pack become durable while the next one is filled; at most one is on its way."""
        pack, self._pack = self._pack, None
        if pack is not None:
            try:
                self._await_pack()
                # The chunks belong to the caller, who may take them back before the pack is durable.
                pack.flush()
            except BaseException:
                pack.abort()
                raise
            self._closing = pack, self._shared.runtime.scheduler.spawn("pack", _finish, pack)

    def _await_pack(self) -> None:
        if self._closing is not None:
            (pack, info), self._closing = self._closing, None
            self.packs.append(info.result())
            self.keys.append(pack.key)


def _finish(pack: OpenPack) -> PackInfo:
    try:
        return pack.finish()
    except BaseException:
        pack.abort()
        raise


def _box(source: ChunkSource) -> _Box | None:
    return None if source.fragment is None else (source.fragment.offsets, source.fragment.sizes)


def collect_rows(lanes: Sequence[Lane], shared: Shared) -> Places:
    """Return the rows of all lanes in the order of their sources, own packs first."""
    groups = sorted((rows for lane in lanes for rows in lane.rows), key=attrgetter("first"))
    own = sorted((pack for lane in lanes for pack in lane.packs), key=lambda pack: pack.number)
    lineages, (_, numbers) = join_lineages([[shared.naming.lineage], shared.known.lineages])
    known = (replace(pack, lineage=numbers[pack.lineage]) for pack in shared.known.packs)
    boxes = [box for rows in groups for box in rows.boxes]
    found = [place for rows in groups for place in rows.places]
    packs = np.array([pack for pack, _ in found], np.int64)
    hashes = [hashes for rows in groups for hashes in rows.hashes]
    places = Places(
        lineages,
        (*own, *known),
        np.array([tensor for rows in groups for tensor in rows.tensors], np.uint32),
        np.array([cell for rows in groups for cell in rows.cells], np.uint64),
        np.array([box is not None for box in boxes], np.bool_),
        Boxes.of([box or ((), ()) for box in boxes]),
        np.where(packs < 0, len(own) + ~packs, packs).astype(np.uint32),
        np.array([chunk for _, chunk in found], np.uint32),
        _fixed(b"".join([each.id for each in hashes]), ID_BYTES),
        _fixed(b"".join([each.digest for each in hashes]), DIGEST_BYTES),
    )
    return places.used()


def _fixed(joined: bytes, width: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(joined, np.uint8).reshape(-1, width)
