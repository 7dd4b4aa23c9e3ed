"""The logs of a run at all sites, as a candidate reads, fences and pins in them.

Invariant: the log of the candidate's home is always there; any other one that cannot be read or fenced is left out from
then on, so that it offers no base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from fwstore.base.errors import Conflict, NotFound
from fwstore.base.ids import write_id
from fwstore.base.notices import tell
from fwstore.format.lineage import Lineage
from fwstore.format.record import AnyBody, Fence, Pin
from fwstore.format.summary import SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.log.lineage import open_log, read_lineage
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.site import UNHEARD, Site
from fwstore.log.term import unpin_bases
from fwstore.sched import Runtime

T = TypeVar("T")

Hear = Callable[[Site, Lineage], Log]


class Homes:
    """The logs that were read so far.

    Args:
        home: Of the candidate.
        runtime: Time, ids, threads.
        read_packs: Lists the packs of a snapshot.
        hear: Reads the log of another site, and raises Conflict for one that was set back; None reads it plainly.

    Attributes:
        logs: By uuid of the site.
    """

    def __init__(
        self, home: Site, runtime: Runtime, read_packs: PackReader, hear: Hear | None
    ) -> None:
        self._home = home
        self._runtime = runtime
        self._read_packs = read_packs
        self._hear = hear
        self.logs: dict[str, Log] = {}

    @property
    def own(self) -> Log:
        """The log of the candidate's home."""
        return self.logs[self._home.uuid]

    def newest_term(self) -> int:
        """Return the highest term that any of the logs knows of."""
        return max((log.fold.newest_term for log in self.logs.values()), default=0)

    def read(self, sites: Collection[Site], lineage: Lineage, named: Collection[str]) -> None:
        """Read the log of every site that has the run, or that a vote names as a home.

        Raises:
            Conflict: A site has another lineage under the name; the message names both.
        """
        unread = [site for site in sites if site.uuid not in self.logs]
        read = self._runtime.scheduler.map(
            lambda site: self._unless_silent(site.uuid, lambda: self._read(site, lineage, named)),
            unread,
        )
        self.logs |= {
            site.uuid: log for site, log in zip(unread, read, strict=True) if log is not None
        }

    def listen(self, site: Site, lineage: Lineage) -> Log | None:
        """Return the log of one site, read to its end; None for another one that was set back."""
        if self._hear is not None and site.uuid != self._home.uuid:
            return _heard(self._hear, site, lineage)
        log = open_log(site.store, lineage, site.bounded(self._runtime), self._read_packs)
        log.refresh()
        return log

    def fence(self, term: int) -> None:
        """Fence every log that was read."""

        def fence(fold: Fold) -> AnyBody | None:
            return Fence() if fold.fence < term else None

        def append(log: Log) -> bool:
            log.append(fence, term=term)
            return True

        self._everywhere(append)

    def pin(self, entry: SnapshotEntry, term: int) -> list[Log]:
        """Pin the base of a term in every log that offers it; return those logs."""
        token = write_id(self._runtime.ids)

        def pin(fold: Fold) -> AnyBody | None:
            if entry.id not in fold.entries or entry.id in fold.expired:
                return None
            return Pin(pin=token, snapshot=entry.id, reason=f"base of term {term}", base_of=term)

        def append(log: Log) -> bool:
            try:
                return log.append(pin, term=term) is not None
            except (NotFound, Conflict):
                # Collected or condemned meanwhile: this log does not offer it any more.
                return False

        return [self.logs[uuid] for uuid, pinned in self._everywhere(append).items() if pinned]

    def unpin(self, pinned: Sequence[Log], term: int) -> None:
        """Lift the pins of a base that was not chosen in the end."""
        for log in pinned:
            try:
                unpin_bases(log, term)
            except UNHEARD:
                # Elsewhere the collector lifts it.
                if log is self.own:
                    raise

    def _read(self, site: Site, lineage: Lineage, named: Collection[str]) -> Log | None:
        if site.uuid != self._home.uuid:
            there = read_lineage(site.store, lineage.keys)
            if there is not None:
                lineage.must_be(there, f"in {site.store.url}")
            if there is None and site.uuid not in named:
                return None
        return self.listen(site, lineage)

    def _everywhere(self, act: Callable[[Log], T]) -> dict[str, T]:
        """Do something in every log; forget those of other sites that did not answer."""
        logs = tuple(self.logs.items())
        answers = self._runtime.scheduler.map(
            lambda pair: self._unless_silent(pair[0], lambda: act(pair[1])), logs
        )
        done = {
            uuid: answer
            for (uuid, _), answer in zip(logs, answers, strict=True)
            if answer is not None
        }
        self.logs = {uuid: self.logs[uuid] for uuid in done}
        return done

    def _unless_silent(self, uuid: str, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except UNHEARD:
            if uuid == self._home.uuid:
                raise
            return None


def _heard(hear: Hear, site: Site, lineage: Lineage) -> Log | None:
    try:
        return hear(site, lineage)
    except Conflict as error:
        # It has forgotten what others know: it is as good as silent (S6).
        tell(error.message)
        return None
