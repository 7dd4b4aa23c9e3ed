"""How far a site is behind, told in steps, bytes and seconds; decided without I/O.

Invariant: a snapshot that is wanted at a site and not there is counted exactly once, in the bucket of its age.
Times are those of records, by the clocks of whoever wrote them: for display, never for a decision.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fwstore.format.summary import SnapshotEntry
from fwstore.plan.replication import ReplicationPlan, Transfer

# Upper edges of the buckets of age.
AGES_S: Mapping[str, float] = {
    "1min": 60.0,
    "10min": 600.0,
    "1h": 3600.0,
    "1d": 86_400.0,
    "older": float("inf"),
}
_MEASURED = 16
_SHORTEST_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A snapshot that is wanted at a site and not there.

    Attributes:
        snapshot: Its id.
        step: Its step.
        reason: Why it is wanted.
        age_s: Seconds since it was saved.
        bytes_new: Bytes that were written for it, where it was saved.
        bytes_logical: Bytes of its tensors.
    """

    snapshot: str
    step: int
    reason: str
    age_s: float
    bytes_new: int
    bytes_logical: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeBucket:
    """What is missing of one age.

    Attributes:
        age: At most so old.
        checkpoints: How many.
        bytes_new: Their bytes.
    """

    age: str
    checkpoints: int
    bytes_new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far one site is behind with one run.

    Attributes:
        run: Name of the run.
        site: Name of the site.
        newest_step: Of the canonical history, wherever that is; None where nothing was saved.
        newest_there: The newest step of it that is complete at the site.
        missing: What is wanted there and is not, the next one to come first.
        ages: The same by age.
        bytes_per_second: What arrived lately, by the records of the site; None where nothing did.
        forecast_s: When nothing would be missing if nothing else were saved; None where it cannot be told.
    """

    run: str
    site: str
    newest_step: int | None
    newest_there: int | None
    missing: tuple[Missing, ...]
    ages: tuple[AgeBucket, ...]
    bytes_per_second: float | None
    forecast_s: float | None

    @property
    def bytes_missing(self) -> int:
        """Bytes that were written for what is missing."""
        return sum(one.bytes_new for one in self.missing)


@dataclass(frozen=True, kw_only=True)
class SiteView:
    """What is known of one site and one run.

    Attributes:
        run: Name of the run.
        site: Name of the site.
        chain: The canonical history over all sites, newest first.
        there: What the site has on offer, by id.
        saved: What any site tells of a snapshot, by id: when and where it was saved.
        plan: What the site would copy.
    """

    run: str
    site: str
    chain: Sequence[SnapshotEntry]
    there: Mapping[str, SnapshotEntry]
    saved: Mapping[str, SnapshotEntry]
    plan: ReplicationPlan


def lag_of(view: SiteView, now: float) -> Lag:
    """Return how far a site is behind.

    Args:
        view: What is known of it.
        now: Seconds since the Unix epoch.
    """
    missing = tuple(
        _missing(transfer, view.saved.get(transfer.snapshot, transfer.entry), now)
        for transfer in view.plan.transfers
    )
    rate = measured_rate(view.there, view.saved)
    there = [entry.step for entry in view.chain if entry.id in view.there]
    wanted = sum(one.bytes_new for one in missing)
    return Lag(
        run=view.run,
        site=view.site,
        newest_step=view.chain[0].step if view.chain else None,
        newest_there=there[0] if there else None,
        missing=missing,
        ages=_by_age(missing),
        bytes_per_second=rate,
        forecast_s=0.0 if not missing else wanted / rate if rate else None,
    )


def measured_rate(
    there: Mapping[str, SnapshotEntry], saved: Mapping[str, SnapshotEntry]
) -> float | None:
    """Return the bytes per second at which snapshots arrived lately, the median of some; None where none did.

    A snapshot was under way from when it was saved, or from when the one before it had arrived.
    """
    arrived = sorted((e for e in there.values() if e.source is not None), key=lambda e: e.seq)
    rates: list[float] = []
    for before, entry in zip([None, *arrived], arrived, strict=False):
        begun = max(
            saved[entry.id].wall_time if entry.id in saved else 0.0,
            0.0 if before is None else before.wall_time,
        )
        if entry.bytes_written and begun:
            rates.append(entry.bytes_written / max(entry.wall_time - begun, _SHORTEST_S))
    return statistics.median(rates[-_MEASURED:]) if rates else None


def _missing(transfer: Transfer, entry: SnapshotEntry, now: float) -> Missing:
    return Missing(
        snapshot=transfer.snapshot,
        step=transfer.step,
        reason=transfer.reason,
        age_s=max(0.0, now - entry.wall_time),
        bytes_new=entry.bytes_written,
        bytes_logical=entry.bytes_logical,
    )


def _by_age(missing: Sequence[Missing]) -> tuple[AgeBucket, ...]:
    buckets: dict[str, list[Missing]] = {age: [] for age in AGES_S}
    for one in missing:
        buckets[next(age for age, edge in AGES_S.items() if one.age_s <= edge)].append(one)
    return tuple(
        AgeBucket(age=age, checkpoints=len(found), bytes_new=sum(one.bytes_new for one in found))
        for age, found in buckets.items()
    )
