"""What a round of replication has to tell, as plain values.

Invariant: whatever is wanted and is not here stands in a report with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwstore.base.errors import FwstoreError
from fwstore.plan.replication import PassedOver, ReplicationPlan, Transfer


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A snapshot that was brought here.

    Attributes:
        run: Name of the run.
        snapshot: Its id.
        step: Its step.
        source: Name of the site that its record names.
        packs: Packs copied.
        bytes_received: Bytes asked of other sites for them.
        seconds: How long it took.
    """

    run: str
    snapshot: str
    step: int
    source: str
    packs: int
    bytes_received: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that did not work.

    Attributes:
        run: Name of the run; empty where it is about a whole site.
        site: Name of the site; empty where it is about a snapshot.
        snapshot: Its id; empty where it is about a log or a site.
        error: What was raised.
    """

    run: str = ""
    site: str = ""
    snapshot: str = ""
    error: FwstoreError

    @property
    def alike(self) -> tuple[str, str, str, str]:
        """What is the same for the same trouble at another time."""
        return self.run, self.site, self.snapshot, self.error.message


@dataclass(frozen=True, kw_only=True)
class LineagePlan:
    """What is to be copied of one run."""

    run: str
    plan: ReplicationPlan


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What a round would do.

    Attributes:
        runs: What is to be copied, run by run.
        troubles: What could not be looked at: there may be more to copy.
    """

    runs: tuple[LineagePlan, ...] = ()
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReplicationReport:
    """What one round did.

    Attributes:
        copied: Snapshots brought here, in order.
        left: What is wanted and did not come, for the reasons in `troubles`.
        passed_over: What is not wanted, or was given up here, by run.
        troubles: What did not work.
        withdrawn: Intents that were ended because their snapshot is gone everywhere.
        fenced: Runs whose own log was fenced late.
        more: The time was over before everything had its turn.
    """

    copied: tuple[Copied, ...] = ()
    left: tuple[tuple[str, Transfer], ...] = ()
    passed_over: tuple[tuple[str, PassedOver], ...] = ()
    troubles: tuple[Trouble, ...] = ()
    withdrawn: int = 0
    fenced: tuple[str, ...] = ()
    more: bool = False
