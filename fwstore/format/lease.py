"""What workers beside each other say of what they do: shares in the cap of a link, and work that one does for all.

Invariant: both are advice: lost, damaged or forged, they cost bandwidth and no bytes.
"""

from __future__ import annotations

from fwstore.format.canonical import Count, Stored, Token, decode_checked, encode_checked

LEASE_BYTES_MAX = 1024


class LinkLease(Stored, frozen=True, kw_only=True):
    """The share of one worker.

    Attributes:
        turn: Grows with every renewal, so that a lease that is not renewed is seen.
        cap: Bytes per second of the link, by the topology of the worker.
        share: Bytes per second that the worker takes at most.
        wanted: Bytes per second that it could use; None for all that can be had.
        lasts_ms: For how long after this renewal it may take its share.
        urgent: Somebody waits for these bytes: a job that resumes.
    """

    turn: Count
    cap: Count
    share: Count
    wanted: Count | None
    lasts_ms: Count
    urgent: bool = False


class WorkClaim(Stored, frozen=True, kw_only=True):
    """Somebody fetches an object for the whole site.

    Attributes:
        holder: Tells whose claim it is.
        turn: Grows with every sign of life.
        lasts_ms: After so long without one, the next one takes over.
    """

    holder: Token
    turn: Count
    lasts_ms: Count


def encode_lease(lease: LinkLease | WorkClaim) -> bytes:
    """Return the stored form of a lease or a claim."""
    return encode_checked(lease)


def parse_lease(encoded: bytes, what: str) -> LinkLease:
    """Return a lease.

    Raises:
        Corrupt: The bytes are not a lease.
    """
    return decode_checked(encoded, LinkLease, what)


def parse_work_claim(encoded: bytes, what: str) -> WorkClaim:
    """Return a claim.

    Raises:
        Corrupt: The bytes are not a claim.
    """
    return decode_checked(encoded, WorkClaim, what)
