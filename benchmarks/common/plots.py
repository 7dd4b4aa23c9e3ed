"""Results as pictures, a panel per figure: a bar per subject, or a line over what grows.

Whiskers reach from the smallest to the largest repeat.

Invariant: the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.question import Figure
from benchmarks.common.results import Results
from benchmarks.common.statistics import Summary, summary_of

_OURS, _FLOOR, _PEER = "#1b6ca8", "#b0b0b0", "#e0a458"
_PANEL_WIDTH, _BAR_HEIGHT, _ROW_HEIGHT = 3.6, 0.28, 2.6
_COLUMNS = 3
_SPAN = 5


@dataclass(frozen=True)
class Panel:
    """One group of bars: label, value and colour of each."""

    title: str
    unit: str
    bars: tuple[tuple[str, Summary, str], ...]


def panels_of(result: Results) -> list[Panel]:
    """Return a panel per figure, or per unit where there is one subject only."""
    question = result.question
    if len(question.subjects) > 1:
        return [_by_subject(result, figure) for figure in question.figures]
    units = dict.fromkeys(figure.unit for figure in question.figures)
    return [_by_figure(result, unit) for unit in units]


def _by_subject(result: Results, figure: Figure) -> Panel:
    subjects = result.question.subjects
    bars = tuple(
        (subject, summary, _colour(result, subject))
        for subject in subjects
        if (summary := summary_of(result.rows, subject, figure.name))
    )
    return Panel(figure.title, figure.unit, bars)


def _by_figure(result: Results, unit: str) -> Panel:
    (subject,) = result.question.subjects
    bars = tuple(
        (figure.title, summary, _colour(result, subject))
        for figure in result.question.figures
        if figure.unit == unit and (summary := summary_of(result.rows, subject, figure.name))
    )
    return Panel(subject, unit, bars)


def _colour(result: Results, subject: str) -> str:
    if subject in result.question.floors:
        return _FLOOR
    return _OURS if subject in result.question.ours else _PEER


def plot(result: Results, path: Path) -> None:
    """Write the picture of a question as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "fwstore", "svg.fonttype": "none", "font.size": 8})
    drawing = _lines(result, plt) if result.question.points else _bars(result, plt)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(drawing)


def _bars(result: Results, plt: Any) -> Any:
    panels = panels_of(result)
    height = 0.9 + _BAR_HEIGHT * max(len(panel.bars) for panel in panels)
    drawing, axes = plt.subplots(
        1,
        len(panels),
        sharey=len(result.question.subjects) > 1,
        squeeze=False,
        figsize=(_PANEL_WIDTH * len(panels), height),
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw_bars(axis, panel)
    drawing.tight_layout()
    return drawing


def _draw_bars(axis: Any, panel: Panel) -> None:
    for label, summary, colour in panel.bars:
        axis.barh(label, summary.median, xerr=_whiskers([summary]), color=colour, capsize=2)
    axis.set_title(panel.title)
    axis.set_xlabel(panel.unit)
    axis.locator_params(axis="x", nbins=5)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()


def _lines(result: Results, plt: Any) -> Any:
    question = result.question
    rows = -(-len(question.figures) // _COLUMNS)
    drawing, axes = plt.subplots(
        rows,
        _COLUMNS,
        squeeze=False,
        layout="constrained",
        figsize=(_PANEL_WIDTH * _COLUMNS, _ROW_HEIGHT * rows),
    )
    for axis, figure in zip(axes.flat, question.figures, strict=False):
        _draw_lines(axis, result, figure)
    for axis in axes.flat[len(question.figures) :]:
        axis.set_axis_off()
    if len(lines_of(result, question.figures[0])) > 1:
        labels = axes.flat[0].get_legend_handles_labels()
        drawing.legend(*labels, loc="outside lower center", ncols=_COLUMNS, frameon=False)
    return drawing


def lines_of(result: Results, figure: Figure) -> dict[str, list[tuple[float, Summary]]]:
    """Return the points of every line: where they stand, and what was measured there."""
    lines: dict[str, list[tuple[float, Summary]]] = {}
    for point in result.question.points:
        summary = summary_of(result.rows, point.subject, figure.name)
        if summary is not None:
            lines.setdefault(point.line, []).append((point.size, summary))
    return {line: sorted(points, key=lambda pair: pair[0]) for line, points in lines.items()}


def _draw_lines(axis: Any, result: Results, figure: Figure) -> None:
    lines = lines_of(result, figure)
    for line, points in lines.items():
        summaries = [summary for _, summary in points]
        axis.errorbar(
            [size for size, _ in points],
            [summary.median for summary in summaries],
            yerr=_whiskers(summaries),
            label=line,
            marker="o",
            markersize=3,
            linewidth=1,
            capsize=2,
            color=_OURS if len(lines) == 1 else None,
        )
    axis.set_title(figure.title)
    axis.set_xlabel(result.question.axis)
    axis.set_ylabel(figure.unit)
    axis.set_xscale("log")
    if _grows(lines.values()):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)


def _grows(lines: Iterable[list[tuple[float, Summary]]]) -> bool:
    """Return whether the values span so much that only a logarithm shows all of them."""
    values = [summary.median for points in lines for _, summary in points]
    return bool(values) and 0 < _SPAN * min(values) < max(values)


def _whiskers(summaries: Sequence[Summary]) -> list[list[float]]:
    return [
        [summary.median - summary.low for summary in summaries],
        [summary.high - summary.median for summary in summaries],
    ]
