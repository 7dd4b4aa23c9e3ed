"""What a rank sends to the leader of a save, and the parts of all ranks by the site at which they wrote.

Invariant: packs are at the site that their part names; the empty name is the home of the job.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fwstore.base.errors import Corrupt
from fwstore.content.contribution import Contribution
from fwstore.content.gather import Gathering

HOME = ""

BySite = dict[str, list[Contribution]]


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Contributions of the state and of its reserved tensors; `site` is the uuid of another site than home."""

    step: int
    contributions: Sequence[bytes]
    site: str = HOME


encode_part = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Part).decode


def parse_part(message: bytes) -> Part:
    """Return the part that a rank sent.

    Raises:
        Corrupt: The message is malformed.
    """
    try:
        return _decode(message)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a rank sent a malformed contribution: {error}") from error


class Parts:
    """Takes the parts of a save; those that arrived are parsed while others are on their way."""

    def __init__(self) -> None:
        self._sites: dict[str, Gathering] = {HOME: Gathering()}

    def add(self, part: Part) -> None:
        """Take the part of one rank.

        Raises:
            Corrupt: It, or one that came before, is malformed.
            Unsupported: It comes from another version of fwstore.
        """
        gathering = self._sites.setdefault(part.site, Gathering())
        for contribution in part.contributions:
            gathering.add(contribution)

    def finish(self) -> BySite:
        """Return what all ranks brought, by site.

        Raises:
            Corrupt: A contribution is malformed.
            Unsupported: It comes from another version of fwstore.
        """
        return {site: gathering.finish() for site, gathering in self._sites.items()}
