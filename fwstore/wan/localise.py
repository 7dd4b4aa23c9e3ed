"""The manifest of a snapshot as it will stand at another site.

Invariant: all packs stand under the prefix of the snapshot's own lineage, each under the first name that was never condemned
here; so what two workers make of one snapshot is the same, from whichever site they have it. Where no name
changes, no byte does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import msgspec

from fwstore.base.errors import Corrupt
from fwstore.codec.hashing import ContentHash
from fwstore.content.lineages import keys_of
from fwstore.format.groups import GroupRange, group_ranges
from fwstore.format.keys import LineageKeys, PackName
from fwstore.format.packtable import PackInfo, encode_pack_table
from fwstore.format.record import ObjectRef, Publish
from fwstore.format.root import PackTableRef, Root, encode_root
from fwstore.format.summary import SnapshotEntry
from fwstore.plan.mark import next_incarnation


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest as it stands at its source, verified.

    Attributes:
        root: What the root says.
        stored: Its bytes.
        parts: Of the pack table: their bytes and their rows.
        leaves: Their bytes.
    """

    root: Root
    stored: bytes
    parts: tuple[tuple[bytes, tuple[PackInfo, ...]], ...]
    leaves: tuple[bytes, ...]

    def rows(self) -> list[PackInfo]:
        """Return every pack, by number."""
        return [row for _, rows in self.parts for row in rows]

    def source_keys(self) -> list[str]:
        """Return the key of every pack at the source, by number."""
        lineages = [keys_of(lineage) for lineage in self.root.lineages]
        return [row.key(lineages) for row in self.rows()]

    def groups(self, entry: SnapshotEntry) -> tuple[GroupRange, ...]:
        """Return the groups of all its packs and its own, for records here."""
        return group_ranges(
            [*((row.term, row.save) for row in self.rows()), (entry.term, entry.save)]
        )


@dataclass(frozen=True, slots=True)
class LocalManifest:
    """A manifest as it is to stand here.

    Attributes:
        rows: Every pack, by number.
        keys: Their keys here.
        tables: The parts of the pack table.
        root: The root.
    """

    rows: tuple[PackInfo, ...]
    keys: tuple[str, ...]
    tables: tuple[bytes, ...]
    root: bytes

    def publish(
        self,
        entry: SnapshotEntry,
        groups: tuple[GroupRange, ...],
        hashing: ContentHash,
        *,
        source: str,
        base: str | None,
    ) -> Publish:
        """Return the record that makes it a snapshot here.

        Args:
            entry: The snapshot at its source.
            groups: Of all its packs.
            hashing: The hash that proves objects.
            source: Uuid of the source.
            base: What its term began from, as far as the source knows.
        """
        return Publish(
            snapshot=entry.id,
            step=entry.step,
            save=entry.save,
            parent=entry.parent,
            root=_reference(self.root, hashing),
            tables=tuple(_reference(table, hashing) for table in self.tables),
            groups=groups,
            bytes_logical=entry.bytes_logical,
            bytes_written=entry.bytes_written,
            metrics=entry.metrics,
            position=entry.position,
            source=source,
            base=msgspec.UNSET if base is None else base,
        )


def localise(
    remote: RemoteManifest,
    keys: LineageKeys,
    condemned: Collection[str],
    hashing: ContentHash,
) -> LocalManifest:
    """Return the manifest of a snapshot for a site.

    Args:
        remote: As it stands at its source.
        keys: The lineage.
        condemned: Every key of its packs that was ever condemned here.
        hashing: The hash that proves objects.
    """
    tables: list[bytes] = []
    rows: list[PackInfo] = []
    for stored, part in remote.parts:
        own = [own_row(row, keys, condemned) for row in part]
        same = own == list(part)
        tables.append(stored if same else encode_pack_table(len(rows), own))
        rows += own
    root = _own_root(remote, tables, hashing)
    return LocalManifest(tuple(rows), tuple(row.key([keys]) for row in rows), tuple(tables), root)


def own_row(row: PackInfo, keys: LineageKeys, condemned: Collection[str]) -> PackInfo:
    """Return the row of a pack table as it is to stand here.

    Args:
        row: As it stands at its source.
        keys: The lineage of the snapshot.
        condemned: Every key of its pack that was ever condemned here.
    """
    if not condemned and not row.lineage and not row.incarnation:
        return row
    name = PackName(
        name=keys.name,
        generation=keys.generation,
        spread=row.spread,
        term=row.term,
        save=row.save,
        rank=row.rank,
        number=row.number,
        token=row.token,
    )
    free = next_incarnation(name, lambda pack: keys.pack(pack) in condemned)
    return replace(row, lineage=0, incarnation=free.incarnation)


def _own_root(remote: RemoteManifest, tables: Sequence[bytes], hashing: ContentHash) -> bytes:
    root = remote.root
    if not root.pack_tables:
        return remote.stored
    parts = tuple(
        PackTableRef(part.first_pack, part.packs, len(table), hashing.digest(table))
        for part, table in zip(root.pack_tables, tables, strict=True)
    )
    lineages = (root.lineage,)
    if (parts, lineages) == (root.pack_tables, root.lineages):
        return remote.stored
    return encode_root(msgspec.structs.replace(root, pack_tables=parts, lineages=lineages))


def check_identity(root: Root, keys: LineageKeys, lineage: str, entry: SnapshotEntry) -> None:
    """Refuse a root that is not the one its record tells of.

    Raises:
        Corrupt: It belongs to another snapshot, or names other tables than the record.
    """
    told = tuple((part.digest, part.size) for part in entry.tables)
    named = tuple((part.digest.hex(), part.size) for part in root.pack_tables)
    who = (root.snapshot, root.lineage.label, root.lineage.uuid)
    if who != (entry.id, keys.label, lineage) or told != named:
        raise Corrupt(
            f"the root of {keys.label}/{entry.id} belongs to {root.lineage.label}/{root.snapshot}, or names other "
            "pack tables than the record"
        )


def _reference(stored: bytes, hashing: ContentHash) -> ObjectRef:
    return ObjectRef(hashing.digest(stored).hex(), len(stored))
