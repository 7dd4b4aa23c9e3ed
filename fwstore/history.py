"""The reading half of a run: its checkpoints, its branches and its log.

Invariant: what is listed is on the canonical chain as all sites that answered told of it during that call; reading needs
no right to write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from fwstore.base.clock import Clock
from fwstore.base.errors import Expired, InvalidInput, NotFound, Unavailable
from fwstore.base.units import parse_duration
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.format.keys import parse_snapshot_id
from fwstore.format.record import Record, encode_record
from fwstore.format.summary import SnapshotEntry
from fwstore.log.history import branches, canonical_chain, term_lines, with_term_after
from fwstore.wan.chronicle import Account

D = TypeVar("D")
_RAISE: Any = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One record of a run's log, for people and tools; one that does not count changed nothing."""

    sequence: int
    kind: str
    term: int
    wall_time: float
    counts: bool
    note: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinDescription:
    """A pin that keeps a checkpoint."""

    id: str
    step: int
    reason: str
    wall_time: float


@dataclass(frozen=True, kw_only=True)
class BranchDescription:
    """Checkpoints that a later job left behind, newest first."""

    name: str
    term: int
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, kw_only=True)
class TermDescription:
    """One job that extended the run, and what it saved that is on offer, oldest first.

    Attributes:
        number: The term.
        holder: Who opened it, for people.
        home: Uuid of the site whose log it writes.
        base: Id of the snapshot that it continues, or None.
        after: The newest checkpoint on offer at the base or before it, or None.
        wall_time: Seconds since the Unix epoch at the open, for display.
        checkpoints: Those of the canonical history.
        tail: Those that a later term left behind.
    """

    number: int
    holder: str
    home: str
    base: str | None
    after: Checkpoint | None
    wall_time: float
    checkpoints: tuple[Checkpoint, ...]
    tail: tuple[Checkpoint, ...]


class Library(Protocol):
    """What reading a run needs of its repository."""

    def find(self, name: str) -> Access | None:
        """Return the newest generation of a run, or None."""
        ...

    def account(self, access: Access) -> Account:
        """Return what all sites that answer tell of a run."""
        ...

    def through(self, access: Access) -> Access:
        """Return what reads a run also where other sites have it."""
        ...


