"""The cap of a link, held by all workers of it together.

Each worker says in a lease in the store of the destination what it wants and what it takes, and reads the
leases of the others: all of it stands in their names, so that one listing tells, however many there are. From what it reads it works out everybody's fair share, and takes its own as far as the
shares that others still hold leave room for it: whoever has to give way does so first.

Invariant: a share grows only after its holder read the leases of the others with its own wish among them, and
never beyond what they leave of the lowest cap that any of them knows; a worker that could not renew its lease
for as long as it lasts takes nothing more. Only who may not write here and is waited for goes on unseen. A clock measures one's own waiting, never another's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fwstore.base.errors import Corrupt, LimitExceeded, PermissionDenied, Unavailable
from fwstore.format.keys import link_lease, link_leases
from fwstore.format.lease import LinkLease, lease_name, parse_lease_name
from fwstore.plan.shares import share_out
from fwstore.sched import Lock, Runtime, renew_after_fork
from fwstore.store.base import Store
from fwstore.wan.pace import Pace

RENEW_S = 1.0
LASTS_S = 3.0
# Between saying what is wanted and taking it, so that two who begin at once see each other.
SETTLE_S = 0.25
# Who did not renew for so long is taken out of the store.
_FORGET_S = 60.0
# What an idle worker keeps, so that it need not wait before it can say that it wants more.
_LEAST = 0.01
# A worker that does not use its share up is left some room to grow.
_ROOM = 1.25
# More than nothing, which is said by those who are no longer there.
_SPARE = 1.0
# The newest name of a lease, and the one before it: a listing that misses the one finds the other.
_NAMES = 2
# Of the cap, for a job that resumes and cannot tell the others.
_UNSEEN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RateStatistics:
    """What a worker takes of a link.

    Attributes:
        cap: Bytes per second of the link, as far as is known.
        share: Bytes per second of this worker.
        workers: Workers that hold a share.
        bytes_taken: Bytes taken since the beginning.
    """

    cap: float
    share: float
    workers: int
    bytes_taken: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lease of another, when it was seen to be new, and all its names."""

    lease: LinkLease
    at_s: float
    names: tuple[str, ...]


