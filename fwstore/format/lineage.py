"""The catalog's objects: a lineage, and the spelling of a name.

Invariant: a lineage object is written once and copied to other sites byte for byte, so one name and
generation has one uuid everywhere, or the difference is seen.
"""

from __future__ import annotations

from typing import Literal

from fwstore.base.errors import Conflict
from fwstore.format.canonical import (
    Count,
    Stored,
    Text,
    Token,
    Uuid,
    decode_checked,
    encode_checked,
)
from fwstore.format.keys import LineageKeys

LINEAGE_BYTES_MAX = 16 * 1024
Kind = Literal["run", "dataset"]


class Lineage(Stored, frozen=True, kw_only=True):
    """A named history; `time` is for people."""

    name: Text
    generation: Count
    lineage: Uuid
    kind: Kind
    witnesses: tuple[Uuid, ...]
    time: float

    @property
    def keys(self) -> LineageKeys:
        """Where its objects are."""
        return LineageKeys(self.name, self.generation)

    def must_be(self, found: Lineage, where: str) -> None:
        """Refuse what another site has under the same name.

        Raises:
            Conflict: It is another lineage; the message names both.
        """
        if found.lineage != self.lineage:
            raise Conflict(
                f"{self.keys.label} is lineage {found.lineage} {where}, and elsewhere it is {self.lineage}: two "
                "lineages were created under one name; rename one"
            )


class NameClaim(Stored, frozen=True):
    """The spelling of a name; names that differ in case alone are one name."""

    name: Text
    write_id: Token


def claim_key(name: str) -> str:
    """Return the key at which the spelling of a name is fixed."""
    return f"meta/_names/{name.lower()}@"


def closed_key(keys: LineageKeys) -> str:
    """Return the key of the marker that keeps a deleted lineage out of listings."""
    return f"{keys.catalog}.closed"


def encode_lineage(lineage: Lineage | NameClaim) -> bytes:
    """Return the stored form."""
    return encode_checked(lineage)


def parse_lineage(encoded: bytes, what: str) -> Lineage:
    """Return a lineage.

    Raises:
        Corrupt: The bytes are not a lineage object.
    """
    return decode_checked(encoded, Lineage, what)


def parse_claim(encoded: bytes, what: str) -> NameClaim:
    """Return the spelling of a name.

    Raises:
        Corrupt: The bytes are not a claim.
    """
    return decode_checked(encoded, NameClaim, what)
