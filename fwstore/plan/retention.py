"""Which checkpoints stay, decided without I/O.

Invariant: what is protected never expires, and everything else that expires says which rule it failed;
the same inputs give the same plan, so every process that runs retention agrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fwstore.base.errors import InvalidInput
from fwstore.format.summary import SnapshotEntry

Best = tuple[str, int] | tuple[str, int, str]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What retention keeps: the union of the rules that are given.

    Attributes:
        last: The newest so many checkpoints.
        every_steps: The first checkpoint of every span of so many steps.
        best: (metric, count): the checkpoints with the lowest values of a metric; ("accuracy", 2, "max") keeps
            the highest.

    Raises:
        InvalidInput: No rule is given, or one makes no sense.
    """

    last: int | None = None
    every_steps: int | None = None
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.last is None and self.every_steps is None and self.best is None:
            raise InvalidInput("Keep needs a rule: last=, every_steps= or best=(metric, count)")
        if self.last is not None and not _is_count(self.last):
            raise InvalidInput(
                f"Keep(last={self.last!r}) must be a whole number, at least 1: the newest checkpoint stays"
            )
        if self.every_steps is not None and not _is_count(self.every_steps):
            raise InvalidInput(
                f"Keep(every_steps={self.every_steps!r}) must be a whole number, at least 1"
            )
        if self.best is not None and not _is_best(self.best):
            raise InvalidInput(
                f"Keep(best={self.best!r}) must be (metric, count) or (metric, count, 'min' or 'max')"
            )


def check_keep(keep: object) -> None:
    """Refuse what is neither a `Keep` nor None before anything rests on it.

    Raises:
        InvalidInput: It is something else, such as a number of checkpoints.
    """
    if keep is not None and not isinstance(keep, Keep):
        raise InvalidInput(f"keep= takes a Keep such as Keep(last=3), not {keep!r}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A checkpoint and why it stays or goes."""

    id: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What stays and what goes."""

    kept: tuple[Verdict, ...]
    expired: tuple[Verdict, ...]


def plan_expire(
    entries: Sequence[SnapshotEntry], keep: Keep, protected: Mapping[str, str]
) -> RetentionPlan:
    """Return which snapshots of a chain expire.

    Args:
        entries: The chain, newest first.
        keep: The rules.
        protected: Ids that never expire, with why.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in _kept(entries, keep):
        reasons.setdefault(name, []).append(reason)
    for name, reason in protected.items():
        reasons.setdefault(name, []).append(reason)
    kept = [entry for entry in entries if entry.id in reasons]
    expired = [entry for entry in entries if entry.id not in reasons]
    return RetentionPlan(
        tuple(Verdict(e.id, e.step, ", ".join(reasons[e.id])) for e in kept),
        tuple(Verdict(e.id, e.step, f"outside {describe_keep(keep)}") for e in expired),
    )


def describe_keep(keep: Keep) -> str:
    """Return the rules as the user wrote them."""
    rules = (("last", keep.last), ("every_steps", keep.every_steps), ("best", keep.best))
    return f"Keep({', '.join(f'{name}={rule!r}' for name, rule in rules if rule is not None)})"


def _kept(entries: Sequence[SnapshotEntry], keep: Keep) -> Iterator[tuple[str, str]]:
    if entries:
        yield entries[0].id, "newest"
    for entry in entries[: keep.last or 0]:
        yield entry.id, f"one of the last {keep.last}"
    if keep.every_steps is not None:
        first: dict[int, SnapshotEntry] = {}
        for entry in sorted(entries, key=lambda e: (e.step, e.term, e.save)):
            first.setdefault(entry.step // keep.every_steps, entry)
        for entry in first.values():
            yield entry.id, f"first in {keep.every_steps} steps"
    if keep.best is not None:
        yield from _best(entries, keep.best)


def _best(entries: Sequence[SnapshotEntry], best: Best) -> Iterator[tuple[str, str]]:
    metric, count = best[0], best[1]
    measured = [entry for entry in entries if math.isfinite(entry.metrics.get(metric, math.nan))]
    # The sort is stable, so of equal values the newest stays.
    sign = -1 if len(best) == 3 and best[2] == "max" else 1
    measured.sort(key=lambda entry: sign * entry.metrics[metric])
    for entry in measured[:count]:
        yield entry.id, f"{metric} among the best {count}"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_best(best: object) -> bool:
    if not isinstance(best, tuple | list) or len(best) not in (2, 3):
        return False
    if not isinstance(best[0], str) or not _is_count(best[1]):
        return False
    return len(best) == 2 or best[2] in ("min", "max")
