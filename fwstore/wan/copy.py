"""Copying packs from other sites into the store of this one.

Invariant: what becomes visible under the key of a pack is, byte for byte, what its pack table proves; it appears whole
or not at all. After a crash at most `Limits.part_bytes` of every pack under way are fetched again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import numpy as np

from fwstore.base.errors import (
    Corrupt,
    FwstoreError,
    InternalError,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from fwstore.codec.hashing import ContentHash
from fwstore.format.blocks import BLOCK_BYTES
from fwstore.format.keys import staged_part
from fwstore.format.packtable import PackInfo
from fwstore.sched import Budget, Event, Runtime
from fwstore.store.base import ReadInto, Store, Upload
from fwstore.wan.pieces import PARTS_AT_ONCE, PackShape, Part, Piece, shape_of

Throttle = Callable[[int], None]
Lock = AbstractContextManager[object]
T = TypeVar("T")

# What one source may answer without the others being asked in vain.
ELSEWHERE = (NotFound, Corrupt, Unavailable, PermissionDenied)
# So long a source that was silent is asked after the others.
SILENT_S = 60.0


def unthrottled(size_bytes: int) -> None:
    """Wait for nothing."""


def _unprepared() -> None:
    """Nothing of worth stands where the copy goes."""


def unwatched() -> None:
    """Nobody waits for a sign of life."""


@dataclass(frozen=True, slots=True)
class Supply:
    """A site to copy from.

    Attributes:
        name: For people.
        store: Its store, which is only read.
        throttle: Called with their number before bytes are asked for; returns when they may be.
        remote: What it gives crosses a link, and counts as received.
    """

    name: str
    store: Store
    throttle: Throttle = unthrottled
    remote: bool = True


@dataclass(frozen=True, slots=True)
class PackCopy:
    """A pack to be copied.

    Attributes:
        key: Its key here.
        info: What its pack table says of it.
        supplies: Who has it, and under which key; the nearest first.
        before: Called when every byte is proven, before the copy takes the place of what stands there; what it raises
            keeps the copy away.
        alive: Called whenever the copy gets on, also while it verifies what is here; what it raises ends the copy.
    """

    key: str
    info: PackInfo
    supplies: tuple[tuple[Supply, str], ...]
    before: Callable[[], None] = _unprepared
    alive: Callable[[], None] = unwatched


@dataclass
class CopyTally:
    """What was copied.

    Attributes:
        packs: Packs that came whole or in part from elsewhere.
        packs_found: Packs that were here, and were read again because no record proves them.
        bytes_received: Bytes asked of supplies, repeated ones included.
        bytes_found: Bytes that an earlier attempt had brought.
        sources: Names of the supplies that gave something of them.
    """

    packs: int = 0
    packs_found: int = 0
    bytes_received: int = 0
    bytes_found: int = 0
    sources: set[str] = field(default_factory=set)

    def add(self, other: CopyTally) -> None:
        """Take in the counts of another copy."""
        self.packs += other.packs
        self.packs_found += other.packs_found
        self.bytes_received += other.bytes_received
        self.bytes_found += other.bytes_found
        self.sources |= other.sources


class _Job:
    """One pack under way, whose pieces several threads fetch."""

    def __init__(self, copy: PackCopy, supplies: Sequence[tuple[Supply, str]], lock: Lock) -> None:
        self.copy = copy
        self.tally = CopyTally()
        self._supplies = list(supplies)
        self._lock = lock

    def supplies(self) -> list[tuple[Supply, str]]:
        """Return who is asked, in this order."""
        with self._lock:
            return list(self._supplies)

    def put_last(self, source: tuple[Supply, str]) -> None:
        """Ask a supply last from now on."""
        with self._lock:
            self._supplies.remove(source)
            self._supplies.append(source)

    def expect(self, supply: Supply, size_bytes: int) -> None:
        """Wait until bytes may be asked for, and count them."""
        supply.throttle(size_bytes)
        self.copy.alive()
        with self._lock:
            self.tally.bytes_received += size_bytes if supply.remote else 0

    def thank(self, supply: Supply) -> None:
        """Take note that a supply gave what was right."""
        with self._lock:
            self.tally.sources.add(supply.name)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """The bytes of a part, and whether they were staged here before."""

    content: memoryview
    staged: bool


@dataclass(frozen=True, slots=True)
class _Turn:
    """A part that holds memory; it is written when the one before it is over, and is over itself then."""

    part: Part
    before: Event
    over: Event


@dataclass
class _Progress:
    """How far a pack is.

    Attributes:
        staged: All parts that were looked for so far stood here from an earlier attempt.
        failed: Nothing is written any more.
    """

    staged: bool
    failed: bool = False


class Copier:
    """Copies packs to one store; safe in threads.

    Args:
        store: Where they go.
        runtime: Threads and limits.
        content_hash: The hash that proves footers.

    Attributes:
        packs_at_once: So many may be under way together.
    """

    def __init__(self, store: Store, runtime: Runtime, content_hash: ContentHash) -> None:
        self._store = store
        self._runtime = runtime
        self._hash = content_hash
        limits = runtime.limits
        self._budget = Budget(limits.inflight_bytes)
        self._silent_until_s: dict[str, float] = {}
        # As many as memory lets work: who waits for memory with a thread in hand keeps it from the others.
        self.packs_at_once = max(1, limits.inflight_bytes // limits.part_bytes)

    def copy(
        self, packs: Sequence[PackCopy], done: Callable[[str], None] = lambda _: None
    ) -> CopyTally:
        """Copy packs; those that are here already are read and verified instead.

        Args:
            packs: Which.
            done: Called with the key of each that is here and verified, also when others fail.

        Raises:
            NotFound: No supply has a pack; the first said so.
            Corrupt: No supply has the bytes that were written; pack, chunk and site are named.
            Unavailable: The nearest supply does not answer, nor has another the pack; or the own store does not.
        """
        total = CopyTally()
        scheduler = self._runtime.scheduler

        def copy_one(copy: PackCopy) -> CopyTally:
            tally = self._copy_one(copy)
            done(copy.key)
            return tally

        for tally in scheduler.map(copy_one, packs, limit=self.packs_at_once):
            total.add(tally)
        return total

    def _copy_one(self, copy: PackCopy) -> CopyTally:
        here = self._find_whole(copy)
        if here is not None:
            self._drop_staged(copy, here)
            return CopyTally(packs_found=1, bytes_found=copy.info.size)
        job = self._job(copy, copy.supplies)
        shape = self._shape(job)
        parts = shape.parts(self._runtime.limits)
        upload = self._store.upload(copy.key)
        try:
            upload.write([shape.head])
            self._write_parts(job, shape, parts, upload)
            upload.write([shape.tail])
            copy.before()
            upload.commit()
        except BaseException:
            upload.abort()
            raise
        self._drop_staged(copy, parts)
        job.tally.packs = 1
        return job.tally

    def _write_parts(
        self, job: _Job, shape: PackShape, parts: Sequence[Part], upload: Upload
    ) -> None:
        """Write the parts of a pack in order; some are on their way together, as far as memory allows."""
        part_bytes = self._runtime.limits.part_bytes
        kept = _kept(parts, part_bytes)
        progress = _Progress(staged=bool(kept))
        # Whatever is not staged yet is sent again after a crash.
        unstaged = Budget(part_bytes)
        # What is written stands in nobody's way: the next part is asked for as soon as one is here.
        arriving = Budget(PARTS_AT_ONCE // 2)

        def bring(turn: _Turn) -> None:
            try:
                with arriving.reserve(1):
                    arrived = self._arrive(job, shape, turn.part, staged=progress.staged)
                # Parts are staged in order, so behind the first that is not there none is.
                progress.staged = progress.staged and arrived.staged
                turn.before.wait()
                if not progress.failed:
                    self._put(job.copy, turn.part, arrived, upload, keep=turn.part in kept)
            except BaseException:
                progress.failed = True
                raise
            finally:
                turn.over.set()
                self._budget.release(turn.part.length)
                unstaged.release(turn.part.length)

        turns = self._turns(parts, unstaged)
        self._runtime.scheduler.map(bring, turns, limit=PARTS_AT_ONCE)

    def _turns(self, parts: Sequence[Part], unstaged: Budget) -> Iterator[_Turn]:
        """Yield the parts of a pack in order, each once there is memory for it."""
        before = self._runtime.scheduler.event()
        before.set()
        for part in parts:
            unstaged.acquire(part.length)
            self._budget.acquire(part.length)
            turn = _Turn(part, before, self._runtime.scheduler.event())
            yield turn
            before = turn.over

    def _arrive(self, job: _Job, shape: PackShape, part: Part, *, staged: bool) -> _Arrived:
        """Return the bytes of a part, verified: those that an earlier attempt has staged, else those of a source."""
        found = self._staged(job, shape, part) if staged else None
        if found is not None:
            return _Arrived(found, staged=True)
        return _Arrived(self._fetch(job, shape, part), staged=False)

    def _put(
        self, copy: PackCopy, part: Part, arrived: _Arrived, upload: Upload, *, keep: bool
    ) -> None:
        """Write a part, and keep it for whoever goes on if this process dies."""
        if keep and not arrived.staged:
            self._stage(copy, part, arrived.content)
        upload.write([arrived.content])

    def _find_whole(self, copy: PackCopy) -> list[Part] | None:
        """Return the parts of a pack that is here: somebody brought it who died before a record said so."""
        info = copy.info
        try:
            if self._store.head(copy.key).size != info.size:
                return None
            end = self._store.get_range(
                copy.key, info.footer_offset, info.footer_length + BLOCK_BYTES
            )
            shape = shape_of(info, end, self._hash)
            if self._store.get_range(copy.key, 0, BLOCK_BYTES) != shape.head:
                return None
            parts = shape.parts(self._runtime.limits)
            job = self._job(copy, [(Supply("here", self._store, remote=False), copy.key)])
            for part in parts:
                with self._budget.reserve(part.length):
                    self._fetch(job, shape, part)
        except (NotFound, Corrupt):
            return None
        return parts

    def _job(self, copy: PackCopy, supplies: Sequence[tuple[Supply, str]]) -> _Job:
        # Or every pack would wait for a site that does not answer.
        now_s = self._runtime.clock.monotonic()
        ordered = sorted(
            supplies, key=lambda source: now_s < self._silent_until_s.get(source[0].name, now_s)
        )
        return _Job(copy, ordered, self._runtime.scheduler.lock())

    def _shape(self, job: _Job) -> PackShape:
        info = job.copy.info
        length = info.footer_length + BLOCK_BYTES

        def read(supply: Supply, key: str) -> PackShape:
            end = supply.store.get_range(key, info.footer_offset, length)
            return shape_of(info, end, self._hash)

        return self._from_any(job, length, read)

    def _fetch(self, job: _Job, shape: PackShape, part: Part) -> memoryview:
        """Return the bytes of a part, verified."""
        content = np.empty(part.length, np.uint8).data

        def read(piece: Piece) -> None:
            start = piece.offset - part.offset
            target = content[start : start + piece.length]

            def from_one(supply: Supply, key: str) -> None:
                supply.store.read_into(key, [ReadInto(piece.offset, [target])])
                shape.check(piece, target)

            self._from_any(job, piece.length, from_one)

        self._runtime.scheduler.map(read, part.pieces)
        return content

    def _from_any(self, job: _Job, size_bytes: int, read: Callable[[Supply, str], T]) -> T:
        """Return what the first supply gives that can; wrong bytes are asked for twice."""
        failure: FwstoreError | None = None
        for source in job.supplies():
            supply, key = source
            for attempt in range(2):
                # Outside of the try: what fails here is not the source but the own store, which keeps the leases.
                job.expect(supply, size_bytes)
                try:
                    found = read(supply, key)
                    job.thank(supply)
                    return found
                except ELSEWHERE as error:
                    failure = failure or _told(error, supply, key)
                    if isinstance(error, Unavailable):
                        self._was_silent(supply)
                    if attempt or not isinstance(error, Corrupt):
                        break
            job.put_last(source)
        raise failure or InternalError(f"{job.copy.key} has no supply")

    def _was_silent(self, supply: Supply) -> None:
        self._silent_until_s[supply.name] = self._runtime.clock.monotonic() + SILENT_S

    def _staged(self, job: _Job, shape: PackShape, part: Part) -> memoryview | None:
        """Return a part that an earlier attempt brought, verified again, or None."""
        try:
            stored = self._store.get(
                staged_part(job.copy.key, part.offset, part.length), limit_bytes=part.length
            )
            content = memoryview(stored)
            for piece in part.pieces:
                start = piece.offset - part.offset
                shape.check(piece, content[start : start + piece.length])
        except (NotFound, Corrupt, LimitExceeded):
            return None
        job.tally.bytes_found += part.length
        return content

    def _stage(self, copy: PackCopy, part: Part, content: memoryview) -> None:
        key = staged_part(copy.key, part.offset, part.length)
        self._store.put(key, [content], mode="overwrite")

    def _drop_staged(self, copy: PackCopy, parts: Sequence[Part]) -> None:
        kept = _kept(parts, self._runtime.limits.part_bytes)
        if kept:
            # What cannot be deleted now goes with the next collection.
            with suppress(FwstoreError):
                self._store.delete(
                    [staged_part(copy.key, part.offset, part.length) for part in kept]
                )


def _kept(parts: Sequence[Part], part_bytes: int) -> Sequence[Part]:
    """Return the parts of a pack that are staged: those at its end are sent again as cheaply as any others."""
    lengths = accumulate(part.length for part in reversed(parts))
    return parts[: len(parts) - sum(length <= part_bytes for length in lengths)]


def _told(error: FwstoreError, supply: Supply, key: str) -> FwstoreError:
    """Return an error that names the site and the pack."""
    return type(error)(f"{key} at {supply.name}: {error}")
