"""Medians, spreads, and when a difference counts."""

from __future__ import annotations

import pytest

from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.statistics import Row, best_of, compare, judge, summarise, summary_of

FIGURE = Figure("save_s", "save")
QUESTION = Question(
    name="example",
    title="How long?",
    subjects=("floor", "fwstore", "slow", "fast", "absent"),
    floors=("floor",),
    figures=(FIGURE,),
)


def rows(**seconds: list[float]) -> list[Row]:
    return [
        {"subject": subject, "repeat": repeat, "figures": {"save_s": value}}
        for subject, values in seconds.items()
        for repeat, value in enumerate(values)
    ]


def test_median_and_half_range() -> None:
    summary = summarise([4.0, 1.0, 2.0])
    assert (summary.median, summary.low, summary.high, summary.count) == (2.0, 1.0, 4.0, 3)
    assert summary.spread == pytest.approx(0.75)


def test_a_median_of_zero_has_no_relative_spread() -> None:
    assert summarise([0.0, 0.0, 1.0]).spread == 0.0


def test_a_figure_that_was_not_measured_has_no_summary() -> None:
    assert summary_of(rows(fast=[1.0]), "fast", "load_s") is None
    assert summary_of(rows(fast=[1.0]), "slow", "save_s") is None


def test_the_best_is_the_smallest_median_not_the_smallest_value() -> None:
    measured = rows(slow=[0.1, 3.0, 3.0], fast=[2.0, 2.0, 2.0])
    best = best_of(measured, ("slow", "fast", "absent"), "save_s")
    assert best is not None
    assert best[0] == "fast"
    assert best_of(measured, ("absent",), "save_s") is None


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([2.0, 2.0], "met"),
        ([2.2, 2.2], "met"),
        ([2.3, 2.3], "missed"),
        ([2.1, 2.5], "within noise"),
    ],
)
def test_a_mark_is_a_ratio_to_the_best_yardstick(ours: list[float], expected: str) -> None:
    mark = Mark("fwstore", "save_s", 1.1, ("slow", "fast", "absent"))
    verdict = judge(mark, rows(fwstore=ours, slow=[9.0], fast=[2.0]))
    assert verdict.judgement == expected
    assert verdict.against == "fast"


def test_a_mark_may_be_a_plain_bound_or_another_figure() -> None:
    measured: list[Row] = [{"subject": "fwstore", "figures": {"full_s": 6.0, "part_s": 1.0}}]
    assert judge(Mark("fwstore", "part_s", 1.0), measured).judgement == "met"
    assert judge(Mark("fwstore", "full_s", 5.0), measured).judgement == "missed"
    verdict = judge(Mark("fwstore", "part_s", 1 / 6, ("fwstore",), "full_s"), measured)
    assert verdict.judgement == "met"
    assert verdict.value == pytest.approx(1 / 6)


def test_a_mark_without_a_figure_or_a_yardstick_is_not_measured() -> None:
    mark = Mark("fwstore", "save_s", 1.0, ("absent",))
    assert judge(mark, rows(fwstore=[1.0])).judgement == "not measured"
    assert judge(mark, rows(absent=[1.0])).judgement == "not measured"


@pytest.mark.parametrize(
    ("ours", "standing"),
    [([1.0, 1.0], "ahead"), ([1.5, 2.5], "tie"), ([2.5, 2.5], "behind"), ([2.0, 2.0], "tie")],
)
def test_standing_beside_a_peer(ours: list[float], standing: str) -> None:
    (comparison,) = compare(QUESTION, rows(fwstore=ours, fast=[2.0, 2.0], floor=[0.1]))
    assert (comparison.peer, comparison.standing) == ("fast", standing)
