"""What a series of repeats says: medians, spreads, ratios and verdicts. Pure.

Invariant: a difference counts only when it is larger than the spreads of both sides together.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.common.question import Figure, Mark, Question

Row = dict[str, Any]
Judgement = Literal["met", "within noise", "missed", "not measured"]
Standing = Literal["ahead", "tie", "behind"]


@dataclass(frozen=True)
class Summary:
    """A figure of a subject over all repeats.

    Attributes:
        spread: Half the range, relative to the median.
    """

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


@dataclass(frozen=True)
class Verdict:
    """How a mark came out; `against` is the subject it was compared with, or nothing for a plain bound."""

    mark: Mark
    judgement: Judgement
    value: float = 0.0
    noise: float = 0.0
    against: str = ""


@dataclass(frozen=True)
class Comparison:
    """One of ours beside a peer in one figure."""

    figure: Figure
    ours: str
    peer: str
    ratio: float
    noise: float

    @property
    def standing(self) -> Standing:
        if self.ratio < 1 - self.noise:
            return "ahead"
        return "behind" if self.ratio > 1 + self.noise else "tie"


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of at least one value."""
    return Summary(statistics.median(values), min(values), max(values), len(values))


def summary_of(rows: Iterable[Row], subject: str, figure: str) -> Summary | None:
    """Return the summary of a figure of a subject, or None where it was not measured."""
    values = [
        float(row["figures"][figure])
        for row in rows
        if row["subject"] == subject and figure in row["figures"]
    ]
    return summarise(values) if values else None


def best_of(
    rows: Sequence[Row], subjects: Iterable[str], figure: str
) -> tuple[str, Summary] | None:
    """Return the subject with the smallest median of a figure."""
    found = [(s, summary) for s in subjects if (summary := summary_of(rows, s, figure))]
    return min(found, key=lambda pair: pair[1].median) if found else None


def judge(mark: Mark, rows: Sequence[Row]) -> Verdict:
    """Say whether a mark is met."""
    ours = summary_of(rows, mark.subject, mark.figure)
    if ours is None:
        return Verdict(mark, "not measured")
    if not mark.against:
        return _verdict(mark, ours.median, ours.spread, "")
    best = best_of(rows, mark.against, mark.against_figure or mark.figure)
    if best is None or not best[1].median:
        return Verdict(mark, "not measured")
    name, theirs = best
    return _verdict(mark, ours.median / theirs.median, ours.spread + theirs.spread, name)


def _verdict(mark: Mark, value: float, noise: float, against: str) -> Verdict:
    judgement: Judgement = "missed"
    if value <= mark.limit:
        judgement = "met"
    elif value <= mark.limit * (1 + noise):
        judgement = "within noise"
    return Verdict(mark, judgement, value, noise, against)


def compare(question: Question, rows: Sequence[Row]) -> list[Comparison]:
    """Return every figure of ours beside that of the peers that do the same kind of thing."""
    comparisons = []
    for figure in question.figures:
        for subject, peer in question.pairs:
            ours = summary_of(rows, subject, figure.name)
            theirs = summary_of(rows, peer, figure.name)
            if ours is None or theirs is None or not theirs.median:
                continue
            ratio, noise = ours.median / theirs.median, ours.spread + theirs.spread
            comparisons.append(Comparison(figure, subject, peer, ratio, noise))
    return comparisons
