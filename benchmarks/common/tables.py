"""Results as tables, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.common.question import Question
from benchmarks.common.statistics import (
    Comparison,
    Row,
    Summary,
    Verdict,
    compare,
    judge,
    summary_of,
)


def cell(summary: Summary | None) -> str:
    """Return median and half range."""
    if summary is None:
        return "-"
    return f"{number(summary.median)} ± {100 * summary.spread:.0f}%"


def number(value: float) -> str:
    """Return three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table_of(question: Question, rows: Sequence[Row]) -> list[list[str]]:
    """Return the table of medians, its heading first; subjects that gave nothing are left out.

    A row is a subject, or a figure where there are more of those.
    """
    measured = {row["subject"] for row in rows}
    heading = ["", *(f"{f.title}, {f.unit}" if f.unit else f.title for f in question.figures)]
    body = [
        [subject, *(cell(summary_of(rows, subject, f.name)) for f in question.figures)]
        for subject in question.subjects
        if subject in measured
    ]
    table = [heading, *body]
    return (
        table
        if len(body) >= len(question.figures)
        else [list(row) for row in zip(*table, strict=True)]
    )


def verdict_text(verdict: Verdict, question: Question) -> str:
    """Say how a mark came out."""
    mark = verdict.mark
    what = f"{mark.subject}, {question.figure(mark.figure).title}"
    if verdict.judgement == "not measured":
        return f"{what}: not measured"
    beside = ""
    if verdict.against:
        yardstick = question.figure(mark.against_figure or mark.figure).title
        beside = f" x {verdict.against}" + (f", {yardstick}" if mark.against_figure else "")
    return (
        f"{what}: {number(verdict.value)}{beside} (mark {number(mark.limit)}, "
        f"noise {100 * verdict.noise:.0f}%): {verdict.judgement}"
    )


def comparison_text(comparison: Comparison) -> str:
    """Say how one of ours stands beside a peer."""
    c = comparison
    return (
        f"{c.figure.title}: {c.ours} takes {c.ratio:.2f} of {c.peer} "
        f"(noise {100 * c.noise:.0f}%): {c.standing}"
    )


def show(question: Question, rows: Sequence[Row], console: Console) -> None:
    """Print the table, the marks, and where a peer is as good or better."""
    heading, *body = table_of(question, rows)
    table = Table(title=f"{question.title} Medians ± half range.")
    for index, title in enumerate(heading):
        table.add_column(title, justify="right" if index else "left")
    for line in body:
        table.add_row(*line)
    console.print(table)
    for mark in question.marks:
        console.print(verdict_text(judge(mark, rows), question), highlight=False, soft_wrap=True)
    for comparison in compare(question, rows):
        if comparison.standing != "ahead":
            console.print(comparison_text(comparison), highlight=False, soft_wrap=True)
