"""Winning the next term of a run: election, fences, base, receipt, open.

Invariant: at most one process opens a term, and whoever opened a lower one can commit nothing more to a
log that was fenced. The order of steps is section 4 of docs/spec/log.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from fwstore.format.names import validate_name
from fwstore.format.record import AnyBody, Commit, Fence, Open, Pin, Unpin
from fwstore.format.summary import SnapshotEntry
from fwstore.format.vote import Receipt, Vote, encode_vote
from fwstore.log.fold import Fold, uses_of
from fwstore.log.history import canonical_chain, view_of
from fwstore.log.lineage import birth, claim_name, find, open_log
from fwstore.log.log import Log
from fwstore.log.packs import PackReader
from fwstore.log.site import Site
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
        sites: Further sites that can be reached.
        holder: Who that is, for people: host, process, job.
        read_packs: Lists the packs of a snapshot.
        loadable: Says whether a snapshot can serve as the base; it may load or verify it.
        kind: Of the lineage.
    """

    name: str
    home: Site
    witnesses: tuple[Site, ...]
    sites: tuple[Site, ...] = ()
    holder: str
    read_packs: PackReader
    loadable: Callable[[SnapshotEntry], bool] = _loadable
    kind: Kind = "run"


class Term:
    """The right to extend a run until a higher term fences it; made by `take_term`.

    Attributes:
        number: The fencing number.
        base: The snapshot that the term continues, or None for a new run.
        log: The home log.
    """

    def __init__(
        self, number: int, base: SnapshotEntry | None, log: Log, pinned: list[Log]
    ) -> None:
        self.number = number
        self.base = base
        self.log = log
        self._pinned = pinned

    @property
    def lineage(self) -> str:
        """Uuid of the run."""
        return self.log.lineage

    @property
    def keys(self) -> LineageKeys:
        """Where the run is."""
        return self.log.keys

    def commit(self, commit: Commit, packs: Iterable[str] | None = None) -> SnapshotEntry:
        """Append a snapshot whose packs and manifest are durable; a repeated call finds the first.

        Args:
            commit: The snapshot.
            packs: Keys of all packs of the run that its tables list; without them the tables are read back
                where its groups meet condemned ones.

        Raises:
            Fenced: A newer job owns the run.
            Conflict: It refers to condemned bytes, or the run was deleted.
            Unavailable: Whether it was committed is unknown; it may still appear.
        """

        def make(fold: Fold) -> AnyBody | None:
            return None if commit.snapshot in fold.entries else commit

        if packs is not None:
            self.log.know_packs(uses_of(commit), packs)
        self.log.append(make, term=self.number)
        self._unpin_base()
        return self.log.fold.entries[commit.snapshot]

    def check(self) -> None:
        """Read the log and see whether this term still holds.

        Raises:
            Fenced: A newer job owns the run.
        """
        fold = self.log.refresh()
        if fold.fence > self.number:
            raise Fenced(
                f"term {fold.fence} of {self.keys.label} belongs to a newer job; this writer has term "
                f"{self.number} and must stop"
            )

    def _unpin_base(self) -> None:
        for log in self._pinned:
            try:
                _unpin_bases(log, self.number)
            except FwstoreError:
                # The collector lifts base pins of terms that have committed.
                continue
        self._pinned = []


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
        known = (candidate.home, *candidate.witnesses, *candidate.sites)
        self._sites = {site.uuid: site for site in known}
        self._write_id = write_id(runtime.ids)
        self._ballots = Ballots()
        self._electorate = Electorate(frozenset())
        self._found: Lineage | None = None
        self._logs: dict[str, Log] = {}
        self._term = 0

    def run(self, base: str | None) -> Term:
        """Go through the steps of the protocol in their order."""
        lineage = self._identify()
        lineage = self._win(lineage)
        if self._found is None:
            birth(self._candidate.home.store, lineage, self._runtime)
        self._read_logs(lineage)
        self._fence()
        self._read_ballots(lineage.keys)
        choice = self._choose(base)
        self._leave_receipt(lineage, choice)
        self._check_votes(lineage)
        home = self._open(choice)
        return Term(self._term, choice.base, home, choice.pinned)

    # Who is it?

    def _identify(self) -> Lineage:
        """Find the lineage, or describe the one that is about to be born."""
        candidate, runtime = self._candidate, self._runtime
        store = candidate.home.store
        found = find(store, validate_name(candidate.name))
        generation = 1
        if found is not None:
            log = open_log(store, found, runtime, candidate.read_packs)
            if log.refresh().closed is None:
                self._found = found
                self._logs[candidate.home.uuid] = log
                return found
            generation = found.generation + 1
        else:
            claim_name(store, candidate.name, runtime)
        witnesses = tuple(sorted(site.uuid for site in candidate.witnesses))
        return Lineage(
            name=candidate.name,
            generation=generation,
            lineage=_uuid_at_birth(LineageKeys(candidate.name, generation), witnesses),
            kind=candidate.kind,
            witnesses=witnesses,
            time=runtime.clock.wall(),
        )

    # Step 0: win a term number.

    def _win(self, lineage: Lineage) -> Lineage:
        topology = frozenset(site.uuid for site in self._candidate.witnesses)
        self._electorate = Electorate(frozenset({topology, frozenset(lineage.witnesses)}))
        for attempt in range(_ATTEMPTS):
            self._read_ballots(lineage.keys)
            lineage = self._adopt(lineage)
            term = max(self._ballots.newest_term(), self._newest_logged()) + 1
            if self._vote(lineage, term):
                self._term = term
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

    def _newest_logged(self) -> int:
        return max((log.fold.newest_term for log in self._logs.values()), default=0)

    def _vote(self, lineage: Lineage, term: int) -> bool:
        vote = Vote(
            term=term,
            lineage=lineage.lineage,
            holder=self._candidate.holder,
            home=self._candidate.home.uuid,
            witnesses=tuple(sorted(site.uuid for site in self._candidate.witnesses)),
            write_id=self._write_id,
        )
        got = self._create_everywhere(lineage.keys.vote(term), vote)
        return self._electorate.majority(got)

    def _create_everywhere(self, key: str, made: Vote | Receipt) -> frozenset[str]:
        """Create one object at every witness; return where it is ours for certain."""
        encoded = encode_vote(made)

        def create(site: Site) -> bool:
            try:
                return create_once(site.store, key, [encoded], self._runtime)
            except Unavailable:
                return False

        sites = reachable(self._sites, self._electorate.members())
        answers = self._runtime.scheduler.map(create, sites)
        got = frozenset(site.uuid for site, ours in zip(sites, answers, strict=True) if ours)
        for uuid in got:
            self._ballots.note(uuid, key, made)
        return got

    def _read_ballots(self, keys: LineageKeys) -> None:
        """Read votes and receipts, and those of every witness set named in them, until none is new."""
        while True:
            known = self._electorate
            sites = reachable(self._sites, known.members())
            self._ballots.read(sites, keys, self._runtime)
            self._electorate = known.joined(self._ballots)
            if self._electorate == known:
                break
        if not self._electorate.majority(self._ballots.reached):
            self._refuse_strangers(keys)
            raise Unavailable(
                f"too few witnesses of {keys.label} answer: {len(self._ballots.reached)} of "
                f"{len(self._electorate.members())}"
            )

    def _refuse_strangers(self, keys: LineageKeys) -> None:
        """Refuse to wait for witnesses of whom none has an address: perhaps this is not the store it was."""
        for members in self._electorate.sets:
            if members.isdisjoint(self._sites):
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
        """Read the log of every reachable site that votes or opens name as a home."""
        homes = self._ballots.homes(self._term) | {self._candidate.home.uuid}
        homes |= self._opened_at()
        tried = frozenset(self._logs)
        while homes - tried:
            for site in reachable(self._sites, homes - tried):
                self._read_log(site, lineage)
            tried |= homes
            homes |= self._opened_at()

    def _opened_at(self) -> frozenset[str]:
        logs = self._logs.values()
        return frozenset(opened.home for log in logs for opened in log.fold.opens.values())

    def _read_log(self, site: Site, lineage: Lineage) -> None:
        log = open_log(site.store, lineage, self._runtime, self._candidate.read_packs)
        try:
            log.refresh()
        except Unavailable:
            if site.uuid == self._candidate.home.uuid:
                raise
            return
        self._logs[site.uuid] = log

    def _fence(self) -> None:
        """Fence every home; a log that cannot be fenced offers no base."""

        def fence(fold: Fold) -> AnyBody | None:
            return Fence() if fold.fence < self._term else None

        for uuid, log in tuple(self._logs.items()):
            try:
                log.append(fence, term=self._term)
            except Unavailable:
                if uuid == self._candidate.home.uuid:
                    raise
                del self._logs[uuid]

    # Step 3: the base.

    def _choose(self, wanted: str | None) -> _Choice:
        for _ in range(_BASES_TRIED):
            entries = self._candidates(wanted)
            for entry in entries:
                pinned = self._pin(entry)
                if pinned and self._candidate.loadable(entry):
                    return _Choice(entry, pinned)
                for log in pinned:
                    _unpin_bases(log, self._term)
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
        folds = {uuid: log.fold for uuid, log in self._logs.items()}
        receipts = [r for r in self._ballots.receipts.values() if r.term < self._term]
        view = view_of(folds, receipts)
        if wanted is None:
            return canonical_chain(view)
        if wanted in view.live:
            return [view.entries[wanted]]
        gone = any(wanted in fold.gone or wanted in fold.expired for fold in folds.values())
        raise (Expired if gone else NotFound)(f"{wanted} of {self._candidate.name} is not on offer")

    def _pin(self, entry: SnapshotEntry) -> list[Log]:
        """Pin a snapshot in every log that offers it; return those logs."""
        token = write_id(self._runtime.ids)

        def pin(fold: Fold) -> AnyBody | None:
            if entry.id not in fold.entries or entry.id in fold.expired:
                return None
            return Pin(
                pin=token,
                snapshot=entry.id,
                reason=f"base of term {self._term}",
                base_of=self._term,
            )

        pinned = []
        for uuid, log in self._logs.items():
            try:
                if log.append(pin, term=self._term) is not None:
                    pinned.append(log)
            except (NotFound, Conflict):
                # Collected or condemned meanwhile: this log does not offer it any more.
                continue
            except Unavailable:
                if uuid == self._candidate.home.uuid:
                    raise
        return pinned

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

    def _check_votes(self, lineage: Lineage) -> None:
        self._read_ballots(lineage.keys)
        newest = max(self._electorate.won(self._ballots), default=0)
        if newest > self._term:
            raise Fenced(
                f"term {newest} of {lineage.keys.label} was won by another job while this one took term "
                f"{self._term}"
            )

    def _open(self, choice: _Choice) -> Log:
        base = choice.base.id if choice.base else None
        body = Open(self._candidate.holder, self._candidate.home.uuid, base)
        home = self._logs[self._candidate.home.uuid]
        if home.append(lambda _: body, term=self._term) is None:
            raise InternalError("an open was not appended")
        return home


def _uuid_at_birth(keys: LineageKeys, witnesses: Sequence[str]) -> str:
    """Return the uuid of a lineage that nobody has seen yet.

    Every candidate before the same witnesses comes to the same one. Were it random, two who win two terms while
    neither sees the votes of the other would give birth to two lineages.
    """
    return blake3("\n".join([keys.label, *witnesses]).encode()).hexdigest(length=16)


def _unpin_bases(log: Log, term: int) -> None:
    """Lift the base pins of a term in a log."""

    def unpin(fold: Fold) -> AnyBody | None:
        pins = [pin.pin for pin in fold.pins.values() if pin.base_of == term]
        return Unpin(pins[0]) if pins else None

    while log.append(unpin, term=term) is not None:
        continue
