"""The pack table of a snapshot: which packs its rows refer to, in parts of a few thousand.

Invariant: a row holds everything that names a pack, finds its footer and proves it, so that a reader
needs no LIST and no request besides the footer itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import attrgetter, or_

import numpy as np

from fwstore.base.errors import Corrupt, InvalidInput, LimitExceeded
from fwstore.format.blocks import BLOCK_BYTES
from fwstore.format.columnar import (
    FixedColumn,
    IntegerColumn,
    Values,
    encode_table,
    parse_table,
)
from fwstore.format.keys import LineageKeys, PackName
from fwstore.format.rows import Columns

KIND = "pkts"
PACKS_PER_PART = 4096
_META = struct.Struct("<Q")
_NUMBERS = (
    "lineage",
    "spread",
    "term",
    "save",
    "rank",
    "number",
    "incarnation",
    "size",
    "footer_length",
    "chunks",
)
_TOKEN_BYTES, _DIGEST_BYTES = 8, 32

_numbers_of = attrgetter(*_NUMBERS)

PACK_SCHEMA: dict[str, IntegerColumn | FixedColumn] = {
    **{
        f"pack_{name}": IntegerColumn(np.int64, delta=name in ("rank", "number"))
        for name in _NUMBERS
    },
    "pack_token": FixedColumn(_TOKEN_BYTES),
    "pack_digest": FixedColumn(_DIGEST_BYTES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackInfo:
    """One pack that a snapshot refers to.

    Attributes:
        lineage: Index into the lineages that the root names.
        spread: The two hexadecimal digits of the key that spread packs over prefixes.
        term: Term of the job that wrote it.
        save: Number of the save in that term.
        rank: Rank that wrote it.
        number: Number among the packs of that rank and save.
        token: 16 hexadecimal digits that make the key unique.
        incarnation: How often the key had been condemned at the site of this copy.
        size: Bytes of the whole pack.
        footer_length: Bytes of the footer, which ends where the trailer begins.
        footer_digest: BLAKE3 of the footer.
        chunks: Chunks in the pack.
    """

    lineage: int
    spread: int
    term: int
    save: int
    rank: int
    number: int
    token: str
    incarnation: int = 0
    size: int
    footer_length: int
    footer_digest: bytes
    chunks: int

    @property
    def footer_offset(self) -> int:
        """Where the footer begins in the pack."""
        return self.size - self.footer_length - BLOCK_BYTES

    def key(self, lineages: Sequence[LineageKeys]) -> str:
        """Return the object key of the pack.

        Raises:
            Corrupt: The lineage is not among those the root names.
        """
        if self.lineage >= len(lineages):
            raise Corrupt(
                f"a pack belongs to lineage {self.lineage} of a root that names {len(lineages)}"
            )
        lineage = lineages[self.lineage]
        return lineage.pack(
            PackName(
                name=lineage.name,
                generation=lineage.generation,
                spread=self.spread,
                term=self.term,
                save=self.save,
                rank=self.rank,
                number=self.number,
                token=self.token,
                incarnation=self.incarnation,
            )
        )


def pack_columns(packs: Sequence[PackInfo]) -> dict[str, Values]:
    """Return the stored columns of some packs.

    Raises:
        InvalidInput: A pack is not sane.
    """
    for pack in packs:
        problem = _problem(pack)
        if problem is not None:
            raise InvalidInput(f"pack {pack.token} {problem}")
    columns: dict[str, Values] = {
        f"pack_{name}": np.fromiter(map(attrgetter(name), packs), np.int64, len(packs))
        for name in _NUMBERS
    }
    tokens = b"".join(bytes.fromhex(pack.token) for pack in packs)
    digests = b"".join(pack.footer_digest for pack in packs)
    columns["pack_token"] = np.frombuffer(tokens, np.uint8).reshape(len(packs), _TOKEN_BYTES)
    columns["pack_digest"] = np.frombuffer(digests, np.uint8).reshape(len(packs), _DIGEST_BYTES)
    return columns


def parse_packs(table: Columns) -> tuple[PackInfo, ...]:
    """Return the packs of a parsed table.

    Raises:
        Corrupt: The columns differ in length or a pack is not sane.
    """
    if len({len(table.array(name)) for name in PACK_SCHEMA}) != 1:
        raise Corrupt("the columns of a pack table differ in length")
    numbers = [table.array(f"pack_{name}").tolist() for name in _NUMBERS]
    tokens, digests = table.array("pack_token").tobytes(), table.array("pack_digest").tobytes()
    packs = []
    for index, row in enumerate(zip(*numbers, strict=True)):
        pack = PackInfo(
            **dict(zip(_NUMBERS, row, strict=True)),
            token=tokens[index * _TOKEN_BYTES : (index + 1) * _TOKEN_BYTES].hex(),
            footer_digest=digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES],
        )
        problem = _problem(pack)
        if problem is not None:
            raise Corrupt(f"a stored pack {problem}")
        packs.append(pack)
    return tuple(packs)


def encode_pack_table(first_pack: int, packs: Sequence[PackInfo]) -> bytes:
    """Return the stored form of one part of a pack table, whose first row is pack number `first_pack`.

    Raises:
        InvalidInput: A pack is not sane.
        LimitExceeded: The part has more than `PACKS_PER_PART` packs.
    """
    if len(packs) > PACKS_PER_PART:
        raise LimitExceeded(
            f"a part of a pack table holds {PACKS_PER_PART} packs, not {len(packs)}; split it"
        )
    return encode_table(KIND, PACK_SCHEMA, pack_columns(packs), _META.pack(first_pack))


def parse_pack_table(stored: bytes) -> tuple[int, tuple[PackInfo, ...]]:
    """Return the number of the first pack of a part, and its packs.

    Raises:
        Corrupt: The bytes are not a part of a pack table.
        Unsupported: It is of another format version or has an unknown feature.
    """
    table = parse_table(KIND, PACK_SCHEMA, stored)
    if len(table.meta) != _META.size or len(table.array("pack_term")) > PACKS_PER_PART:
        raise Corrupt("a part of a pack table does not name its first pack or is too large")
    (first,) = _META.unpack(table.meta)
    return first, parse_packs(table)


def _problem(pack: PackInfo) -> str | None:
    # A leader asks this of 1e5 packs, twice; a negative number has its sign bit in the union of all.
    if reduce(or_, _numbers_of(pack)) < 0 or pack.spread > 255:
        return "has a negative number or a spread above 255"
    if len(pack.token) != 2 * _TOKEN_BYTES or len(pack.footer_digest) != _DIGEST_BYTES:
        return "has a token or a digest of another length"
    if pack.footer_offset < BLOCK_BYTES:
        return f"of {pack.size} bytes cannot hold a footer of {pack.footer_length} bytes"
    return None
