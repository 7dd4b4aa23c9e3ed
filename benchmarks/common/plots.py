"""Results as pictures: a bar per subject, a panel per figure, whiskers from the smallest to the largest repeat.

Invariant: the same results give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.question import Figure
from benchmarks.common.results import Results
from benchmarks.common.statistics import Summary, summary_of

_OURS, _FLOOR, _PEER = "#1b6ca8", "#b0b0b0", "#e0a458"
_PANEL_WIDTH, _BAR_HEIGHT = 3.6, 0.28


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
        _draw(axis, panel)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(drawing)


def _draw(axis: Any, panel: Panel) -> None:
    for label, summary, colour in panel.bars:
        whiskers = [[summary.median - summary.low], [summary.high - summary.median]]
        axis.barh(label, summary.median, xerr=whiskers, color=colour, capsize=2)
    axis.set_title(panel.title)
    axis.set_xlabel(panel.unit)
    axis.locator_params(axis="x", nbins=5)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()
