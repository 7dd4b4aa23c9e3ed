"""Winning the next term of a run: election, fences, base, receipt, open.

Invariant: at most one process opens a term, and whoever opened a lower one can commit nothing more to a
log that was fenced. The order of steps is section 4 of docs/spec/log.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from fwstore.base.errors import (
    Conflict,
    Corrupt,
    Expired,
    Fenced,
    FwstoreError,
    InternalError,
    NotFound,
    Unavailable,
)
from fwstore.base.ids import write_id
from fwstore.format.keys import SITE_KEY, LineageKeys
from fwstore.format.lineage import Kind, Lineage
from fwstore.format.record import Open
from fwstore.format.summary import SnapshotEntry
from fwstore.format.vote import Receipt, Vote, encode_vote
from fwstore.log.history import View, canonical_chain, view_of
from fwstore.log.homes import Hear, Homes
from fwstore.log.identify import identify
from fwstore.log.lineage import birth
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.retired import refuse_retired
from fwstore.log.site import UNHEARD, Site, still_is
from fwstore.log.term import Term
from fwstore.log.votes import Ballots, Electorate, reachable
from fwstore.sched import Runtime
from fwstore.store.create import create_once

_ATTEMPTS = 10
_BACKOFF_S = 0.05
_BACKOFF_MAX_S = 5.0
_BASES_TRIED = 100


def _loadable(_: SnapshotEntry) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Who stands for the next term of a run.

    Attributes:
        name: Of the run.
        home: The site whose log the winner writes.
        witnesses: Sites of the electorate by the topology of the candidate.
        absent: Witnesses of that topology that cannot be asked: uuids, or ``?`` and a name where none is known.
        sites: Further sites that can be reached.
        holder: Who that is, for people: host, process, job.
        read_packs: Lists the packs of a snapshot.
        loadable: Says whether a snapshot can serve as the base; it may load or verify it.
        kind: Of the lineage.
        hear: Reads the log of another site to its end; raises Conflict for one that was set back.
    """

    name: str
    home: Site
    witnesses: tuple[Site, ...]
    absent: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    holder: str
    read_packs: PackReader
    loadable: Callable[[SnapshotEntry], bool] = _loadable
    kind: Kind = "run"
    hear: Hear | None = None

    @property
    def electorate(self) -> frozenset[str]:
        """Every witness of the topology, whether it answers or not."""
        return frozenset(site.uuid for site in self.witnesses) | frozenset(self.absent)

    @property
    def strangers(self) -> frozenset[str]:
        """Witnesses that were never met."""
        return frozenset(name for name in self.absent if name.startswith("?"))


def take_term(candidate: Candidate, runtime: Runtime, *, base: str | None = None) -> Term:
    """Win and open the next term of a run, which is created if it does not exist.

    Args:
        candidate: Who stands, and where.
        runtime: Time, ids, threads.
        base: Id of the snapshot to continue; None for the newest loadable one on the canonical chain.

    Raises:
        Fenced: A newer candidate won a higher term meanwhile.
        Conflict: Elections went on being lost, or the name means two lineages.
        NotFound: The base that was asked for is not on offer.
        AlreadyExists: The name is taken in another spelling.
        Unavailable: Too few witnesses answered.
    """
    return _Election(candidate, runtime).run(base)


@dataclass
class _Choice:
    """A base, and the logs in which it is pinned."""

    base: SnapshotEntry | None = None
    pinned: list[Log] = field(default_factory=list)


