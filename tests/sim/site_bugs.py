"""Protections among several sites, each switched off, and who must notice.

Invariant: a patch takes one protection away and leaves all others as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fwstore.format.keys import known_site_key
from fwstore.format.record import Commit, Open
from fwstore.log.term import Term
from fwstore.log.votes import Ballots, Electorate
from fwstore.wan.sites import _Memory
from sim.bug import Bug, nothing


def _always_lends(original: Any) -> Any:
    def init(self: Term, *args: Any) -> None:
        original(self, *args)
        self.lends = True

    return init


def _own_log_alone(original: Any) -> Any:
    def fence(self: Any, term: int) -> None:
        others, self.logs = self.logs, {self._home.uuid: self.own}
        original(self, term)
        self.logs = others

    return fence


def _nobody_met_it(original: Any) -> Any:
    return lambda self, name: (frozenset(), True)


def _those_who_answer(original: Any) -> Any:
    return property(lambda self: frozenset(site.uuid for site in self.witnesses))


def _no_receipts(original: Any) -> Any:
    return lambda self, lineage: ([], True)


def _still_counting(original: Any) -> Any:
    def joined(self: Electorate, ballots: Any) -> Electorate:
        found: Electorate = original(self, ballots)
        return replace(found, retired=frozenset())

    return joined


def _as_if_none_voted_before(original: Any) -> Any:
    def joined(self: Electorate, ballots: Ballots) -> Electorate:
        found: Electorate = original(self, ballots)
        named = {frozenset(site.witnesses) for site in ballots.retired.values()}
        return replace(found, sets=found.sets - (named - self.sets))

    return joined


def _whoever_says_so(original: Any) -> Any:
    return lambda self, found: True


def _never(original: Any) -> Any:
    return lambda sites, members: False


def _no_memory(original: Any) -> Any:
    return lambda self, store, name: _Memory(known_site_key(name), None, None)


def _nothing_to_say(original: Any) -> Any:
    return lambda hold: lambda fold: None


def _all_holds(original: Any) -> Any:
    return lambda own, homes, retired: [hold for hold in own.holds.values() if not hold.intent]


def _nowhere(original: Any) -> Any:
    return lambda entry: []


def _only_commits(original: Any) -> Any:
    return lambda body: isinstance(body, Open | Commit)


SITE_BUGS = (
    Bug(
        "packs at another site are held by nobody",
        [("fwstore.checkpoint.outposts._unless_there", _nothing_to_say)],
        holes=("H1",),
    ),
    Bug(
        "a hold ends before its home has the packs",
        [("fwstore.wan.line.ended_holds", _all_holds)],
    ),
    Bug(
        "a commit proves packs that are at another site",
        [("fwstore.wan.pull.uses_elsewhere", _nowhere)],
    ),
    Bug(
        "a zombie's hold counts",
        [("fwstore.log.fold._is_writing", _only_commits)],
        seeds=2000,
        suites=("tests/wan/test_holds.py",),
    ),
    Bug(
        "witnesses are not asked again who they are",
        [("fwstore.log.terms._Election._check_identities", nothing)],
        # A wipe between a question and the vote is too rare in a storm.
        seeds=0,
        suites=("tests/log/test_several_sites.py",),
    ),
    Bug(
        "a base that home does not offer lends its packs",
        [("fwstore.log.term.Term.__init__", _always_lends)],
        holes=("H2",),
    ),
    Bug(
        "no log but that of home is fenced",
        [("fwstore.log.homes.Homes.fence", _own_log_alone)],
        # What an old job goes on saving is a tail all the same.
        seeds=0,
        suites=("tests/log/test_several_sites.py",),
        holes=("H9",),
    ),
    Bug(
        "a run whose home is silent is begun anew",
        [("fwstore.log.terms._Election._refuse_to_begin_anew", nothing)],
        seeds=2000,
        holes=("H6",),
    ),
    Bug(
        "witnesses that do not answer do not count",
        [("fwstore.log.terms.Candidate.electorate", _those_who_answer)],
        seeds=0,
        suites=("tests/log/test_several_sites.py",),
        holes=("H7",),
    ),
    Bug(
        "a run that is known elsewhere is not brought home",
        [("fwstore.log.identify.birth", nothing)],
        seeds=0,
        suites=("tests/log/test_several_sites.py",),
        holes=("H7",),
    ),
    Bug(
        "an empty store becomes a site although others have met it",
        [("fwstore.wan.sites.Sites._met_by_others", _nobody_met_it)],
        seeds=0,
        suites=("tests/wan/test_sites.py",),
        holes=("H7",),
    ),
    Bug(
        "sites that were met are forgotten",
        [("fwstore.wan.sites.Sites._memory", _no_memory)],
        seeds=0,
        suites=("tests/wan/test_sites.py",),
    ),
    Bug(
        "a reader asks for no receipts",
        [("fwstore.wan.chronicle.Chronicle._receipts", _no_receipts)],
        seeds=0,
        suites=("tests/wan/test_reading.py",),
        holes=("H6",),
    ),
    Bug(
        "a retired site still counts",
        [("fwstore.log.votes.Electorate.joined", _still_counting)],
        seeds=0,
        suites=("tests/wan/test_retire.py",),
    ),
    Bug(
        "a retired site goes on taking terms",
        [
            ("fwstore.log.terms.refuse_retired", nothing),
            ("fwstore.wan.sites.refuse_retired", nothing),
        ],
        seeds=2000,
        suites=("tests/wan/test_retire.py",),
    ),
    Bug(
        "a retirement without a majority",
        [
            ("fwstore.wan.retire._need_majorities", nothing),
            ("fwstore.wan.retirements.Retirements._is_in_force", _whoever_says_so),
        ],
        seeds=0,
        suites=("tests/wan/test_retire.py",),
    ),
    Bug(
        "those who voted before a retirement are not asked",
        [("fwstore.log.votes.Electorate.joined", _as_if_none_voted_before)],
        seeds=0,
        suites=("tests/wan/test_retire.py",),
        holes=("H7",),
    ),
    Bug(
        "a job that is cut off for too long goes on",
        [("fwstore.wan.vigil.Vigil._judge", nothing)],
        seeds=2000,
        suites=("tests/wan/test_cut_off.py",),
    ),
    Bug(
        "a job never hears that it is not cut off any more",
        [("fwstore.wan.vigil.is_majority", _never)],
        seeds=0,
        suites=("tests/wan/test_cut_off.py",),
    ),
)
