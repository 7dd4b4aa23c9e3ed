"""Work that one process does for all of a site: whoever asks waits, and gets what one has fetched.

Invariant: while the holder of a claim shows signs of life, nobody else of the site begins the same work; when it shows
none for as long as its claim lasts, the next one takes over. Claims save work and nothing else: that two do the same
is harmless. A clock measures one's own waiting, never another's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fwstore.base.errors import Corrupt, FwstoreError, NotFound
from fwstore.base.units import MIB
from fwstore.content.cache import SharedCache
from fwstore.format.keys import work_claim, work_claims
from fwstore.format.lease import CLAIM_BYTES_MAX, WorkClaim, encode_claim, parse_work_claim
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once

CLAIM_LASTS_S = 30.0
_RENEW_S = 2.0
_PAUSE_S = 0.05
_PAUSE_MAX_S = 1.0
_DONE_BYTES = 16 * MIB

Alive = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Errand:
    """Something to be brought to this site.

    Attributes:
        key: The object that shows that it is done.
        is_here: Whether it is.
        work: Brings it; calls what it is given as often as it gets on.
    """

    key: str
    is_here: Callable[[], bool]
    work: Callable[[Alive], None]


class OncePerSite:
    """Does errands, each once, for all threads of this process and all processes of the site.

    Args:
        store: Of the site; its processes meet there.
        runtime: Time, ids, threads.
    """

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime
        self._done: SharedCache[str, bool] = SharedCache(_DONE_BYTES)

    def see_to(self, errand: Errand) -> bool:
        """Return when an errand is done: whether this process did it just now or somebody else has.

        Raises:
            FwstoreError: This process tried, and could not.
        """
        did = False

        def make() -> bool:
            nonlocal did
            did = self._do(errand)
            return True

        self._done.get(errand.key, len(errand.key), make)
        return did

    def _do(self, errand: Errand) -> bool:
        pause_s, watch = _PAUSE_S, _Watch(self._store, errand.key, self._runtime)
        while not errand.is_here():
            number = watch.vacant()
            claim = (
                None if number is None else _Claim(self._store, errand.key, number, self._runtime)
            )
            if claim is not None and claim.take():
                return self._work(errand, claim)
            self._runtime.clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        return False

    def _work(self, errand: Errand, claim: _Claim) -> bool:
        try:
            # The one before may have finished between our look and our claim.
            if errand.is_here():
                return False
            errand.work(claim.renew)
        finally:
            # Whoever waits goes on at once; and what cannot be deleted lasts a little longer.
            with suppress(FwstoreError):
                claim.give_up()
        return True


class _Watch:
    """The claims on one errand, as one who waits sees them."""

    def __init__(self, store: Store, key: str, runtime: Runtime) -> None:
        self._store = store
        self._key = key
        self._prefix = work_claims(key)
        self._clock = runtime.clock
        self._seen: tuple[int, WorkClaim | None] | None = None
        self._since_s = 0.0

    def vacant(self) -> int | None:
        """Return the number of the next claim, or None while somebody holds one."""
        keys = (info.key.removeprefix(self._prefix) for info in self._store.list(self._prefix))
        newest = max((int(number) for number in keys if number.isdigit()), default=0)
        if not newest:
            return 1
        now_s, seen = self._clock.monotonic(), (newest, self._read(newest))
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
        claim = seen[1]
        lasts_s = CLAIM_LASTS_S if claim is None else claim.lasts_ms / 1000
        return newest + 1 if now_s - self._since_s > lasts_s else None

    def _read(self, number: int) -> WorkClaim | None:
        key = work_claim(self._key, number)
        try:
            return parse_work_claim(self._store.get(key, limit_bytes=CLAIM_BYTES_MAX), key)
        except (NotFound, Corrupt):
            return None


class _Claim:
    """The own claim on one errand."""

    def __init__(self, store: Store, key: str, number: int, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime
        self._key = work_claim(key, number)
        self._others = work_claims(key)
        self._holder = runtime.ids.token(16)
        self._turn = 0
        self._renewed_at_s = runtime.clock.monotonic()

    def take(self) -> bool:
        """Return whether it is ours."""
        return create_once(self._store, self._key, [self._encoded()], self._runtime)

    def renew(self) -> None:
        """Show a sign of life, not more often than is of use."""
        now_s = self._runtime.clock.monotonic()
        if now_s - self._renewed_at_s < _RENEW_S:
            return
        self._renewed_at_s = now_s
        self._turn += 1
        # Without it somebody else may take over, which is harmless.
        with suppress(FwstoreError):
            self._store.put(self._key, [self._encoded()], mode="overwrite")

    def give_up(self) -> None:
        """Leave the errand to others, or to nobody when it is done."""
        older = [info.key for info in self._store.list(self._others) if info.key <= self._key]
        self._store.delete(older)

    def _encoded(self) -> bytes:
        claim = WorkClaim(holder=self._holder, turn=self._turn, lasts_ms=int(CLAIM_LASTS_S * 1000))
        return encode_claim(claim)
