"""What a site has read of another's log, kept where the next worker finds it.

Invariant: it names the digest of the newest slot that was read, so a log that was set back or exchanged is noticed
when the next one looks. It is derived: lost, it is made again from the log.
"""

from __future__ import annotations

from fwstore.format.canonical import Count, Digest, Stored, Text, Uuid
from fwstore.format.sealed import seal, unseal
from fwstore.format.summary import FoldState

_RAW_BYTES_MAX = 256 << 20
HEARD_BYTES_MAX = _RAW_BYTES_MAX


class Heard(Stored, frozen=True, kw_only=True):
    """How far a log was read.

    Attributes:
        lineage: Uuid of the lineage.
        site: Uuid of the site whose log it is.
        name: Its name, for people.
        seq: The newest slot that was read.
        record: Digest of the record there.
        time: When, for people.
        state: The fold of the slots up to it.
    """

    lineage: Uuid
    site: Uuid
    name: Text
    seq: Count
    record: Digest
    time: float
    state: FoldState


def encode_heard(heard: Heard) -> bytes:
    """Return the stored form.

    Raises:
        LimitExceeded: The state is larger than may be kept.
    """
    return seal(heard, "hear", _RAW_BYTES_MAX)


def parse_heard(stored: bytes) -> Heard:
    """Return what was heard.

    Raises:
        Corrupt: The bytes are not what was written.
        Unsupported: They are of a later version.
    """
    return unseal(stored, Heard, "hear", _RAW_BYTES_MAX)
