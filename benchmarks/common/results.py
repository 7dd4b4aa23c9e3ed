"""The results of a question, as they stand in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.question import Question, question_from_json
from benchmarks.common.statistics import Row

RESULTS = Path("build/bench")


@dataclass(frozen=True, kw_only=True)
class Results:
    """A question, on what it was asked, and all that came out.

    Attributes:
        absent: By subject, why it gave nothing or ended early.
    """

    question: Question
    machine: dict[str, str]
    gigabytes: float
    repeats: int
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def versions(self) -> list[str]:
        """Return names and versions of what was measured."""
        return sorted({row["version"] for row in self.rows if row.get("version")})

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "question": self.question.as_json()}


def results_from_json(values: dict[str, Any]) -> Results:
    """Return the results that `as_json` described."""
    return Results(**{**values, "question": question_from_json(values["question"])})


def read_results(folder: Path) -> Iterator[Results]:
    """Yield the results of every question in a folder, by name."""
    for path in sorted(folder.glob("*.json")):
        yield read_result(path)


def read_result(path: Path) -> Results:
    """Return the results of one question."""
    return results_from_json(json.loads(path.read_text()))


def rows_to_keep(before: Results, question: Question, gigabytes: float) -> list[Row]:
    """Return what was measured before, if it may stand beside what is measured now.

    Raises:
        ValueError: It is of another question or size.
    """
    now = (question.name, [figure.name for figure in question.figures], gigabytes)
    then = (before.question.name, [f.name for f in before.question.figures], before.gigabytes)
    if then != now:
        raise ValueError(
            f"what is there answers {then}, and {now} is asked: choose another --output"
        )
    return before.rows


def write_results(results: Results, path: Path) -> None:
    """Store results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results.as_json(), indent=1) + "\n")
