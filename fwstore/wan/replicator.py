"""Bringing everything that a site wants from other sites, round by round.

Invariant: a worker keeps nothing that is not derived from logs; any number may do this beside each other, and whatever
one of them leaves the next one goes on with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from fwstore.base.errors import FwstoreError
from fwstore.format.keys import LineageKeys
from fwstore.format.lineage import Lineage
from fwstore.log.lineage import list_lineages, read_lineage
from fwstore.log.packs import PackTables
from fwstore.plan.replication import Transfer
from fwstore.wan.heard import Listener
from fwstore.wan.line import Destination, Line, Notes, Source
from fwstore.wan.reports import LineagePlan, ReplicationReport, RoundPlan, Trouble


class Replicator:
    """Copies to one site what it lacks.

    Args:
        destination: The site, its sources and what it wants.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._listeners: dict[str, Listener] = {}
        self._failed: set[tuple[str, str]] = set()

    def plan(self, runs: Collection[str] | None = None) -> RoundPlan:
        """Return what a round would copy, in order; nothing is written but what was heard.

        Args:
            runs: Names of runs; None for all.
        """
        notes = Notes()
        plans = tuple(
            LineagePlan(run=line.lineage.name, plan=line.plan)
            for line in self._lines(runs, notes)
            if line.look()
        )
        return RoundPlan(runs=plans, troubles=tuple(notes.troubles))

    def once(
        self, runs: Collection[str] | None = None, *, at_most_s: float = math.inf
    ) -> ReplicationReport:
        """Copy until nothing is left that can be copied now.

        Args:
            runs: Names of runs; None for all.
            at_most_s: Begin no copy after so long; only the next round sees runs that are new.
        """
        notes = Notes()
        lines = [line for line in self._lines(runs, notes) if line.begin()]
        more = self._copy(lines, at_most_s)
        for line in lines:
            line.end()
        self._remember_failed(notes, more=more)
        return ReplicationReport(
            copied=tuple(notes.copied),
            left=tuple((line.lineage.name, left) for line in lines for left in line.left()),
            passed_over=tuple(
                (line.lineage.name, passed) for line in lines for passed in line.plan.passed_over
            ),
            troubles=tuple(notes.troubles),
            withdrawn=notes.withdrawn,
            fenced=tuple(notes.fenced),
            more=more,
        )

    def _copy(self, lines: Sequence[Line], at_most_s: float) -> bool:
        """Copy one snapshot after the other; return whether the time was over first."""
        clock = self._destination.runtime.clock
        end_s = clock.monotonic() + at_most_s
        while True:
            for line in lines:
                line.keep_up()
            waiting = [(line, first) for line in lines if (first := line.next()) is not None]
            if not waiting or clock.monotonic() >= end_s:
                return bool(waiting)
            line, transfer = min(waiting, key=lambda pair: self._turn(*pair))
            line.pull(transfer)

    def _remember_failed(self, notes: Notes, *, more: bool) -> None:
        """Remember what comes last in the next round; what had no turn again in this one still does."""
        copied = {(one.run, one.snapshot) for one in notes.copied}
        failed = {(trouble.run, trouble.snapshot) for trouble in notes.troubles if trouble.snapshot}
        self._failed = failed | (self._failed - copied if more else set())

    def _turn(self, line: Line, transfer: Transfer) -> tuple[bool, int]:
        """Return what orders all transfers: what could not be copied in the last round comes last."""
        return (line.lineage.name, transfer.snapshot) in self._failed, transfer.priority

    def _listener(self, lineage: Lineage) -> Listener:
        found = self._listeners.get(lineage.lineage)
        if found is None:
            here = self._destination
            read_packs = PackTables(here.content_hash)
            found = Listener(here.own.store, lineage, here.runtime, read_packs)
            self._listeners[lineage.lineage] = found
        return found

    def _lines(self, runs: Collection[str] | None, notes: Notes) -> Iterator[Line]:
        """Yield every lineage that is known anywhere, once, with the sources that have it."""
        own = list_lineages(self._destination.own.store)
        having: dict[LineageKeys, list[Source]] = {
            keys: [] for keys in own if runs is None or keys.name in runs
        }
        notes.troubles += [Trouble(site=n, error=e) for n, e in self._destination.silent.items()]
        silent = bool(self._destination.silent)
        for source in self._destination.sources:
            try:
                listed = list_lineages(source.site.store)
            except FwstoreError as error:
                notes.troubles.append(Trouble(site=source.site.name, error=error))
                silent = True
                continue
            for keys in listed:
                if runs is None or keys.name in runs:
                    having.setdefault(keys, []).append(source)
        for keys, sources in having.items():
            yield from self._line(keys, sources, notes, whole=not silent)

    def _line(
        self, keys: LineageKeys, sources: Sequence[Source], notes: Notes, *, whole: bool
    ) -> Iterator[Line]:
        """Yield the lineage, unless nobody can tell what it is."""
        lineage = read_lineage(self._destination.own.store, keys)
        agreeing: list[Source] = []
        for source in sources:
            try:
                found = read_lineage(source.site.store, keys)
                if found is None:
                    continue
                lineage = lineage or found
                lineage.must_be(found, f"at {source.site.name}")
                agreeing.append(source)
            except FwstoreError as error:
                notes.troubles.append(Trouble(run=keys.name, site=source.site.name, error=error))
                whole = False
        if lineage is not None:
            yield Line(
                self._destination,
                self._listener(lineage),
                agreeing,
                notes,
                {snapshot for run, snapshot in self._failed if run == keys.name},
                whole=whole,
            )
