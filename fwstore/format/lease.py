"""What a worker says of its share in the cap of a link.

Invariant: a lease is advice: lost, damaged or forged, it costs bandwidth and no bytes.
"""

from __future__ import annotations

from fwstore.format.canonical import Count, Stored, decode_checked, encode_checked

LEASE_BYTES_MAX = 1024


class LinkLease(Stored, frozen=True, kw_only=True):
    """The share of one worker.

    Attributes:
        turn: Grows with every renewal, so that a lease that is not renewed is seen.
        cap: Bytes per second of the link, by the topology of the worker.
        share: Bytes per second that the worker takes at most.
        wanted: Bytes per second that it could use; None for all that can be had.
        lasts_ms: For how long after this renewal it may take its share.
    """

    turn: Count
    cap: Count
    share: Count
    wanted: Count | None
    lasts_ms: Count


def encode_lease(lease: LinkLease) -> bytes:
    """Return the stored form of a lease."""
    return encode_checked(lease)


def parse_lease(encoded: bytes, what: str) -> LinkLease:
    """Return a lease.

    Raises:
        Corrupt: The bytes are not a lease.
    """
    return decode_checked(encoded, LinkLease, what)
