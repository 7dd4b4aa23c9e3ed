"""What workers beside each other say of what they do: shares in the cap of a link, and work that one does for all.

Invariant: both are advice: lost, damaged or forged, they cost bandwidth and no bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fwstore.base.errors import Corrupt
from fwstore.format.canonical import Count, Stored, Token, decode_checked, encode_checked

CLAIM_BYTES_MAX = 1024
_NUMBER = r"(0|[1-9][0-9]{0,18})"
_LEASE = re.compile(
    rf"([0-9a-z]{{1,64}})-([0-9]{{12}})-{_NUMBER}-{_NUMBER}-({_NUMBER}|all)-{_NUMBER}-(urgent|patient)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLease:
    """The share of one worker.

    Attributes:
        worker: Whose it is.
        turn: Grows with every renewal, so that a lease that is not renewed is seen.
        cap: Bytes per second of the link, by the topology of the worker.
        share: Bytes per second that the worker takes at most.
        wanted: Bytes per second that it could use; None for all that can be had.
        lasts_ms: For how long after this renewal it may take its share.
        urgent: Somebody waits for these bytes: a job that resumes.
    """

    worker: str
    turn: int
    cap: int
    share: int
    wanted: int | None
    lasts_ms: int
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


def lease_name(lease: LinkLease) -> str:
    """Return the last part of the key of a lease: it says everything, so that one listing reads all leases."""
    wanted = "all" if lease.wanted is None else lease.wanted
    urgent = "urgent" if lease.urgent else "patient"
    return f"{lease.worker}-{lease.turn:012d}-{lease.cap}-{lease.share}-{wanted}-{lease.lasts_ms}-{urgent}"


def parse_lease_name(name: str) -> LinkLease:
    """Return a lease.

    Raises:
        Corrupt: The name is not that of a lease.
    """
    found = _LEASE.fullmatch(name)
    if found is None:
        raise Corrupt(f"{name} is not the name of a lease")
    worker, turn, cap, share, wanted, _, lasts_ms, urgent = found.groups()
    return LinkLease(
        worker=worker,
        turn=int(turn),
        cap=int(cap),
        share=int(share),
        wanted=None if wanted == "all" else int(wanted),
        lasts_ms=int(lasts_ms),
        urgent=urgent == "urgent",
    )


def encode_claim(claim: WorkClaim) -> bytes:
    """Return the stored form of a claim."""
    return encode_checked(claim)


def parse_work_claim(encoded: bytes, what: str) -> WorkClaim:
    """Return a claim.

    Raises:
        Corrupt: The bytes are not a claim.
    """
    return decode_checked(encoded, WorkClaim, what)