class _Election:
    def __init__(self, candidate: Candidate, runtime: Runtime) -> None:
        self._candidate = candidate
        self._runtime = runtime
        known = (*candidate.witnesses, *candidate.sites, candidate.home)
        self._sites = {site.uuid: site for site in known}
        self._write_id = write_id(runtime.ids)
        self._ballots = Ballots()
        self._electorate = Electorate(frozenset())
        self._found: Lineage | None = None
        self._homes = Homes(candidate.home, runtime, candidate.read_packs, candidate.hear)
        self._term = 0
        # Who was relied on for each majority: they must be who they were until the end.
        self._relied: list[frozenset[str]] = []

    def run(self, base: str | None) -> Term:
        """Go through the steps of the protocol in their order."""
        lineage = self._identify()
        lineage = self._win(lineage)
        if self._found is None:
            birth(self._candidate.home.store, lineage, self._runtime)
        self._read_logs(lineage)
        self._fence()
        self._read_ballots(lineage.keys)
        self._relied.append(self._ballots.reached)
        choice = self._choose(base)
        self._leave_receipt(lineage, choice)
        self._check_votes(lineage)
        home = self._open(choice)
        return Term(self._term, choice.base, home, choice.pinned)

    # Who is it?

    def _identify(self) -> Lineage:
        """Find the lineage, or describe the one that is about to be born."""
        candidate, runtime = self._candidate, self._runtime
        others = [site for uuid, site in self._sites.items() if uuid != candidate.home.uuid]
        found = identify(candidate.name, candidate.home, others, self._homes, runtime)
        self._found = found.lineage
        # Read on when they are fenced: nothing of them is relied on before.
        self._homes.logs |= found.logs
        if found.lineage is not None:
            return found.lineage
        if candidate.strangers:
            # Its uuid follows from those of the witnesses: all must have been met once.
            raise Unavailable(
                f"run {candidate.name} cannot be begun before every witness was met: "
                f"{', '.join(sorted(name[1:] for name in candidate.strangers))} never answered"
            )
        witnesses = tuple(sorted(candidate.electorate))
        return Lineage(
            name=candidate.name,
            generation=found.generation,
            lineage=_uuid_at_birth(LineageKeys(candidate.name, found.generation), witnesses),
            kind=candidate.kind,
            witnesses=witnesses,
            time=runtime.clock.wall(),
        )

    # Step 0: win a term number.

    def _win(self, lineage: Lineage) -> Lineage:
        sets = {self._candidate.electorate, frozenset(lineage.witnesses)}
        self._electorate = Electorate(frozenset(sets))
        for attempt in range(_ATTEMPTS):
            self._read_ballots(lineage.keys)
            lineage = self._adopt(lineage)
            term = max(self._ballots.newest_term(), self._homes.newest_term()) + 1
            self._term = term
            if self._vote(lineage, term):
                return lineage
            self._back_off(attempt)
        raise Conflict(
            f"{_ATTEMPTS} elections for {lineage.keys.label} were lost to other candidates: is another "
            "job resuming the same run?"
        )

    def _adopt(self, lineage: Lineage) -> Lineage:
        """Take the uuid that a term was won with: its winner may have died before the birth."""
        votes = self._electorate.won(self._ballots) or {
            term: vote for (_, term), vote in self._ballots.votes.items()
        }
        if not votes:
            return lineage
        uuid = votes[max(votes)].lineage
        if self._found is not None and uuid != lineage.lineage:
            raise Conflict(
                f"{lineage.keys.label} is lineage {lineage.lineage} in "
                f"{self._candidate.home.store.url}, and votes name lineage {uuid}"
            )
        return Lineage(
            name=lineage.name,
            generation=lineage.generation,
            lineage=uuid,
            kind=lineage.kind,
            witnesses=lineage.witnesses,
            time=lineage.time,
        )

    def _vote(self, lineage: Lineage, term: int) -> bool:
        # A set with a member that nobody has met cannot be written down; that of the lineage stands for it.
        unmet = bool(self._candidate.strangers)
        vote = Vote(
            term=term,
            lineage=lineage.lineage,
            holder=self._candidate.holder,
            home=self._candidate.home.uuid,
            witnesses=lineage.witnesses if unmet else tuple(sorted(self._candidate.electorate)),
            write_id=self._write_id,
        )
        got = self._create_everywhere(lineage.keys.vote(term), vote)
        if not self._electorate.majority(got):
            return False
        self._relied = [got]
        self._check_identities(lineage)
        return True

    def _check_identities(self, lineage: Lineage) -> None:
        """See whether those who were relied on are still majorities when only those count who they were (S2)."""
        relied: frozenset[str] = frozenset().union(*self._relied)
        true = self._true(relied)
        if not all(self._electorate.majority(one & true) for one in self._relied):
            raise Unavailable(
                f"while term {self._term} of {lineage.keys.label} was taken, witness "
                f"{', '.join(sorted(relied - true))} fell silent or was wiped: it does not say any more that it is "
                "the site that it was"
            )

    def _true(self, asked: frozenset[str]) -> frozenset[str]:
        """Return the sites whose store still says that it is the one that was asked (S2)."""
        if self._is_alone(self._electorate):
            # The only witness is the store that everything else is in.
            return asked
        sites = reachable(self._sites, asked)
        answers = self._runtime.scheduler.map(still_is, sites)
        return frozenset(site.uuid for site, same in zip(sites, answers, strict=True) if same)

    def _is_alone(self, electorate: Electorate) -> bool:
        return electorate.members() == {self._candidate.home.uuid}

    def _create_everywhere(self, key: str, made: Vote | Receipt) -> frozenset[str]:
        """Create one object at every witness; return where it is ours for certain."""
        encoded = encode_vote(made)
        refusals: dict[str, FwstoreError] = {}

        def create(site: Site) -> bool:
            try:
                return create_once(site.store, key, [encoded], site.bounded(self._runtime))
            except Unavailable:
                return False
            except UNHEARD as error:
                refusals[site.uuid] = error
                return False

        members = self._electorate.voters()
        sites = reachable(self._sites, members)
        answers = self._runtime.scheduler.map(create, sites)
        got = frozenset(site.uuid for site, ours in zip(sites, answers, strict=True) if ours)
        for uuid in got:
            self._ballots.note(uuid, key, made)
        if refusals and not self._electorate.majority(members - refusals.keys()):
            # Trying again would not help: credentials, or a full disk.
            raise next(iter(refusals.values()))
        return got

    def _read_ballots(self, keys: LineageKeys) -> None:
        """Read votes and receipts, and those of every witness set named in them, until none is new."""
        while True:
            known = self._electorate
            sites = reachable(self._sites, known.voters())
            self._ballots.read(sites, keys, self._runtime, alone=self._is_alone(known))
            self._electorate = known.joined(self._ballots)
            if self._electorate == known:
                break
        home = self._candidate.home
        refuse_retired(home, self._ballots.retired.get(home.uuid))
        if not self._electorate.majority(self._ballots.reached):
            self._refuse_strangers(keys)
            raise self._too_few(keys)

    def _too_few(self, keys: LineageKeys) -> FwstoreError:
        failures = self._ballots.failures.values()
        for error in failures:
            if not isinstance(error, Unavailable):
                return error
        reached, members = self._ballots.reached, self._electorate.members()
        why = "; ".join(sorted(error.message for error in failures))
        return Unavailable(
            f"too few witnesses of {keys.label} answer: {len(reached & members)} of {len(members)}"
            + (f" ({why})" if why else "")
        )

    def _refuse_strangers(self, keys: LineageKeys) -> None:
        """Refuse to wait for witnesses of whom none has an address: perhaps this is not the store it was."""
        for members in self._electorate.sets:
            if members.isdisjoint({*self._sites, *self._candidate.absent}):
                home = self._candidate.home
                raise Conflict(
                    f"{keys.label} in {home.store.url} takes its votes at site {', '.join(sorted(members))}, "
                    f"but the store says that it is site {home.uuid}: its {SITE_KEY} is not the one it was "
                    "created with; restore that, or open the store that the run belongs to"
                )

    def _back_off(self, attempt: int) -> None:
        pause_s = min(_BACKOFF_S * 2**attempt, _BACKOFF_MAX_S)
        self._runtime.clock.sleep(pause_s * (0.5 + self._runtime.ids.uniform()))

    # Step 1: fence.

    def _read_logs(self, lineage: Lineage) -> None:
        named = self._ballots.homes(self._term)
        gone = self._electorate.given_up(self._ballots)
        sites = [site for uuid, site in self._sites.items() if uuid not in gone]
        self._homes.read(sites, lineage, named)

    def _fence(self) -> None:
        self._homes.fence(self._term)

    # Step 3: the base.

    def _choose(self, wanted: str | None) -> _Choice:
        for _ in range(_BASES_TRIED):
            entries = self._candidates(wanted)
            for entry in entries:
                pinned = self._pin(entry)
                if pinned and self._candidate.loadable(entry):
                    return _Choice(entry, pinned)
                self._homes.unpin(pinned, self._term)
                if not pinned:
                    # It was expired or condemned between the choice and the pin: choose again.
                    break
            else:
                if entries:
                    raise Corrupt(
                        f"none of the {len(entries)} snapshots that {self._candidate.name} could continue "
                        "from can be loaded here; restore one from another site or begin a new run"
                    )
                return _Choice()
        raise Conflict(f"no snapshot of {self._candidate.name} stayed long enough to be pinned")

    def _candidates(self, wanted: str | None) -> list[SnapshotEntry]:
        folds = {uuid: log.fold for uuid, log in self._homes.logs.items()}
        receipts = [r for r in self._ballots.receipts.values() if r.term < self._term]
        view = view_of(folds, receipts)
        if wanted is None:
            chain = canonical_chain(view)
            if not chain:
                self._refuse_to_begin_anew(view)
            return chain
        if wanted in view.live:
            return [view.entries[wanted]]
        gone = any(wanted in fold.gone or wanted in fold.expired for fold in folds.values())
        raise (Expired if gone else NotFound)(f"{wanted} of {self._candidate.name} is not on offer")

    def _refuse_to_begin_anew(self, view: View) -> None:
        """Refuse to begin with nothing what others have begun where it cannot be read."""
        read = self._homes.logs.keys() | self._electorate.given_up(self._ballots)
        unread = {opened.home for opened in view.opens.values()} - read
        if not unread:
            return
        newest = view.opens[max(view.opens)]
        known = any(newest.base in log.fold.entries for log in self._homes.logs.values())
        if newest.home in unread or not (newest.base is None or known):
            raise Unavailable(
                f"{self._candidate.name} was begun at site {', '.join(sorted(unread))}, which does not answer, and "
                "no checkpoint of it is here: wait for that site, or retire it"
            )

    def _pin(self, entry: SnapshotEntry) -> list[Log]:
        return self._homes.pin(entry, self._term)

    # Steps 4 to 6: receipt, votes again, open.

    def _leave_receipt(self, lineage: Lineage, choice: _Choice) -> None:
        receipt = Receipt(
            term=self._term,
            lineage=lineage.lineage,
            home=self._candidate.home.uuid,
            base=choice.base.id if choice.base else None,
            write_id=self._write_id,
        )
        got = self._create_everywhere(lineage.keys.receipt(self._term), receipt)
        if not self._electorate.majority(got):
            raise Unavailable(f"too few witnesses of {lineage.keys.label} took the receipt")
        self._relied.append(got)

    def _check_votes(self, lineage: Lineage) -> None:
        self._read_ballots(lineage.keys)
        newest = max(self._electorate.won(self._ballots), default=0)
        if newest > self._term:
            raise Fenced(
                f"term {newest} of {lineage.keys.label} was won by another job while this one took term "
                f"{self._term}"
            )
        self._relied.append(self._ballots.reached)
        self._check_identities(lineage)

    def _open(self, choice: _Choice) -> Log:
        base = choice.base.id if choice.base else None
        body = Open(self._candidate.holder, self._candidate.home.uuid, base)
        home = self._homes.own
        if home.append(lambda _: body, term=self._term) is None:
            raise InternalError("an open was not appended")
        return home


def _uuid_at_birth(keys: LineageKeys, witnesses: Sequence[str]) -> str:
    """Return the uuid of a lineage that nobody has seen yet.

    Every candidate before the same witnesses comes to the same one. Were it random, two who win two terms while
    neither sees the votes of the other would give birth to two lineages.
    """
    return blake3("\n".join([keys.label, *witnesses]).encode()).hexdigest(length=16)
