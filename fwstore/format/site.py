"""The object that says what a store is, ``fwstore.json``, and those by which it remembers and retires other sites.

Invariant: a store of a later major format, or one that needs a feature this version lacks, is refused by
name before anything else in it is read.
"""

from __future__ import annotations

from fwstore.base.errors import Corrupt, FwstoreError, Unsupported
from fwstore.format.canonical import (
    Count,
    Stored,
    Text,
    Token,
    Uuid,
    decode_checked,
    encode_checked,
    peek_checked,
)

SITE_BYTES_MAX = 16 * 1024
FORMAT_MAJOR = 1
FORMAT_MINOR = 0
KNOWN_FEATURES: frozenset[str] = frozenset()


class SiteObject(Stored, frozen=True, kw_only=True):
    """One store of a repository.

    Attributes:
        format: Always "fwstore", so that a stranger's JSON is told apart.
        major: Readers of another major version refuse the store.
        minor: The newest version that has written, for people.
        site: Uuid of the site.
        name: Of the site, for people.
        mandatory: Features without which the store must not be read.
        optional: Features that a reader may ignore.
        hash_key: Id of the key of its hashes; None for unkeyed BLAKE3.
        write_id: Tells whose creation it was.
    """

    format: Text
    major: Count
    minor: Count
    site: Uuid
    name: Text
    mandatory: tuple[Text, ...] = ()
    optional: tuple[Text, ...] = ()
    hash_key: Text | None = None
    write_id: Token


class KnownSite(Stored, frozen=True, kw_only=True):
    """What a site remembers of another one that it has met; `time` is for people."""

    name: Text
    site: Uuid
    time: float
    write_id: Token


class RetiredSite(Stored, frozen=True, kw_only=True):
    """The retirement of a site: an operator's act.

    Attributes:
        name: Under which it was known.
        site: Its uuid.
        reason: For people.
        witnesses: The electorate in which it was retired, itself included if it voted: whoever learns of the retirement
            needs a majority of that set too.
        time: For people.
        write_id: Tells whose act it was.
    """

    name: Text
    site: Uuid
    reason: Text
    witnesses: tuple[Uuid, ...]
    time: float
    write_id: Token


def encode_site(site: SiteObject | KnownSite | RetiredSite) -> bytes:
    """Return the stored form of a site."""
    return encode_checked(site)


def parse_retired_site(encoded: bytes, what: str) -> RetiredSite:
    """Return a retirement.

    Raises:
        Corrupt: The bytes are not a retirement.
    """
    return decode_checked(encoded, RetiredSite, what)


def parse_known_site(encoded: bytes, what: str) -> KnownSite:
    """Return what is remembered of a site.

    Raises:
        Corrupt: The bytes are not a known site.
    """
    return decode_checked(encoded, KnownSite, what)


def parse_site(encoded: bytes, what: str) -> SiteObject:
    """Return a site.

    Raises:
        Corrupt: The bytes are not a site object.
        Unsupported: The store is of a later format or needs an unknown feature.
    """
    refusal = _refusal(encoded, what)
    if refusal is not None:
        raise refusal
    site = decode_checked(encoded, SiteObject, what)
    if site.format != "fwstore":
        raise Corrupt(f"{what} is not a store of fwstore")
    return site


def _refusal(encoded: bytes, what: str) -> FwstoreError | None:
    found = peek_checked(encoded)
    major, mandatory = found.get("major"), found.get("mandatory")
    if found.get("format") != "fwstore":
        return None
    if isinstance(major, int) and major != FORMAT_MAJOR:
        return Unsupported(
            f"{what} has format {major}; this version of fwstore reads format {FORMAT_MAJOR}"
        )
    unknown = (
        [str(name) for name in mandatory if name not in KNOWN_FEATURES]
        if isinstance(mandatory, list)
        else []
    )
    if unknown:
        return Unsupported(f"{what} needs {', '.join(unknown)[:200]}: use a newer fwstore")
    return None
