"""Loading a checkpoint whose bytes are not all here yet: what is missing is brought, kept, and read here.

A `ThroughStore` stands in front of the store of the site. What is here is read here. The first reader of a
missing object has the whole of it copied from the nearest site that has it, once for all readers of the site, by the
same steps as replication: intent, copy, verify. When the last pack has come, the checkpoint is published.

Invariant: nothing is read that was not verified by whoever copied it or by whoever reads it, and what is written here
is what replication would write; so a reader that dies anywhere leaves what the next one, or a replicator, goes on
with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import takewhile
from typing import TypeVar

from fwstore.base.errors import (
    Conflict,
    FwstoreError,
    LimitExceeded,
    NotFound,
    PermissionDenied,
)
from fwstore.base.notices import tell
from fwstore.base.units import MIB
from fwstore.content.cache import SharedCache
from fwstore.sched import Lock, Runtime
from fwstore.store.base import ObjectInfo, ReadInto, Store
from fwstore.wan.around import StoreAround
from fwstore.wan.copy import PackCopy, Supply
from fwstore.wan.once import Alive, Errand, OncePerSite
from fwstore.wan.pull import Offer, Prepared, Puller

T = TypeVar("T")

_PREPARED_BYTES = 256 * MIB
# With a thousand packs; one that is forgotten is read and planned again.
_PREPARED_ONE_BYTES = MIB
_ASK_AGAIN_S = 30.0
# So long a publish goes on after close; less than the scheduler waits for it.
_CLOSING_S = 20.0
# What keeps an object from being written here, but not from being read elsewhere.
_NOT_HERE = (Conflict, LimitExceeded, NotFound, PermissionDenied)


class _NothingToBring(NotFound):
    """A snapshot that no other site offers, or that has come."""


class _Closed(Exception):
    """Nobody waits any more for what is being published; never seen outside of this module."""


class Bringer:
    """Brings what readers of one lineage miss here.

    Args:
        puller: Copies to the store of this site.
        offers: Who has a snapshot, the nearest first.
        once: What several processes of the site want is brought once.
        runtime: Threads.
    """

    def __init__(
        self,
        puller: Puller,
        offers: Callable[[str], Sequence[Offer]],
        once: OncePerSite,
        runtime: Runtime,
    ) -> None:
        self._puller = puller
        self._offers = offers
        self._once = once
        self._runtime = runtime
        self._prepared: SharedCache[str, Prepared] = SharedCache(_PREPARED_BYTES)
        self._refused: dict[str, float] = {}
        self._lock = Lock()
        self._begun: dict[str, None] = {}
        self._awaited: dict[str, dict[str, None]] = {}
        self._until_s = math.inf

    def saw(self, key: str) -> None:
        """Take note of what is read: packs belong to snapshots whose manifests were read before."""
        snapshot = self._puller.log.keys.snapshot_of(key)
        if snapshot is not None and snapshot not in self._begun:
            with self._lock:
                self._begun[snapshot] = None

    def bring(self, key: str) -> str | None:
        """Bring an object here; return its key here, or None where it cannot be brought.

        Raises:
            Corrupt: No site has the bytes that were written.
            Unavailable: No site that has it answers, or the own store does not.
        """
        manifest = self._puller.log.keys.snapshot_of(key)
        for snapshot in reversed(tuple(self._begun)) if manifest is None else (manifest,):
            try:
                prepared = self._prepare(snapshot)
                if prepared is None:
                    continue
                if manifest is not None:
                    return self._bring_manifest(prepared, snapshot, key)
                if key in prepared.packs:
                    return self._bring_pack(prepared, snapshot, key)
            except _NOT_HERE as error:
                self._refuse(snapshot)
                tell(f"{snapshot} is read from another site and not kept here: {error.message}")
        return None

    def close(self) -> None:
        """Let what is being published come to an end; a replicator does what is left of it."""
        self._until_s = self._runtime.clock.monotonic() + _CLOSING_S

    def _bring_manifest(self, prepared: Prepared, snapshot: str, key: str) -> str:
        root = self._puller.log.keys.root(snapshot)

        def work(alive: Alive) -> None:
            supply = _watched(prepared.offer.supply, alive)
            offer = replace(prepared.offer, supply=supply)
            self._puller.write_manifest(replace(prepared, offer=offer))

        self._once.see_to(Errand(root, lambda: self._size(root) is not None, work))
        return key

    def _bring_pack(self, prepared: Prepared, snapshot: str, key: str) -> str:
        copy = prepared.packs[key]
        if self._once.see_to(self._errand(copy)):
            self._look_for_the_rest(snapshot)
        return copy.key

    def _prepare(self, snapshot: str) -> Prepared | None:
        def make() -> Prepared:
            offers = self._offers(snapshot)
            prepared = self._puller.prepare(offers) if offers else None
            if prepared is None:
                raise _NothingToBring(f"nobody offers {snapshot}, or it is here meanwhile")
            with self._lock:
                self._awaited[snapshot] = {copy.key: None for copy in prepared.packs.values()}
            return prepared

        if self._runtime.clock.monotonic() < self._refused.get(snapshot, 0.0):
            return None
        try:
            return self._prepared.get(snapshot, _PREPARED_ONE_BYTES, make)
        except _NothingToBring:
            self._refuse(snapshot)
        return None

    def _refuse(self, snapshot: str) -> None:
        """Do not try again with every read: a load has many."""
        self._refused[snapshot] = self._runtime.clock.monotonic() + _ASK_AGAIN_S

    def _errand(self, copy: PackCopy) -> Errand:
        def work(alive: Alive) -> None:
            self._puller.copy([replace(copy, alive=alive)])

        return Errand(copy.key, lambda: self._size(copy.key) == copy.info.size, work)

    def _size(self, key: str) -> int | None:
        try:
            return self._puller.log.store.head(key).size
        except NotFound:
            return None

    def _look_for_the_rest(self, snapshot: str) -> None:
        """Publish a snapshot when all of it has come; whoever brings the last of it notices."""
        with self._lock:
            awaited = tuple(self._awaited.get(snapshot, ()))
        here = list(takewhile(lambda key: self._size(key) is not None, reversed(awaited)))
        with self._lock:
            left = self._awaited.get(snapshot, {})
            # Another thread may have seen the same: only one of them takes the last away.
            last = bool(left)
            for key in here:
                left.pop(key, None)
            last = last and not left
        if last:
            publishing = self._runtime.scheduler.spawn("publish", self._publish, snapshot)
            publishing.add_done_callback(lambda done: self._tell_of(snapshot, done))

    def _publish(self, snapshot: str) -> None:
        log = self._puller.log

        def is_here() -> bool:
            self._end_if_closed()
            return log.refresh().is_complete(snapshot)

        def work(alive: Alive) -> None:
            def get_on() -> None:
                self._end_if_closed()
                alive()

            self._puller.pull(self._offers(snapshot), get_on)

        self._once.see_to(Errand(f"{log.keys.snapshot(snapshot)}publish", is_here, work))

    def _end_if_closed(self) -> None:
        if self._runtime.clock.monotonic() > self._until_s:
            raise _Closed("the repository was closed meanwhile")

    def _tell_of(self, snapshot: str, publishing: Future[None]) -> None:
        error = publishing.exception()
        if error is not None:
            # It was loaded all the same; a replicator publishes what is here, without copying it again.
            expected = isinstance(error, FwstoreError | _Closed)
            why = str(error) if expected else repr(error)
            tell(f"{snapshot} of {self._puller.log.keys.label} is not published yet: {why}")


def _watched(supply: Supply, alive: Alive) -> Supply:
    """Return a supply that shows a sign of life with every request."""

    def throttle(size_bytes: int) -> None:
        alive()
        supply.throttle(size_bytes)
        alive()

    return replace(supply, throttle=throttle)


class ThroughStore(StoreAround):
    """The store of this site, in which nothing is missing that another site has.

    Args:
        store: Of this site.
        bringer: Brings what is missing.
    """

    def __init__(self, store: Store, bringer: Bringer) -> None:
        super().__init__(store)
        self._bringer = bringer

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object."""
        return self._read(key, lambda here: self._store.get(here, limit_bytes=limit_bytes))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; a negative offset counts from the end."""
        return self._read(key, lambda here: self._store.get_range(here, offset, length))

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        """Fill caller's buffers from several ranges of one object."""
        self._read(key, lambda here: self._store.read_into(here, reads))

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        return self._read(key, self._store.head)

    def close(self) -> None:
        """End what goes on behind the readers; the store belongs to the repository."""
        self._bringer.close()

    def _read(self, key: str, read: Callable[[str], T]) -> T:
        self._bringer.saw(key)
        try:
            return read(key)
        except NotFound:
            here = self._bringer.bring(key)
            if here is None:
                raise
        return read(here)
