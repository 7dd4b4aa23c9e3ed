"""The packs of one write: their keys, and one being filled.

Invariant: a key is never used twice, because it carries a fresh random token; a pack becomes visible in
`finish`, complete with its footer, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import Buffer

from fwstore.base.ids import Ids
from fwstore.codec.hashing import ContentHash
from fwstore.content.lineages import keys_of
from fwstore.format.blocks import PackIdentity
from fwstore.format.keys import PackName
from fwstore.format.pack import ChunkEntry, PackLayout
from fwstore.format.packtable import PackInfo
from fwstore.format.root import LineageRef
from fwstore.format.tensor import TensorInfo
from fwstore.store.base import Store, Upload

_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PackNaming:
    """What the keys of all packs of one write have in common.

    Attributes:
        lineage: The lineage that is being written.
        term: Term of the job.
        save: Number of the save in that term.
        rank: This rank.
        spread: Over how many prefixes packs are spread, 1 to 256.
    """

    lineage: LineageRef
    term: int
    save: int
    rank: int
    spread: int = 1

    def identity(self, number: int, ids: Ids) -> PackIdentity:
        """Return the identity of a new pack."""
        return PackIdentity(
            lineage=self.lineage.uuid,
            term=self.term,
            save=self.save,
            rank=self.rank,
            number=number,
            token=ids.token(_TOKEN_BYTES),
        )

    def spread_of(self, number: int) -> int:
        """Return which prefix a pack goes to; ranks begin at different ones."""
        return (self.rank + number) % self.spread


class OpenPack:
    """A pack being uploaded by one lane.

    Chunks are placed by `extend` and reach the store with the next `flush`.

    Attributes:
        key: Its object key.
    """

    def __init__(
        self,
        store: Store,
        naming: PackNaming,
        identity: PackIdentity,
        dictionary: Sequence[TensorInfo],
        content_hash: ContentHash,
    ) -> None:
        lineage = keys_of(naming.lineage)
        self._name = PackName(
            name=lineage.name,
            generation=lineage.generation,
            spread=naming.spread_of(identity.number),
            term=identity.term,
            save=identity.save,
            rank=identity.rank,
            number=identity.number,
            token=identity.token,
        )
        self._layout = PackLayout(identity, dictionary, content_hash.digest)
        self.key = lineage.pack(self._name)
        self._upload: Upload = store.upload(self.key)
        self._buffers: list[Buffer] = [self._layout.header]

    @property
    def number(self) -> int:
        """Its number among the packs of the write."""
        return self._name.number

    def extend(
        self, entries: Sequence[ChunkEntry], stored: Sequence[Buffer], pack_bytes: int
    ) -> list[int]:
        """Place chunks until the pack has the size wanted, and return the numbers of those that found room.

        Their bytes must stay as they are until `flush`.
        """
        places = self._layout.extend(entries, pack_bytes)
        for place, buffer in zip(places, stored, strict=False):
            self._buffers += (place.header, buffer)
            if place.padding:
                self._buffers.append(place.padding)
        return [place.number for place in places]

    def flush(self) -> None:
        """Hand what was appended to the store."""
        buffers, self._buffers = self._buffers, []
        if buffers:
            self._upload.write(buffers)

    def finish(self) -> PackInfo:
        """Complete the pack and make it durable."""
        end = self._layout.finish()
        self._buffers += (end.footer, end.trailer)
        self.flush()
        self._upload.commit()
        return PackInfo(
            lineage=0,
            spread=self._name.spread,
            term=self._name.term,
            save=self._name.save,
            rank=self._name.rank,
            number=self._name.number,
            token=self._name.token,
            size=end.size,
            footer_length=len(end.footer),
            footer_digest=end.footer_digest,
            chunks=end.chunks,
        )

    def abort(self) -> None:
        """Drop the pack."""
        self._upload.abort()
