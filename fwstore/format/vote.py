"""Votes and receipts: the create-once objects by which a term is won.

Invariant: a vote carries the uuid of the lineage and a random write id, so two candidates never write
the same bytes and a vote for another lineage of the same name is seen.
"""

from __future__ import annotations

from fwstore.format.canonical import (
    Count,
    Stored,
    Text,
    Token,
    Uuid,
    decode_checked,
    encode_checked,
)

VOTE_BYTES_MAX = 16 * 1024


class Vote(Stored, frozen=True, kw_only=True):
    """One witness's vote in one term.

    Attributes:
        term: The term voted in.
        lineage: Uuid of the lineage.
        holder: The candidate, for people.
        home: Site whose log the winner will write.
        witnesses: Sites of the electorate that the candidate knows from its topology.
        write_id: The candidate, for the protocol: the same in all its votes of the term.
    """

    term: Count
    lineage: Uuid
    holder: Text
    home: Uuid
    witnesses: tuple[Uuid, ...]
    write_id: Token


class Receipt(Stored, frozen=True, kw_only=True):
    """What the winner of a term is about to open, left at a majority before it does."""

    term: Count
    lineage: Uuid
    home: Uuid
    base: Text | None
    write_id: Token


def encode_vote(vote: Vote | Receipt) -> bytes:
    """Return the stored form of a vote or receipt."""
    return encode_checked(vote)


def parse_vote(encoded: bytes, what: str) -> Vote:
    """Return a vote.

    Raises:
        Corrupt: The bytes are not a vote.
    """
    return decode_checked(encoded, Vote, what)


def parse_receipt(encoded: bytes, what: str) -> Receipt:
    """Return a receipt.

    Raises:
        Corrupt: The bytes are not a receipt.
    """
    return decode_checked(encoded, Receipt, what)
