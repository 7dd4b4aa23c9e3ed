"""Votes and receipts as one candidate sees them, and what a majority is.

Invariant: a term counts as won only when votes of one write id, each confirmed by its witness, are a
majority of every witness set that is known; a witness that does not answer, or was retired, is counted against us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fwstore.base.errors import FwstoreError
from fwstore.format.keys import RETIRED_PREFIX, LineageKeys, parse_retired_key
from fwstore.format.site import SITE_BYTES_MAX, RetiredSite, parse_retired_site
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
        retired: What any witness holds of the retirement of a site, by its uuid.
        holders: The witnesses that hold it.
        lost: Sites that an operator took out of every set.
        reached: Sites that answered the newest reading.
        failures: Why others did not.
    """

    votes: dict[tuple[str, int], Vote] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    retired: dict[str, RetiredSite] = field(default_factory=dict)
    holders: dict[str, set[str]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
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

    def read(
        self, sites: Iterable[Site], keys: LineageKeys, runtime: Runtime, *, alone: bool = False
    ) -> None:
        """Read what is new at every site that answers: two rounds.

        Args:
            sites: The witnesses.
            keys: Of the lineage.
            runtime: Threads.
            alone: There is one witness, so that nobody can have been retired.
        """
        sites = list(sites)
        self.failures = {}
        prefixes = (keys.terms,) if alone else (keys.terms, RETIRED_PREFIX)
        asked = [(site, prefix) for site in sites for prefix in prefixes]
        listed = runtime.scheduler.map(lambda pair: self._list(*pair), asked)
        told = [(site, names) for (site, _), names in zip(asked, listed, strict=True)]
        silent = {site.uuid for site, names in told if names is None}
        self.reached = frozenset(site.uuid for site in sites) - silent
        fresh = [
            (site, key)
            for site, names in told
            for key in names or ()
            if (site.uuid, key) not in self._seen
        ]
        runtime.scheduler.map(lambda pair: self._take(*pair), fresh)

    def _list(self, site: Site, prefix: str) -> list[str] | None:
        try:
            return [info.key for info in site.store.list(prefix)]
        except UNHEARD as error:
            self.failures[site.uuid] = error
            return None

    def _take(self, site: Site, key: str) -> None:
        try:
            if key.startswith(RETIRED_PREFIX):
                self._take_retired(site, key)
                return
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

    def _take_retired(self, site: Site, key: str) -> None:
        named = parse_retired_key(key)
        found = named and get_parsed(site.store, key, SITE_BYTES_MAX, parse_retired_site)
        if named is not None and found is not None:
            self._seen.add((site.uuid, key))
            self.retired.setdefault(found.site, found)
            self.holders.setdefault(found.site, set()).add(site.uuid)
            self.lost |= {found.site} if named[1] else set()


@dataclass(frozen=True)
class Electorate:
    """Every witness set that a candidate knows; a majority of each is needed.

    A retired member stays in the count: what was a majority before it was retired is one afterwards, so nobody who has
    not heard of it yet can win without a member in common. Only one that an operator gave up for lost is taken out.

    Attributes:
        sets: By uuids of sites.
        retired: Sites whose votes do not count any more, on the word of any witness.
        lost: Those of them that are members of no set any more.
    """

    sets: frozenset[frozenset[str]]
    retired: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()

    def majority(self, sites: Iterable[str]) -> bool:
        """Return whether sites are a majority of every set."""
        have = frozenset(sites) - self.retired
        counted = [members - self.lost for members in self.sets]
        return any(counted) and all(
            2 * len(have & members) > len(members) for members in counted if members
        )

    def joined(self, ballots: Ballots) -> Electorate:
        """Return the electorate with the sets that votes and retirements name, less the votes of whoever was retired."""
        named = {frozenset(vote.witnesses) for vote in ballots.votes.values()}
        named |= {frozenset(site.witnesses) for site in ballots.retired.values()}
        retired = self.retired | ballots.retired.keys()
        return Electorate(self.sets | named, retired, self.lost | ballots.lost)

    def given_up(self, ballots: Ballots) -> frozenset[str]:
        """Return the sites of which a majority of every set, themselves counted, holds that they were retired."""
        counting = replace(self, retired=frozenset())
        agreed = {site for site, held in ballots.holders.items() if counting.majority(held)}
        return self.lost | agreed

    def members(self) -> frozenset[str]:
        """Return every site of every set."""
        return frozenset().union(*self.sets)

    def voters(self) -> frozenset[str]:
        """Return every site of every set that was not retired."""
        return self.members() - self.retired

    def won(self, ballots: Ballots) -> dict[int, Vote]:
        """Return the terms that someone may have won, each with a vote for that winner.

        Sites that did not answer may have voted for anyone, and one set is enough; so may those that were retired, before.
        """
        silent = self.members() - (ballots.reached - self.retired)
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
