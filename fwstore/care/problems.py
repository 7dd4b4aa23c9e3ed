"""What verification found, as values.

Invariant: a problem names the object that is damaged and what is lost with it: a step, and a tensor of
that step or all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fwstore.base.errors import Corrupt, FwstoreError, NotFound
from fwstore.store.base import ObjectInfo

_OWN = "only packs and manifests that lack what proves them are brought from other sites"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, as far as it reaches into one checkpoint.

    Attributes:
        run: Name of the run.
        step: The checkpoint that is hit; None where no single one is, as for a slot of the log.
        key: The damaged object.
        tensor: The tensor that cannot be loaded; None where the message says what is hit.
        message: What happened and what to do.
        code: The `code` of the error that a reader of the object gets.
        snapshot: Id of the checkpoint that is hit.
        healed: The object was made whole again.
    """

    run: str
    step: int | None
    key: str
    tensor: str | None
    message: str
    code: str
    snapshot: str | None = None
    healed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of one object that was damaged or missing.

    Attributes:
        run: Name of the run.
        key: The object.
        healed: It was written again, read again, and is what was written at first.
        sites: Names of the sites that its bytes came from; none where another process had healed it meanwhile.
        reason: Why it could not be healed; empty where it was.
        quarantined: Where its bad bytes are kept; None where it was missing, or where enough of it is kept.
    """

    run: str
    key: str
    healed: bool = False
    sites: tuple[str, ...] = ()
    reason: str = ""
    quarantined: str | None = None

    def failed(self, reason: str) -> Repair:
        """Return the same as a failure."""
        return replace(self, healed=False, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification looked at and what it found.

    Attributes:
        checkpoints: Checkpoints whose objects were checked.
        objects: Objects that were read or looked up, each once.
        chunks: Chunks that were read and compared with their digests.
        bytes_read: Bytes that were read.
        problems: By checkpoint, in the order of the log; empty when all was well.
        repairs: With `repair=True` what became of every object that has a problem.
        quarantined: Bad bytes that repairs have kept, now or before.
    """

    checkpoints: int = 0
    objects: int = 0
    chunks: int = 0
    bytes_read: int = 0
    problems: tuple[Problem, ...] = ()
    repairs: tuple[Repair, ...] = ()
    quarantined: tuple[ObjectInfo, ...] = ()

    @property
    def left(self) -> tuple[Problem, ...]:
        """The problems that are still there."""
        return tuple(problem for problem in self.problems if not problem.healed)


def settle(report: VerifyReport) -> VerifyReport:
    """Return a report in which every problem says whether it is healed, and every object what became of it."""
    healed = {repair.key for repair in report.repairs if repair.healed}
    known = {repair.key for repair in report.repairs}
    others = {p.key: Repair(run=p.run, key=p.key, reason=_OWN) for p in report.problems}
    return replace(
        report,
        problems=tuple(replace(p, healed=p.key in healed) for p in report.problems),
        repairs=(*report.repairs, *(r for key, r in others.items() if key not in known)),
    )


def join_reports(reports: Iterable[VerifyReport]) -> VerifyReport:
    """Return the reports of several runs as one."""
    found = list(reports)
    return VerifyReport(
        checkpoints=sum(report.checkpoints for report in found),
        objects=sum(report.objects for report in found),
        chunks=sum(report.chunks for report in found),
        bytes_read=sum(report.bytes_read for report in found),
        problems=tuple(problem for report in found for problem in report.problems),
        repairs=tuple(repair for report in found for repair in report.repairs),
    )


def explain(error: FwstoreError, key: str, url: str) -> tuple[str, str]:
    """Return message and code for an object that could not be read and should be there."""
    if isinstance(error, NotFound):
        return f"{key} is missing in {url}: restore it from another copy", Corrupt.code
    return str(error), error.code
