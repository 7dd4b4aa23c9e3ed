"""What verification found, as values.

Invariant: a problem names the object that is damaged and what is lost with it: a step, and a tensor of
that step or all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fwstore.base.errors import Corrupt, FwstoreError, NotFound


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
    """

    run: str
    step: int | None
    key: str
    tensor: str | None
    message: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification looked at and what it found.

    Attributes:
        checkpoints: Checkpoints whose objects were checked.
        objects: Objects that were read or looked up, each once.
        chunks: Chunks that were read and compared with their digests.
        bytes_read: Bytes that were read.
        problems: By checkpoint, in the order of the log; empty when all is well.
    """

    checkpoints: int = 0
    objects: int = 0
    chunks: int = 0
    bytes_read: int = 0
    problems: tuple[Problem, ...] = ()


def join_reports(reports: Iterable[VerifyReport]) -> VerifyReport:
    """Return the reports of several runs as one."""
    found = list(reports)
    return VerifyReport(
        checkpoints=sum(report.checkpoints for report in found),
        objects=sum(report.objects for report in found),
        chunks=sum(report.chunks for report in found),
        bytes_read=sum(report.bytes_read for report in found),
        problems=tuple(problem for report in found for problem in report.problems),
    )


def explain(error: FwstoreError, key: str, url: str) -> tuple[str, str]:
    """Return message and code for an object that could not be read and should be there."""
    if isinstance(error, NotFound):
        return f"{key} is missing in {url}: restore it from another copy", Corrupt.code
    return str(error), error.code
