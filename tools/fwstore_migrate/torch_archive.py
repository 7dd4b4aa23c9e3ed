"""The zip archives that torch.save writes, read without torch.

Invariant: entries are stored, named once, inside the file and never overlap; nothing is extracted.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from dataclasses import dataclass

from fwstore import Corrupt, LimitExceeded, Unsupported
from fwstore_migrate.files import FileRange, RangeReader
from fwstore_migrate.limits import DIRECTORY_BYTES_MAX, PICKLE_BYTES_MAX

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class TorchArchive:
    """The entries of one archive, by their name below its folder.

    Attributes:
        source: The bytes of the archive.
        entries: Where the bytes of each entry lie.
    """

    source: FileRange
    entries: dict[str, FileRange]

    def pickle(self) -> bytes:
        """Return the pickle that describes the values."""
        entry = self._entry("data.pkl")
        if entry.length > PICKLE_BYTES_MAX:
            raise LimitExceeded(f"{self.source.name} describes its values in {entry.length} bytes")
        return entry.read(0, entry.length)

    def storage(self, key: str) -> FileRange:
        """Return the bytes of a storage."""
        return self._entry(f"data/{key}")

    def _entry(self, name: str) -> FileRange:
        entry = self.entries.get(name)
        if entry is None:
            raise Corrupt(f"{self.source.name} has no entry {name[:100]!r}; was it cut?")
        return entry


def open_archive(source: FileRange) -> TorchArchive:
    """Return the entries of an archive.

    Raises:
        Unsupported: It is of a kind that is not read: compressed, big-endian, or older than torch 1.6.
        Corrupt: It is malformed.
    """
    if source.length < len(MAGIC) or source.read(0, len(MAGIC)) != MAGIC:
        raise Unsupported(
            f"{source.name} is not a zip archive of torch.save; files of torch before 1.6 must be "
            "loaded and saved once by a newer torch"
        )
    try:
        with zipfile.ZipFile(RangeReader(source, DIRECTORY_BYTES_MAX)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise Corrupt(f"{source.name} is not a complete zip archive: {error}") from error
    placed = sorted((_place(source, info) for info in infos), key=lambda pair: pair[1].start)
    _check_apart(source, [entry for _, entry in placed])
    entries = {name.partition("/")[2]: entry for name, entry in placed}
    if len(entries) != len(placed) or len({name.partition("/")[0] for name, _ in placed}) != 1:
        raise Corrupt(f"{source.name} has entries of the same name or of several folders")
    _check_order(source, entries)
    return TorchArchive(source, entries)


def _place(source: FileRange, info: zipfile.ZipInfo) -> tuple[str, FileRange]:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
        raise Unsupported(f"{source.name} has the compressed or encrypted entry {info.filename!r}")
    if info.compress_size != info.file_size:
        raise Corrupt(f"{source.name} has the entry {info.filename!r} with two sizes")
    magic, name_bytes, extra_bytes = _LOCAL.unpack(source.read(info.header_offset, _LOCAL.size))
    if magic != MAGIC:
        raise Corrupt(f"{source.name} has no entry where its directory says {info.filename!r} is")
    start = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
    return info.filename, source.narrow(start, info.file_size)


def _check_apart(source: FileRange, entries: list[FileRange]) -> None:
    for left, right in itertools.pairwise(entries):
        if left.start + left.length > right.start:
            raise Corrupt(f"{source.name} has entries that overlap")


def _check_order(source: FileRange, entries: dict[str, FileRange]) -> None:
    entry = entries.get("byteorder")
    if entry is not None and entry.read(0, min(entry.length, 16)) != b"little":
        raise Unsupported(f"{source.name} was written on a big-endian machine")
