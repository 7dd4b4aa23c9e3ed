"""Checking one pack: that it is there, that its footer is the right one, that its bytes are what was written.

Invariant: memory is bounded by `Limits.read_bytes` whatever the size of a pack; a mismatch is read once more
before it is called damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import Corrupt, FwstoreError
from fwstore.care.problems import explain
from fwstore.codec.hashing import xxh3_128
from fwstore.codec.registry import RAW, codec_of_number
from fwstore.content.footers import Pack, fetch_footer
from fwstore.content.verified import Origin
from fwstore.format.blocks import (
    ALIGNMENT,
    BLOCK_BYTES,
    ID_PREFIX_BYTES,
    ChunkHeader,
    Trailer,
    encode_chunk_header,
    encode_header,
    encode_trailer,
)
from fwstore.format.footer import Footer, parse_footer
from fwstore.plan.coalesce import Request, plan_coalesce
from fwstore.sched import Budget

Level = Literal["quick", "sample", "data"]

_MIX = np.uint64(0x9E3779B97F4A7C15)
_HEADER, _TAIL = -1, -2


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with a pack.

    Attributes:
        message: What, and what to do.
        code: The code of the error that a reader gets.
        chunks: The chunks that cannot be read, ascending; None for all of them.
    """

    message: str
    code: str
    chunks: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class PackFindings:
    """What the check of one pack found.

    Attributes:
        damage: What is wrong.
        chunks: Chunks that were read.
        bytes_read: Bytes that were read.
    """

    damage: tuple[Damage, ...]
    chunks: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of a pack that is checked by itself: a chunk by its number, the header, or the end."""

    start: int
    length: int
    chunk: int


@dataclass(frozen=True, slots=True)
class _Open:
    """A pack whose footer was read."""

    pack: Pack
    footer: Footer


class PackChecker:
    """Checks packs of the nearest store.

    Args:
        origin: Where they are; only its first store is asked.
        level: "quick" reads footers, "sample" also some chunks, "data" every byte.
        share: Share of the chunks that "sample" reads, 0 to 1; of every pack at least one is.
        seed: Chooses which ones.
    """

    def __init__(self, origin: Origin, level: Level, share: float, seed: int) -> None:
        self._origin = replace(origin, stores=origin.stores[:1])
        self._store = origin.stores[0]
        self._level = level
        self._share = share
        self._seed = np.uint64(seed)
        self._budget = Budget(origin.runtime.limits.read_bytes)

    def check(self, pack: Pack) -> PackFindings:
        """Return what is wrong with a pack; raises nothing that the pack could be blamed for."""
        try:
            size = self._store.head(pack.key).size
        except FwstoreError as error:
            return PackFindings((Damage(*explain(error, pack.key, self._store.url), None),))
        damage = [] if size == pack.info.size else [self._resized(pack, size)]
        try:
            footer = fetch_footer(self._origin, pack, parse_footer)
        except FwstoreError as error:
            # All of it is lost; that its size differs as well says nothing more.
            return PackFindings((Damage(*explain(error, pack.key, self._store.url), None),))
        findings = self._check_spans(_Open(pack, footer), self._spans(footer, pack))
        read = findings.bytes_read + pack.info.footer_length
        return PackFindings((*damage, *findings.damage), findings.chunks, read)

    def _resized(self, pack: Pack, size: int) -> Damage:
        # What cannot be read for it shows at the footer and at the chunks.
        return Damage(
            f"{pack.key} in {self._store.url} has {size} bytes, not {pack.info.size}: restore it from "
            "another copy",
            Corrupt.code,
            (),
        )

    def _spans(self, footer: Footer, pack: Pack) -> list[_Span]:
        if self._level == "quick":
            return []
        stored = footer.stored_lengths.astype(np.int64)
        whole = self._level == "data"
        numbers = np.arange(len(footer)) if whole else self._sample(footer)
        # The zeros up to the next chunk are of no use to readers; only a check of every byte reads them.
        padding = -stored % ALIGNMENT if whole else np.zeros_like(stored)
        lengths = BLOCK_BYTES + stored + padding
        starts = footer.offsets.astype(np.int64) - BLOCK_BYTES
        spans = [
            _Span(start, length, number)
            for start, length, number in zip(
                starts[numbers].tolist(), lengths[numbers].tolist(), numbers.tolist(), strict=True
            )
        ]
        if whole:
            tail = pack.info.size - BLOCK_BYTES
            spans += [_Span(0, BLOCK_BYTES, _HEADER), _Span(tail, BLOCK_BYTES, _TAIL)]
        return spans

    def _sample(self, footer: Footer) -> npt.NDArray[np.intp]:
        """Return the chunks whose ids fall into the sample: the same for the same seed."""
        if not len(footer):
            return np.empty(0, np.intp)
        words = np.ascontiguousarray(footer.ids[:, :8]).view("<u8").reshape(-1)
        mixed = (words ^ self._seed) * _MIX
        chosen = mixed.astype(np.float64) < self._share * 2.0**64
        chosen[int(np.argmin(mixed))] = True
        return np.flatnonzero(chosen)

    def _check_spans(self, opened: _Open, spans: Sequence[_Span]) -> PackFindings:
        limits = self._origin.runtime.limits
        requests = plan_coalesce(
            [(span.start, span.length) for span in spans],
            gap_bytes=0 if self._level == "data" else limits.read_gap_bytes,
            request_bytes=limits.read_request_bytes,
        )
        found = self._origin.runtime.scheduler.map(
            lambda request: self._check_request(
                opened, request, [spans[index] for index in request.indices]
            ),
            requests,
        )
        bad = [failure for failures in found for failure in failures]
        return PackFindings(
            tuple(_damage_of(opened.pack, bad)),
            sum(span.chunk >= 0 for span in spans),
            sum(request.length for request in requests),
        )

    def _check_request(
        self, opened: _Open, request: Request, spans: Sequence[_Span]
    ) -> list[tuple[_Span, FwstoreError]]:
        decoded = max((self._decoded_bytes(opened.footer, span) for span in spans), default=0)
        with self._budget.reserve(request.length + decoded):
            try:
                read = memoryview(
                    self._store.get_range(opened.pack.key, request.offset, request.length)
                )
            except Corrupt:
                # The pack ends early: what of it is there is found part by part.
                read = memoryview(b"")
            except FwstoreError as error:
                return [(span, error) for span in spans]
            flaws = [
                (span, self._flaw_twice(opened, span, read[span.start - request.offset :]))
                for span in spans
            ]
        return [(span, flaw) for span, flaw in flaws if flaw is not None]

    def _flaw_twice(self, opened: _Open, span: _Span, read: memoryview) -> FwstoreError | None:
        """Return what is wrong with a part, read once more: a bad answer is likelier than a bad object."""
        if self._flaw(opened, span, read[: span.length]) is None:
            return None
        try:
            again = self._store.get_range(opened.pack.key, span.start, span.length)
        except FwstoreError as error:
            return error
        return self._flaw(opened, span, memoryview(again))

    def _flaw(self, opened: _Open, span: _Span, read: memoryview) -> FwstoreError | None:
        try:
            if span.chunk >= 0:
                self._check_chunk(opened.footer, span.chunk, read)
            elif read != _expected_block(opened, span):
                return Corrupt("its bytes are not those that were written")
        except FwstoreError as error:
            return error
        return None

    def _check_chunk(self, footer: Footer, number: int, read: memoryview) -> None:
        header = _header_of(footer, number)
        end = BLOCK_BYTES + header.stored_length
        stored = read[BLOCK_BYTES:end]
        if read[:BLOCK_BYTES] != encode_chunk_header(header):
            raise Corrupt("its header is not the one that was written")
        if xxh3_128(stored) != header.digest:
            raise Corrupt("its stored bytes are not those that were written")
        raw = codec_of_number(header.codec).decode(stored, header.raw_length)
        if self._origin.content_hash.digest(raw) != footer.ids[number].tobytes():
            raise Corrupt("it does not decode to the bytes that were saved")
        if any(read[end:]):
            raise Corrupt("the bytes after it are not zeros")

    def _decoded_bytes(self, footer: Footer, span: _Span) -> int:
        encoded = span.chunk >= 0 and int(footer.codecs[span.chunk]) != RAW.number
        return int(footer.raw_lengths[span.chunk]) if encoded else 0


def _header_of(footer: Footer, number: int) -> ChunkHeader:
    return ChunkHeader(
        int(footer.codecs[number]),
        int(footer.raw_lengths[number]),
        int(footer.stored_lengths[number]),
        footer.digests[number].tobytes(),
        footer.ids[number].tobytes()[:ID_PREFIX_BYTES],
    )


def _expected_block(opened: _Open, span: _Span) -> bytes:
    """Return what must stand at the beginning or at the end of a pack."""
    info = opened.pack.info
    if span.chunk == _HEADER:
        return encode_header(opened.footer.identity)
    return encode_trailer(
        Trailer(info.footer_offset, info.footer_length, info.footer_digest, info.chunks)
    )


def _damage_of(pack: Pack, failures: Sequence[tuple[_Span, FwstoreError]]) -> list[Damage]:
    """Return one damage per kind of error for the chunks, and one per block."""
    damage = []
    codes = dict.fromkeys(error.code for span, error in failures if span.chunk >= 0)
    for code in codes:
        bad = [(s.chunk, e) for s, e in failures if s.chunk >= 0 and e.code == code]
        number, error = bad[0]
        chunk = f"chunk {number} of {pack.key}: {error}"
        others = f", and {len(bad) - 1} more chunks of it are damaged" if len(bad) > 1 else ""
        damage.append(
            Damage(
                f"{chunk}{others}; restore the pack from another copy",
                code,
                tuple(sorted(chunk for chunk, _ in bad)),
            )
        )
    for span, error in failures:
        if span.chunk < 0:
            block = "header" if span.chunk == _HEADER else "trailer"
            damage.append(
                Damage(
                    f"the {block} of {pack.key}: {error}; no load needs it, but restore the pack from another copy",
                    error.code,
                    (),
                )
            )
    return damage
