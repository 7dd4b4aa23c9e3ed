"""Reading the logs of other sites from where the last worker stopped.

Invariant: a log that ends before, or differs from, what was heard of it is refused with what was heard and when; nothing
is taken from such a site. Everything kept here is derived, and lost costs one more reading.
"""

from __future__ import annotations

from fwstore.base.errors import (
    Conflict,
    Corrupt,
    LimitExceeded,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from fwstore.format.heard import HEARD_BYTES_MAX, Heard, encode_heard, parse_heard
from fwstore.format.lineage import Lineage
from fwstore.log.fold import Fold
from fwstore.log.lineage import open_log
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.site import Site
from fwstore.log.tail import get_or_none
from fwstore.sched import Runtime
from fwstore.store.base import Store


class Listener:
    """Follows the logs of one lineage at some sites, its own among them.

    Args:
        own: Where the positions are kept.
        lineage: What is followed.
        runtime: Time, ids, threads.
        read_packs: Lists the packs of a snapshot.

    Attributes:
        lineage: What is followed.
        condemned: Manifests in condemned lists of the own log, by token of the list; kept for whoever asks again.
    """

    def __init__(
        self, own: Store, lineage: Lineage, runtime: Runtime, read_packs: PackReader
    ) -> None:
        self._own = own
        self.lineage = lineage
        self.condemned: dict[str, frozenset[str]] = {}
        self._runtime = runtime
        self._read_packs = read_packs
        self._logs: dict[str, tuple[Log, int]] = {}

    def hear(self, site: Site, *, keep: bool = True) -> Log:
        """Return the log of a site, read to its end: one round of two requests to the site where nothing is new.

        Args:
            site: Whose log.
            keep: Write down how far it was read, if that is news.

        Raises:
            Conflict: It ends before what was heard of it, or is another log.
            Corrupt: A slot is damaged or missing.
            Unavailable: The site does not answer.
        """
        known = self._logs.get(site.uuid)
        log, before = known if known is not None else self._begin(site)
        if log.fold.seq < 0:
            log.refresh()
        elif not log.confirm():
            raise self._diverged(site, log)
        kept = before
        if keep and log.fold.seq > before:
            self._keep(site, log.fold)
            kept = log.fold.seq
        self._logs[site.uuid] = log, kept
        return log

    def _begin(self, site: Site) -> tuple[Log, int]:
        log = open_log(site.store, self.lineage, self._runtime, self._read_packs)
        heard = self._read(site)
        if heard is None:
            return log, -1
        log.begin_at(Fold.restore(heard.lineage, heard.seq, heard.record, heard.state))
        return log, heard.seq

    def _read(self, site: Site) -> Heard | None:
        try:
            stored = get_or_none(self._own, self._key(site), HEARD_BYTES_MAX)
            heard = None if stored is None else parse_heard(stored)
        except (Corrupt, Unsupported, LimitExceeded):
            # Derived: the log says the same.
            return None
        mine = (self.lineage.lineage, site.uuid)
        return heard if heard is not None and (heard.lineage, heard.site) == mine else None

    def _diverged(self, site: Site, log: Log) -> Conflict:
        # Read anew by whoever asks next, should the store be brought forward again.
        self._logs.pop(site.uuid, None)
        seq = log.fold.seq
        ended = next(log.records(seq, seq), None) is None
        found = "ends before it" if ended else "holds another record there"
        return Conflict(
            f"slot {seq} of the log of {self.lineage.keys.label} was heard at {site.name}, and now the log "
            f"{found}: the store was restored from an older backup, or is another one. Nothing is taken "
            f"from it. Bring its newer slots back, or, if they are lost for good, delete {self._key(site)} in "
            f"{self._own.url}"
        )

    def _keep(self, site: Site, fold: Fold) -> None:
        heard = Heard(
            lineage=fold.lineage,
            site=site.uuid,
            name=site.name,
            seq=fold.seq,
            record=fold.digest,
            time=self._runtime.clock.wall(),
            state=fold.export(),
        )
        try:
            self._own.put(self._key(site), [encode_heard(heard)], mode="overwrite")
        except (Unavailable, LimitExceeded, PermissionDenied):
            # Derived: the next one reads what this one has read.
            return

    def _key(self, site: Site) -> str:
        return self.lineage.keys.heard(site.uuid)
