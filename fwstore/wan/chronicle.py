"""What all sites together tell of one lineage: which history is canonical, and which site has what of it.

Invariant: receipts are read before logs, so an open that a receipt tells of is missing from the log of its home only
where it never was; with receipts of less than a majority, or without the log of some site, what is told is "at least".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fwstore.base.errors import Conflict, FwstoreError
from fwstore.base.notices import tell
from fwstore.format.lineage import Lineage
from fwstore.format.vote import Receipt
from fwstore.log.fold import Fold
from fwstore.log.history import View, view_of
from fwstore.log.lineage import read_lineage
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.site import UNHEARD, Site, with_patience
from fwstore.log.votes import Ballots, Electorate, reachable
from fwstore.sched import Runtime
from fwstore.wan.heard import Listener
from fwstore.wan.sites import Silence, Sites


@dataclass(frozen=True, slots=True)
class Account:
    """What was told.

    Attributes:
        view: Of all logs and receipts together.
        own: The local log.
        where: Names of the sites at which a snapshot is on offer, by its id; empty for a store alone.
        unheard: Names of the sites that did not answer.
        certain: Whether a majority of the witnesses told of its receipts: else there may be newer history.
    """

    view: View
    own: Fold
    where: Mapping[str, tuple[str, ...]]
    unheard: tuple[str, ...] = ()
    certain: bool = True

    def is_here(self, snapshot: str) -> bool:
        """Return whether a snapshot is complete and on offer at this site."""
        return self.own.is_complete(snapshot) and snapshot not in self.own.expired


class Chronicle:
    """Follows one lineage at all sites.

    Args:
        sites: That may know it.
        own: Its log at the local site.
        runtime: Time, ids, threads.
        read_packs: Lists the packs of a snapshot.
    """

    def __init__(self, sites: Sites, own: Log, runtime: Runtime, read_packs: PackReader) -> None:
        self._sites = sites
        self._own = own
        self._runtime = runtime
        self._brisk = with_patience(runtime, sites.patience_s)
        self._read_packs = read_packs
        self._ballots = Ballots()
        self._listener: Listener | None = None
        self._agreeing: set[str] = set()
        self._refused: dict[str, str] = {}
        self._lock = runtime.scheduler.lock()

    def read(self) -> Account:
        """Ask every site that answers; a store alone asks nobody.

        Raises:
            Conflict: A site is not the one that it stands for.
            Corrupt: The local log is damaged.
        """
        if len(self._sites.topology.sites) == 1:
            fold = self._own.refresh()
            return Account(view_of({"": fold}), fold, {})
        with self._lock:
            return self._ask_all()

    def _ask_all(self) -> Account:
        own = self._own.refresh()
        lineage = read_lineage(self._own.store, self._own.keys)
        home = self._sites.ask(self._sites.local)
        if lineage is None or isinstance(home, Silence):
            return Account(view_of({"": own}), own, {}, certain=False)
        receipts, certain = self._receipts(lineage)
        folds, names = {home.uuid: self._own.refresh()}, {home.uuid: home.name}
        others, listener = self._sites.reachable(keeping=True), self._listening(lineage)
        told = self._runtime.scheduler.map(lambda site: self._fold(site, listener), others)
        for site, fold in zip(others, told, strict=True):
            if fold is not None:
                folds[site.uuid], names[site.uuid] = fold, site.name
        where: dict[str, tuple[str, ...]] = {}
        for uuid, fold in folds.items():
            for entry in fold.live():
                if entry.holds:
                    continue
                where[entry.id] = (*where.get(entry.id, ()), names[uuid])
        return Account(
            view=view_of(folds, receipts),
            own=folds[home.uuid],
            where=where,
            unheard=self._unheard(),
            certain=certain,
        )

    def _receipts(self, lineage: Lineage) -> tuple[list[Receipt], bool]:
        """Return the receipts, and whether those of a majority were read."""
        witnesses, absent = self._sites.electors()
        voters = {site.uuid: site for site in witnesses}
        topology = frozenset({*voters, *absent})
        known = Electorate(frozenset({topology, frozenset(lineage.witnesses)}))
        while True:
            sites = {**{site.uuid: site for site in self._sites.reachable()}, **voters}
            asked = reachable(sites, known.voters())
            self._ballots.read(asked, lineage.keys, self._runtime)
            for uuid, error in self._ballots.failures.items():
                self._sites.lose(sites[uuid].name, error)
            joined = known.joined(self._ballots)
            if joined == known:
                return [*self._ballots.receipts.values()], known.majority(self._ballots.reached)
            known = joined

    def _fold(self, site: Site, listener: Listener) -> Fold | None:
        """Return what the log of another site says, or None where it says nothing that can be used."""
        try:
            fold = self._hear(site, listener)
        except UNHEARD as error:
            self._sites.lose(site.name, error)
        except Conflict as error:
            self._refuse(site, error)
        else:
            self._refused.pop(site.name, None)
            return fold
        return None

    def _hear(self, site: Site, listener: Listener) -> Fold | None:
        if site.uuid not in self._agreeing:
            there = read_lineage(site.store, listener.lineage.keys)
            if there is None:
                return None
            listener.lineage.must_be(there, f"at {site.name}")
            # It is never written again.
            self._agreeing.add(site.uuid)
        return listener.hear(site, keep=False).fold

    def _listening(self, lineage: Lineage) -> Listener:
        if self._listener is None:
            self._listener = Listener(self._own.store, lineage, self._brisk, self._read_packs)
        return self._listener

    def _refuse(self, site: Site, error: FwstoreError) -> None:
        """Take nothing of this lineage from a site, and say so once."""
        if self._refused.get(site.name) != error.message:
            self._refused[site.name] = error.message
            tell(error.message)

    def _unheard(self) -> tuple[str, ...]:
        answers = self._sites.answers(self._sites.topology.sites)
        silent = [a.name for a in answers if isinstance(a, Silence) and not a.retired]
        return tuple(sorted({*silent, *self._refused}))
