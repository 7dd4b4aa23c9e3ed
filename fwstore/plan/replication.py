"""What a site should copy of one lineage, in which order and from where, decided without I/O.

Invariant: what is here, or was given up here, is never copied; of what is wanted the newest canonical snapshot
comes first; everything known that is not copied says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from fwstore.format.summary import SnapshotEntry


class Policy(Protocol):
    """Which snapshots of a lineage a site wants; `fwstore.base.topology.PolicyConfig` is one."""

    @property
    def every(self) -> int:
        """Every so manyth save of the canonical chain."""
        ...

    @property
    def tails(self) -> bool:
        """Also what is on offer beside the chain."""
        ...

    @property
    def pins(self) -> bool:
        """Pinned and tagged snapshots always."""
        ...


class Priority(IntEnum):
    """What is copied before what."""

    NEWEST = 0
    MARKED = 1
    HISTORY = 2
    TAIL = 3


@dataclass(frozen=True, slots=True)
class Everything:
    """The policy of a site for which none is written down."""

    every: int = 1
    tails: bool = True
    pins: bool = True


@dataclass(frozen=True, kw_only=True)
class Known:
    """What one site knows of a lineage, its own log and those of others.

    Attributes:
        chain: The canonical chain over all logs, newest first, as far as it is on offer somewhere.
        offers: What every source has on offer, by its uuid; the nearest source first.
        here: Ids of snapshots of which all is here, on offer or not.
        begun: Ids of those that were committed here and are not complete here: wanted, whatever the policy says.
        gone: Ids of those that were given up here, with how.
        marked: Ids of those that somebody pinned or tagged, with why.
    """

    chain: Sequence[SnapshotEntry]
    offers: Mapping[str, Mapping[str, SnapshotEntry]]
    here: Collection[str]
    begun: Collection[str] = ()
    gone: Mapping[str, str]
    marked: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A snapshot to copy.

    Attributes:
        snapshot: Its id.
        step: Its step.
        priority: When it is its turn.
        reason: Why it is wanted.
        offers: Uuids of the sources that have it, and how their logs tell of it; the nearest first.
    """

    snapshot: str
    step: int
    priority: Priority
    reason: str
    offers: tuple[tuple[str, SnapshotEntry], ...]

    @property
    def entry(self) -> SnapshotEntry:
        """The snapshot as the nearest source tells of it."""
        return self.offers[0][1]


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A snapshot that is not here and will not be copied, and why."""

    snapshot: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicationPlan:
    """What to copy, in order, and what not."""

    transfers: tuple[Transfer, ...]
    passed_over: tuple[PassedOver, ...]


def plan_replication(known: Known, policy: Policy | None) -> ReplicationPlan:
    """Return what to copy to a site, in order.

    Args:
        known: What the site knows.
        policy: Which snapshots it wants; None for none of this lineage.
    """
    transfers: list[Transfer] = []
    passed: list[PassedOver] = []
    marked = known.marked if policy is not None and policy.pins else {}
    for entry, priority, reason in _by_turn(known, marked):
        if entry.id in known.here and entry.id not in known.gone:
            continue
        refusal = known.gone.get(entry.id)
        if refusal is None and entry.id not in known.begun:
            refusal = _unwanted(policy, entry, priority)
        if refusal:
            passed.append(PassedOver(entry.id, entry.step, refusal))
        else:
            offers = _offers_of(known, entry.id)
            transfers.append(Transfer(entry.id, entry.step, priority, reason, offers))
    transfers.sort(key=lambda transfer: transfer.priority)
    return ReplicationPlan(tuple(transfers), tuple(passed))


def _by_turn(
    known: Known, marked: Mapping[str, str]
) -> Iterator[tuple[SnapshotEntry, Priority, str]]:
    """Yield every snapshot that a source offers, newest first, with what it is worth."""
    offered = {name: entry for offers in known.offers.values() for name, entry in offers.items()}
    chain = [entry.id for entry in known.chain]
    position = {name: number for number, name in enumerate(chain)}
    newest_first = sorted(offered.values(), key=lambda entry: (entry.term, entry.save))[::-1]
    for entry in sorted(newest_first, key=lambda entry: position.get(entry.id, len(chain))):
        if chain[:1] == [entry.id]:
            yield entry, Priority.NEWEST, "newest"
        elif entry.id in marked:
            yield entry, Priority.MARKED, marked[entry.id]
        elif entry.id in position:
            yield entry, Priority.HISTORY, "canonical history"
        else:
            yield entry, Priority.TAIL, f"tail of term {entry.term}"


def _unwanted(policy: Policy | None, entry: SnapshotEntry, priority: Priority) -> str | None:
    """Return why a policy does not want a snapshot, or None when it does."""
    if policy is None:
        return "no policy sends this run here"
    if priority in (Priority.NEWEST, Priority.MARKED):
        return None
    if priority == Priority.TAIL:
        return None if policy.tails else "the policy leaves tails where they are"
    # By the number of the save, so that what comes later changes nothing of what is wanted before it.
    wanted = entry.save % policy.every == 0
    return (
        None
        if wanted
        else f"the policy wants every {policy.every}th save, and this is {entry.save}"
    )


def _offers_of(known: Known, snapshot: str) -> tuple[tuple[str, SnapshotEntry], ...]:
    offering = [
        (site, found[snapshot]) for site, found in known.offers.items() if snapshot in found
    ]
    # Who has all of it first.
    return tuple(sorted(offering, key=lambda offer: bool(offer[1].holds)))