class LinkRate:
    """The share of one process in the cap of one link; to be used by any number of threads.

    It is renewed while it is used: a worker that takes nothing soon holds nothing.

    Args:
        store: Of the destination; all workers of the link meet there.
        runtime: Time, ids, threads.
        source: Uuid of the site that the bytes come from.
        cap: Bytes per second that all workers together may take.
        urgent: Somebody waits for these bytes: they come before those that nobody waits for.
        spare: These bytes can wait for all others: next to nothing is wanted, and what nobody wants is taken.
    """

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        *,
        source: str,
        cap: float,
        urgent: bool = False,
        spare: bool = False,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._source = source
        self._urgent = urgent
        self._spare = spare
        self._lock = Lock()
        self._begin(cap)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Become another worker: the parent goes on with its own share."""
        self._begin(self._cap)

    def take(self, size_bytes: int) -> None:
        """Wait until so many bytes may cross the link.

        Raises:
            Unavailable: The destination did not answer for too long.
            LimitExceeded, PermissionDenied: The lease cannot be written there, and nobody waits for these bytes.
        """
        clock = self._runtime.clock
        ticket = self.claim(size_bytes)
        while pause_s := self.wait_s(ticket):
            clock.sleep(pause_s)

    def claim(self, size_bytes: int) -> float:
        """Ask for bytes; return the ticket for `wait_s`."""
        with self._lock:
            return self._pace.claim(size_bytes, self._runtime.clock.monotonic())

    def wait_s(self, ticket: float) -> float:
        """Return 0 when the bytes of a ticket may cross, else how long to wait before asking again."""
        self._renew_if_due()
        with self._lock:
            now_s = self._runtime.clock.monotonic()
            if now_s > self._valid_until_s:
                self._pace.change(0.0, now_s)
            pause_s = self._pace.wait_s(ticket, now_s)
            self._waited |= pause_s > 0
            return pause_s

    def statistics(self) -> RateStatistics:
        """Return what this worker takes of the link."""
        with self._lock:
            return RateStatistics(
                cap=min([self._cap, *(seen.lease.cap for seen in self._seen.values())]),
                share=self._pace.rate,
                workers=1 + len(self._seen),
                bytes_taken=int(self._pace.claimed),
            )

    def close(self) -> None:
        """Leave the share to the others at once."""
        with self._lock:
            self._pace.change(0.0, self._runtime.clock.monotonic())
            self._valid_until_s = -math.inf
        try:
            self._store.delete(self._own)
        except Unavailable:
            # Nobody renews it, so the others take it soon.
            return

    def _begin(self, cap: float) -> None:
        now_s = self._runtime.clock.monotonic()
        self._worker = self._runtime.ids.token(8)
        self._pace = Pace(now_s)
        self._cap = cap
        self._turn = 0
        self._wanted = 0.0
        self._waited = False
        self._renewing = False
        self._counted, self._counted_at_s = 0.0, now_s
        self._due_s = now_s
        self._valid_until_s = -math.inf
        self._failing_since_s, self._failed_at_s = now_s, -math.inf
        self._own: list[str] = []
        self._seen: dict[str, _Seen] = {}
        self._stale: dict[str, _Seen] = {}

    def _renew_if_due(self) -> None:
        with self._lock:
            now_s = self._runtime.clock.monotonic()
            if self._renewing or now_s < self._due_s:
                return
            self._renewing = True
        try:
            self._renew(now_s)
            self._failed_at_s = -math.inf
        except Unavailable:
            # A worker that took nothing for a while did not fail all the time.
            if now_s - self._failed_at_s > LASTS_S:
                self._failing_since_s = now_s
            self._failed_at_s = self._runtime.clock.monotonic()
            if now_s - self._failing_since_s > self._runtime.limits.request_timeout_s:
                raise
            self._due_s = self._failed_at_s + RENEW_S
        finally:
            self._renewing = False

    def _renew(self, now_s: float) -> None:
        """Read what others hold, take the own share, and say so."""
        others = self._read_others(now_s)
        with self._lock:
            cap = min([self._cap, *(lease.cap for lease in others.values())])
            # What was wished for before the others were read: they may have read it by now.
            wished = self._wanted if now_s <= self._valid_until_s else 0.0
            share = _share(cap, wished, others, urgent=self._urgent)
            wanted = self._wish(now_s)
            self._pace.change(share, now_s)
            self._turn += 1
            made = LinkLease(
                worker=self._worker,
                turn=self._turn,
                cap=int(self._cap),
                share=math.ceil(share),
                wanted=None if wanted == math.inf else int(wanted),
                lasts_ms=int(LASTS_S * 1000),
                urgent=self._urgent,
            )
        told = self._tell(made)
        with self._lock:
            took_s = self._runtime.clock.monotonic() - now_s
            if not told:
                self._pace.change(max(share, cap * _UNSEEN), now_s + took_s)
            self._wanted = wanted
            self._valid_until_s = now_s + LASTS_S
            grows = wanted > max(wished, share)
            self._due_s = now_s + took_s + (max(SETTLE_S, 2 * took_s) if grows else RENEW_S)

    def _tell(self, lease: LinkLease) -> bool:
        """Write the own lease; False where that may not be and somebody waits, before whom the cap yields."""
        key = link_lease(self._source, lease_name(lease))
        self._own.append(key)
        try:
            self._store.put(key, [b""], mode="overwrite")
        except (LimitExceeded, PermissionDenied):
            self._own.remove(key)
            if not self._urgent:
                raise
            return False
        if len(self._own) > _NAMES:
            self._store.delete(self._own[:-_NAMES])
            del self._own[:-_NAMES]
        return True

    def _wish(self, now_s: float) -> float:
        """Return the bytes per second that could be used, by what was asked for since the last time."""
        passed_s = max(now_s - self._counted_at_s, SETTLE_S)
        used = (self._pace.claimed - self._counted) / passed_s
        wanted = math.inf if self._waited else used * _ROOM
        if self._spare:
            # Whoever wants more gets it; what is left over is shared among all alike.
            wanted = min(wanted, _SPARE)
        self._counted, self._counted_at_s, self._waited = self._pace.claimed, now_s, False
        return wanted

    def _read_others(self, now_s: float) -> dict[str, LinkLease]:
        """Return the leases that others renew, by worker."""
        known = {**self._stale, **self._seen}
        found = {
            worker: _Seen(
                lease,
                known[worker].at_s if worker in known and known[worker].lease == lease else now_s,
                names,
            )
            for worker, (lease, names) in self._listed().items()
        }
        fresh = {w: seen for w, seen in found.items() if now_s - seen.at_s <= _lasts_s(seen)}
        with self._lock:
            self._seen = fresh
            self._stale = {w: seen for w, seen in found.items() if w not in fresh}
        self._forget(now_s)
        return {worker: seen.lease for worker, seen in fresh.items()}

    def _listed(self) -> dict[str, tuple[LinkLease, tuple[str, ...]]]:
        """Return the newest lease of every other worker, and the names of all its leases."""
        found: dict[str, tuple[LinkLease, tuple[str, ...]]] = {}
        for info in self._store.list(link_leases(self._source)):
            try:
                lease = parse_lease_name(info.key.removeprefix(link_leases(self._source)))
            except Corrupt:
                # Nobody of this version wrote that.
                continue
            before, names = found.get(lease.worker, (lease, ()))
            newest = max(before, lease, key=lambda one: one.turn)
            found[lease.worker] = newest, (*names, info.key)
        found.pop(self._worker, None)
        return found

    def _forget(self, now_s: float) -> None:
        dead = [seen for seen in self._stale.values() if now_s - seen.at_s > _FORGET_S]
        if dead:
            self._store.delete([name for seen in dead for name in seen.names])


def _lasts_s(seen: _Seen) -> float:
    return seen.lease.lasts_ms / 1000


def _share(cap: float, wished: float, others: dict[str, LinkLease], *, urgent: bool) -> float:
    """Return the own share: the fair one, as far as what others hold leaves room for it."""
    least = cap * _LEAST
    wanted = {worker: max(least, _wanted(lease)) for worker, lease in others.items()}
    first = {"": urgent, **{worker: lease.urgent for worker, lease in others.items()}}
    wanted[""] = max(least, wished)
    urgents = [worker for worker in wanted if first[worker]]
    fair = share_out(cap, wanted, urgents)[""] if wished else 0.0
    held = sum(lease.share for lease in others.values())
    return max(0.0, min(fair, cap - held))


def _wanted(lease: LinkLease) -> float:
    return math.inf if lease.wanted is None else lease.wanted
