"""Votes and receipts as one candidate sees them, and what a majority is.

Invariant: a term counts as won only when votes of one write id, each confirmed by its witness, are a
majority of every witness set that is known; a witness that does not answer is counted against us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fwstore.base.errors import FwstoreError
from fwstore.format.keys import LineageKeys
from fwstore.format.vote import VOTE_BYTES_MAX, Receipt, Vote, parse_receipt, parse_vote
from fwstore.log.site import UNHEARD, Site
from fwstore.log.tail import get_parsed
from fwstore.sched import Runtime

_RECEIPT = ".open"


@dataclass
class Ballots:
    """The votes and receipts that were read.

    Attributes:
        votes: By site and term.
        receipts: By term.
        reached: Sites that answered the newest reading.
        failures: Why others did not.
    """

    votes: dict[tuple[str, int], Vote] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    failures: dict[str, FwstoreError] = field(default_factory=dict)
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def newest_term(self) -> int:
        """Return the highest term in which anyone voted."""
        return max((term for _, term in self.votes), default=0)

    def homes(self, below: int) -> frozenset[str]:
        """Return the homes named in votes of lower terms."""
        return frozenset(vote.home for (_, term), vote in self.votes.items() if term < below)

    def note(self, site: str, key: str, made: Vote | Receipt) -> None:
        """Take in a vote or receipt that this candidate has just created."""
        self._seen.add((site, key))
        if isinstance(made, Vote):
            self.votes[site, made.term] = made
        else:
            self.receipts.setdefault(made.term, made)

    def read(self, sites: Iterable[Site], keys: LineageKeys, runtime: Runtime) -> None:
        """Read what is new at every site that answers: two rounds."""
        sites = list(sites)
        self.failures = {}
        listed = runtime.scheduler.map(lambda site: self._list(site, keys), sites)
        self.reached = frozenset(
            site.uuid for site, names in zip(sites, listed, strict=True) if names is not None
        )
        fresh = [
            (site, key)
            for site, names in zip(sites, listed, strict=True)
            for key in names or ()
            if (site.uuid, key) not in self._seen
        ]
        runtime.scheduler.map(lambda pair: self._take(*pair), fresh)

    def _list(self, site: Site, keys: LineageKeys) -> list[str] | None:
        try:
            return [info.key for info in site.store.list(keys.terms)]
        except UNHEARD as error:
            self.failures[site.uuid] = error
            return None

    def _take(self, site: Site, key: str) -> None:
        try:
            found: Vote | Receipt | None = (
                get_parsed(site.store, key, VOTE_BYTES_MAX, parse_receipt)
                if key.endswith(_RECEIPT)
                else get_parsed(site.store, key, VOTE_BYTES_MAX, parse_vote)
            )
        except UNHEARD as error:
            self.reached -= {site.uuid}
            self.failures[site.uuid] = error
            return
        if found is not None:
            self.note(site.uuid, key, found)


@dataclass(frozen=True)
class Electorate:
    """Every witness set that a candidate knows; a majority of each is needed."""

    sets: frozenset[frozenset[str]]

    def majority(self, sites: Iterable[str]) -> bool:
        """Return whether sites are a majority of every set."""
        have = frozenset(sites)
        return all(2 * len(have & members) > len(members) for members in self.sets)

    def joined(self, ballots: Ballots) -> Electorate:
        """Return the electorate with the sets that votes name."""
        named = {frozenset(vote.witnesses) for vote in ballots.votes.values()}
        return Electorate(self.sets | named)

    def members(self) -> frozenset[str]:
        """Return every site of every set."""
        return frozenset().union(*self.sets)

    def won(self, ballots: Ballots) -> dict[int, Vote]:
        """Return the terms that someone may have won, each with a vote for that winner.

        Sites that did not answer may have voted for anyone, and one set is enough.
        """
        silent = self.members() - ballots.reached
        voters: dict[tuple[int, str], set[str]] = {}
        votes: dict[tuple[int, str], Vote] = {}
        for (site, term), vote in ballots.votes.items():
            voters.setdefault((term, vote.write_id), set()).add(site)
            votes[term, vote.write_id] = vote
        return {
            term: votes[term, candidate]
            for (term, candidate), have in sorted(voters.items())
            if any(2 * len((have | silent) & members) > len(members) for members in self.sets)
        }


def reachable(sites: Mapping[str, Site], wanted: Iterable[str]) -> list[Site]:
    """Return those of the wanted sites whose store is known here."""
    return [sites[uuid] for uuid in sorted(set(wanted)) if uuid in sites]
