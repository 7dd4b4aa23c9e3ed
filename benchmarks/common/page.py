"""Results as a page of Markdown. Pure.

Invariant: what is missed, tied or lost stands first, and nobody who was to be measured goes unmentioned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.common.results import Results
from benchmarks.common.statistics import Judgement, compare, judge
from benchmarks.common.tables import comparison_text, table_of, verdict_text

# In the order in which a reader asks; others follow by name.
_ORDER = (
    "quick",
    "save",
    "lazy",
    "cuda",
    "load",
    "unchanged",
    "memory",
    "gil",
    "s3",
    "ranks",
    "growth",
    "planning",
    "history",
    "records",
    "fragments",
    "tiles",
)
_HEAD = """\
# Benchmarks

Made by `make bench`; do not edit. Every repeat is a fresh process with a fresh state, in an order that is shuffled and
then reversed; memory is kept backed by a second process; cells are medians ± half the range.
Figures are ratios within one run: another machine gives other seconds. fwstore's checks are all on. Why a mark is
missed stands in [performance.md](performance.md)."""
_NOT_MET: tuple[Judgement, ...] = ("missed", "within noise", "not measured")


def page(results: Sequence[Results], plots: dict[str, str]) -> str:
    """Return the page.

    Args:
        results: Of any questions, in any order.
        plots: By name of the question, the address of its picture.
    """
    ordered = sorted(results, key=lambda r: (_rank(r), r.question.name))
    parts = [_HEAD, _machines(ordered), _weak_points(ordered)]
    parts += [_section(result, plots.get(result.question.name)) for result in ordered]
    return "\n\n".join(parts) + "\n"


def _rank(result: Results) -> int:
    name = result.question.name
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _machines(results: Sequence[Results]) -> str:
    lines = ["## On what"]
    described = {tuple(result.machine.items()) for result in results if result.machine}
    for machine in sorted(described):
        lines.append("")
        lines += [f"- {name}: {value}" for name, value in machine]
    versions = sorted({version for result in results for version in result.versions()})
    return "\n".join([*lines, "", f"Measured: {', '.join(versions)}."])


def _weak_points(results: Sequence[Results]) -> str:
    lines = [*_marks_not_met(results), *_not_ahead(results), *_absent(results)]
    if not lines:
        lines = ["Nowhere: every mark is met and every peer is behind."]
    return "\n".join(["## Where fwstore misses a mark, only ties or loses", "", *lines])


def _marks_not_met(results: Iterable[Results]) -> list[str]:
    return [
        f"- {result.question.name}: {verdict_text(verdict, result.question)}"
        for result in results
        for verdict in (judge(mark, result.rows) for mark in result.question.marks)
        if verdict.judgement in _NOT_MET
    ]


def _not_ahead(results: Iterable[Results]) -> list[str]:
    return [
        f"- {result.question.name}: {comparison_text(comparison)}"
        for result in results
        for comparison in compare(result.question, result.rows)
        if comparison.standing != "ahead"
    ]


def _absent(results: Iterable[Results]) -> list[str]:
    return [
        f"- {result.question.name}: {subject} is not measured, or not to the end: {reason}"
        for result in results
        for subject, reason in result.absent.items()
    ]


def _section(result: Results, plot: str | None) -> str:
    question = result.question
    heading, *body = table_of(question, result.rows)
    parts = [
        f"## {question.title}",
        f"{question.note} {_settings(result)}",
        "\n".join([_line(heading), _line(["---"] * len(heading)), *map(_line, body)]),
    ]
    marks = [f"- {verdict_text(judge(mark, result.rows), question)}" for mark in question.marks]
    if marks:
        parts.append("\n".join(marks))
    if plot is not None:
        parts.append(f"![{question.title}]({plot})")
    return "\n\n".join(parts)


def _settings(result: Results) -> str:
    counts = Counter(row["subject"] for row in result.rows).values()
    low, high = min(counts), max(counts)
    repeats = f"{low}" if low == high else f"{low} to {high}"
    if not result.gigabytes:
        return f"Repeats: {repeats}."
    return f"State: {result.gigabytes:g} GB; repeats: {repeats}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