class RunHistory:
    """What can be read of a run.

    Args:
        name: Of the run.
        url: Of the repository, for people.
        clock: For those who wait.
        library: Where the run is.
    """

    def __init__(self, name: str, url: str, clock: Clock, library: Library) -> None:
        self._name = name
        self._url = url
        self._clock = clock
        self._library = library

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._name

    def exists(self) -> bool:
        """Return whether the run was created and not deleted."""
        access = self._library.find(self._name)
        return access is not None and access.log.refresh().closed is None

    def latest(self, default: D = _RAISE, *, elsewhere: bool = False) -> Checkpoint | D:
        """Return the newest checkpoint of the canonical history that is complete here.

        Args:
            default: Returned instead of raising when there is none.
            elsewhere: Also one that only other sites have; it loads from there.

        Raises:
            NotFound: The run has no checkpoint.
        """
        found = self._checkpoints_or_none(elsewhere=elsewhere)
        if found:
            return found[-1]
        if default is not _RAISE:
            return default
        self._access()
        raise NotFound(f"run {self.name} in {self._url} has no checkpoint yet")

    def __getitem__(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step; where it is not complete here, one that loads from another site.

        Raises:
            NotFound: No checkpoint of that step is on offer; `Expired` when there was one.
            InvalidInput: The step is no whole number.
        """
        if not hasattr(step, "__index__"):
            raise InvalidInput(
                f"a checkpoint of run {self.name} is named by its step, not by {step!r}"
            )
        listing = self._listing()
        chain = canonical_chain(listing.account.view)
        same = [entry for entry in chain if entry.step == step]
        # Here, if any of them is here: a step may have been saved twice.
        same.sort(key=lambda entry: not listing.account.is_here(entry.id))
        if same:
            return listing.checkpoint(same[0])
        fold = listing.account.own
        collected = {parse_snapshot_id(name).step for name in tuple(fold.gone)}
        expired = any(e.step == step and e.id in fold.expired for e in tuple(fold.entries.values()))
        gone = expired or step in collected
        steps = [entry.step for entry in chain]
        kind = Expired if gone else NotFound
        raise kind(
            f"run {self.name} has no checkpoint of step {step}"
            + (": retention removed it" if gone else "")
            + (f"; it has {_shown(sorted(steps))}" if steps else "")
        )

    def checkpoints(self, *, elsewhere: bool = False) -> list[Checkpoint]:
        """Return the canonical history, oldest first; of a step saved twice the newer one.

        Args:
            elsewhere: Also those that are not complete here; they load from other sites.

        Raises:
            NotFound: The run does not exist.
        """
        listing = self._listing()
        newest: dict[int, SnapshotEntry] = {}
        for entry in canonical_chain(listing.account.view):
            if elsewhere or listing.account.is_here(entry.id):
                newest.setdefault(entry.step, entry)
        return list(listing.checkpoints(newest[step] for step in sorted(newest)))

    def unheard(self) -> tuple[str, ...]:
        """Return the sites that do not answer now: with them there may be more than is listed, and newer."""
        return self._listing().account.unheard

    def branches(self) -> list[BranchDescription]:
        """Return what is on offer, here or elsewhere, beside the canonical history: tails of jobs that were superseded."""
        return self._listing().branches()

    def terms(self) -> list[TermDescription]:
        """Return the jobs that extended the run, oldest first."""
        listing = self._listing()
        return [
            TermDescription(
                number=line.opened.term,
                holder=line.opened.holder,
                home=line.opened.home,
                base=line.opened.base,
                after=None if line.after is None else listing.checkpoint(line.after),
                wall_time=line.opened.wall_time,
                checkpoints=listing.checkpoints(line.kept),
                tail=listing.checkpoints(line.left),
            )
            for line in term_lines(listing.account.view)
        ]

    def superseded_by(self, branch: str) -> list[Checkpoint]:
        """Return what would leave the canonical history if a branch were promoted, newest first.

        Raises:
            NotFound: There is no branch of that name.
        """
        listing = self._listing()
        head, view = self._head_of(branch, listing), listing.account.view
        stays = {entry.id for entry in canonical_chain(with_term_after(view, head.id))}
        return list(listing.checkpoints(e for e in canonical_chain(view) if e.id not in stays))

    def log(self) -> Iterator[LogEntry]:
        """Yield the records of the log, oldest first."""
        for record, counts in self._access().log.judged():
            yield _log_entry(record, counts=counts)

    def pins(self) -> list[PinDescription]:
        """Return the pins that keep checkpoints."""
        fold = self._access().log.refresh()
        return [
            PinDescription(
                id=pin.pin,
                step=fold.entries[pin.snapshot].step,
                reason=pin.reason,
                wall_time=pin.wall_time,
            )
            for pin in tuple(fold.pins.values())
            if pin.snapshot in fold.entries
        ]

    def watch(
        self,
        *,
        after: int | None = None,
        every: bool = False,
        poll: str | float = "5s",
        timeout: str | float | None = None,
    ) -> Iterator[Checkpoint]:
        """Yield checkpoints as they are committed, for jobs that evaluate while training goes on.

        Args:
            after: Only steps greater than this one.
            every: Yield all in the order of their commits, those that exist first; else begin with the newest
                there is, and leave out what was overtaken while the last one was looked at.
            poll: Pause between two looks at the log.
            timeout: End when nothing new was found for so long; the time that the caller takes over a checkpoint
                does not count. None waits until the run is deleted.
        """
        clock = self._clock
        pause, patience = parse_duration(poll), _patience(timeout)
        floor = -1 if after is None else after
        seen, last = (0, 0), clock.monotonic()
        lineage = self._watched("")
        while lineage is not None:
            # By the order of commits: a job that went back to an older base saves lower steps anew.
            found = [c for c in self._checkpoints_or_none() if c.step > floor and _age(c) > seen]
            found.sort(key=_age)
            for checkpoint in found if every else found[-1:]:
                seen = _age(checkpoint)
                yield checkpoint
                last = clock.monotonic()
            left = last + patience - clock.monotonic()
            if left <= 0:
                return
            clock.sleep(min(pause, left))
            lineage = self._watched(lineage)

    def wait(
        self, step: int, *, timeout: str | float | None = None, poll: str | float = "1s"
    ) -> Checkpoint:
        """Wait until a step is committed.

        Raises:
            Expired: It was, and was removed before this call saw it.
            NotFound: The run was deleted meanwhile.
            Unavailable: The time ran out first.
        """
        clock, pause = self._clock, parse_duration(poll)
        deadline = clock.monotonic() + _patience(timeout)
        lineage = self._watched("")
        while lineage is not None:
            found = self._reached(step)
            if found is not None:
                return found
            left = deadline - clock.monotonic()
            if left <= 0:
                raise Unavailable(f"step {step} of run {self.name} was not committed in {timeout}")
            clock.sleep(min(pause, left))
            lineage = self._watched(lineage)
        raise NotFound(f"run {self.name} was deleted while its step {step} was awaited")

    def _head_of(self, branch: str, listing: _Listing) -> Checkpoint:
        found = {one.name: one.checkpoints[0] for one in listing.branches()}
        if branch not in found:
            has = f"it has {', '.join(found)}" if found else "nothing was left behind"
            raise NotFound(f"run {self.name} has no branch {branch!r}: {has}")
        return found[branch]

    def _reached(self, step: int) -> Checkpoint | None:
        """Return the checkpoint of a step, or None while it may still come."""
        try:
            return self[step]
        except Expired:
            # A job that went back to an older base comes to the step again.
            newest = self.latest(None)
            if newest is not None and newest.step > step:
                raise
        except NotFound:
            # It is not there yet, nor perhaps the run.
            return None
        return None

    def _access(self) -> Access:
        access = self._library.find(self._name)
        if access is None or access.log.refresh().closed is not None:
            raise NotFound(f"there is no run {self.name} in {self._url}")
        return access

    def _listing(self) -> _Listing:
        access = self._access()
        return _Listing(access, self._library.account(access), self._library)

    def _checkpoints_or_none(self, *, elsewhere: bool = False) -> list[Checkpoint]:
        try:
            return self.checkpoints(elsewhere=elsewhere)
        except NotFound:
            return []

    def _watched(self, before: str) -> str | None:
        """Return the lineage that is watched: "" before it exists, None after it was deleted."""
        access = self._library.find(self._name)
        if access is None:
            return before
        if access.log.refresh().closed is not None:
            # One that was deleted before this watch began is as if it had never been.
            return None if before else ""
        return access.lineage if before in ("", access.lineage) else None


@dataclass
class _Listing:
    """What one call lists from."""

    access: Access
    account: Account
    library: Library
    far: Access | None = None

    def checkpoint(self, entry: SnapshotEntry) -> Checkpoint:
        """Return a checkpoint that is read here if it is here, else from the sites that have it."""
        where = self.account.where.get(entry.id, ())
        if self.account.is_here(entry.id):
            return Checkpoint(self.access, entry, sites=where)
        if self.far is None:
            self.far = self.library.through(self.access)
        return Checkpoint(self.far, entry, sites=where, elsewhere=True)

    def checkpoints(self, entries: Iterable[SnapshotEntry]) -> tuple[Checkpoint, ...]:
        """Return some checkpoints, in their order."""
        return tuple(self.checkpoint(entry) for entry in entries)

    def branches(self) -> list[BranchDescription]:
        """Return what is on offer beside the canonical history."""
        return [
            BranchDescription(
                name=branch.name,
                term=branch.term,
                checkpoints=self.checkpoints(branch.snapshots),
            )
            for branch in branches(self.account.view)
        ]


def _patience(timeout: str | float | None) -> float:
    return math.inf if timeout is None else parse_duration(timeout)


def _age(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return what grows with every commit of a run."""
    return checkpoint.entry.term, checkpoint.entry.save


def _log_entry(record: Record, *, counts: bool) -> LogEntry:
    body = msgspec.json.decode(encode_record(record))["body"]
    return LogEntry(
        sequence=record.seq,
        kind=record.kind,
        term=record.term,
        wall_time=record.time,
        counts=counts,
        note=_note(body),
        body=body,
    )


def _note(body: Mapping[str, Any]) -> str:
    shown = (
        "step",
        "snapshot",
        "snapshots",
        "base",
        "holder",
        "reason",
        "tag",
        "pin",
        "count",
        "bytes",
    )
    return ", ".join(f"{key} {body[key]}" for key in shown if body.get(key) not in (None, "", ()))


def _shown(steps: list[int]) -> str:
    listed = ", ".join(map(str, steps[-8:]))
    return f"steps {listed}" if len(steps) <= 8 else f"steps ..., {listed}"
