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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from fwstore.base.errors import FwstoreError
from fwstore.codec.hashing import ContentHash, xxh3_128
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
from fwstore.sched import Budget, Runtime
from fwstore.store.base import Store


class Row(NamedTuple):
    """Where one chunk lies; `pack` is the number of an own pack, or ~n for pack n of the known places."""

    sequence: int
    tensor: int
    cell: int
    box: tuple[tuple[int, ...], tuple[int, ...]] | None
    pack: int
    chunk: int
    id: bytes
    digest: bytes


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
    seen: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    numbers: Callable[[], int] = field(default_factory=lambda: itertools.count().__next__)


class Lane:
    """Takes groups of chunks until none is left; `run` in a thread of its own."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pack: OpenPack | None = None
        self._closing: tuple[OpenPack, Future[PackInfo]] | None = None
        self.rows: list[Row] = []
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
                for sequence, source in enumerate(group.chunks(), group.first):
                    self._add(sequence, source)
                if self._pack is not None:
                    self._pack.flush()
        finally:
            group.release()

    def _add(self, sequence: int, source: ChunkSource) -> None:
        raw = source.buffer
        chunk_id = self._shared.content_hash.digest(raw)
        digest = xxh3_128(raw)
        self.tally.chunks += 1
        self.tally.bytes_raw += raw.nbytes
        box = None if source.fragment is None else (source.fragment.offsets, source.fragment.sizes)
        pack, chunk = self._place(source, box, chunk_id, digest)
        self.rows.append(
            Row(sequence, source.tensor, source.cell, box, pack, chunk, chunk_id, digest)
        )

    def _place(
        self,
        source: ChunkSource,
        box: tuple[tuple[int, ...], tuple[int, ...]] | None,
        chunk_id: bytes,
        digest: bytes,
    ) -> tuple[int, int]:
        known, row = self._shared.known, source.known
        if row >= 0 and known.ids[row].tobytes() == chunk_id:
            self.tally.bytes_reused += source.buffer.nbytes
            return ~int(known.pack[row]), int(known.chunk[row])
        place = self._shared.seen.get(chunk_id)
        if place is not None:
            self.tally.bytes_repeated += source.buffer.nbytes
            return place
        codec, stored = self._encode(source)
        size = memoryview(stored).nbytes
        if codec != RAW.number:
            digest = xxh3_128(stored)
        entry = ChunkEntry(
            chunk_id,
            digest,
            codec,
            source.buffer.nbytes,
            size,
            self._shared.position[source.tensor],
            source.cell,
            box,
        )
        pack = self._pack_for(size)
        place = pack.number, pack.append(entry, stored)
        self._shared.seen[chunk_id] = place
        self.tally.chunks_written += 1
        self.tally.bytes_written_raw += source.buffer.nbytes
        self.tally.bytes_stored += size
        return place

    def _encode(self, source: ChunkSource) -> tuple[int, Buffer]:
        codec = self._shared.codecs.get(source.tensor)
        stored = None if codec is None else encode_verified(codec, source.buffer)
        if codec is None or stored is None:
            return RAW.number, source.buffer
        return codec.number, stored

    def _pack_for(self, stored_bytes: int) -> OpenPack:
        shared = self._shared
        if self._pack is not None and not self._pack.has_room(
            stored_bytes, shared.runtime.limits.pack_bytes
        ):
            self._finish_pack()
        if self._pack is None:
            identity = shared.naming.identity(shared.numbers(), shared.runtime.ids)
            self._pack = OpenPack(
                shared.store, shared.naming, identity, shared.dictionary, shared.content_hash
            )
        return self._pack

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


def collect_rows(lanes: Sequence[Lane], shared: Shared) -> Places:
    """Return the rows of all lanes in the order of their sources, own packs first."""
    rows = sorted(row for lane in lanes for row in lane.rows)
    own = sorted((pack for lane in lanes for pack in lane.packs), key=lambda pack: pack.number)
    lineages, (_, numbers) = join_lineages([[shared.naming.lineage], shared.known.lineages])
    known = (replace(pack, lineage=numbers[pack.lineage]) for pack in shared.known.packs)
    packs = np.array([row.pack for row in rows], np.int64)
    places = Places(
        lineages,
        (*own, *known),
        np.array([row.tensor for row in rows], np.uint32),
        np.array([row.cell for row in rows], np.uint64),
        np.array([row.box is not None for row in rows], np.bool_),
        Boxes.of([row.box or ((), ()) for row in rows]),
        np.where(packs < 0, len(own) + ~packs, packs).astype(np.uint32),
        np.array([row.chunk for row in rows], np.uint32),
        _fixed(b"".join(row.id for row in rows), ID_BYTES),
        _fixed(b"".join(row.digest for row in rows), DIGEST_BYTES),
    )
    return places.used()


def _fixed(joined: bytes, width: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(joined, np.uint8).reshape(-1, width)
