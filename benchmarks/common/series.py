"""Runs a question: every repeat of every subject in a fresh process, in an order that favours nobody.

Invariant: nobody is left out silently. A peer that cannot be had, or fails, is named as absent with the reason; a
failure of our own ends the series.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.backing import backing_process, follow
from benchmarks.common.environments import Absent, interpreter, last_line
from benchmarks.common.machine import describe_machine
from benchmarks.common.order import rounds
from benchmarks.common.question import Question
from benchmarks.common.results import RESULTS, Results, write_results
from benchmarks.common.statistics import Row
from benchmarks.common.tables import show
from benchmarks.peers import PEERS


@dataclass
class Series:
    """A question being answered."""

    question: Question
    size_bytes: int
    repeats: int
    place: Path
    console: Console
    pythons: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def run(self) -> None:
        """Measure every subject as often as asked."""
        self._find_subjects()
        socket = self.place / "backing"
        with backing_process(socket):
            for number, order in enumerate(rounds(list(self.pythons), self.repeats)):
                for subject in order:
                    if subject not in self.absent:
                        self._measure(subject, number, socket)

    def _find_subjects(self) -> None:
        for subject in self.question.subjects:
            adapter = PEERS.get(subject)
            try:
                self.pythons[subject] = interpreter(adapter.requirement if adapter else "")
            except Absent as reason:
                self._leave_out(subject, str(reason))

    def _leave_out(self, subject: str, reason: str) -> None:
        self.absent[subject] = reason
        self.console.print(f"  {subject} is absent: {reason}", highlight=False, soft_wrap=True)

    def _measure(self, subject: str, repeat: int, socket: Path) -> None:
        try:
            result = self._trial(subject, socket)
        except Absent as reason:
            if subject in self.question.ours:
                raise SystemExit(f"{subject} failed:\n{reason}") from reason
            self._leave_out(subject, f"it failed: {last_line(str(reason))}")
            return
        self.rows.append({"subject": subject, "repeat": repeat, **result})
        self._tell(self.rows[-1])

    def _trial(self, subject: str, socket: Path) -> dict[str, Any]:
        folder = self.place / "trial"
        module = f"benchmarks.{self.question.name}"
        command = [self.pythons[subject], "-m", "benchmarks.common.trial", module, subject]
        try:
            ended = subprocess.run(
                [*command, str(folder), str(self.size_bytes), str(socket)],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            # What the trial has freed is still backed.
            follow(socket)
            shutil.rmtree(folder, ignore_errors=True)
        if ended.returncode:
            raise Absent(ended.stdout[-1000:] + ended.stderr[-3000:])
        result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return result

    def _tell(self, row: Row) -> None:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in row["figures"].items())
        text = f"  {row['repeat'] + 1}/{self.repeats} {row['subject']}: {shown}"
        self.console.print(text, highlight=False, soft_wrap=True)


def run(question: Question) -> None:
    """Answer a question from the command line: measure, print, store as JSON."""
    arguments = _arguments(question)
    console = Console()
    console.print(f"[bold]{question.title}[/bold]")
    with tempfile.TemporaryDirectory(prefix="fwstore-bench-", dir=arguments.place) as place:
        machine = describe_machine(Path(place))
        size = int(arguments.gigabytes * 1e9)
        series = Series(question, size, arguments.repeats, Path(place), console)
        series.run()
    results = Results(
        question=question,
        machine=machine,
        gigabytes=arguments.gigabytes,
        repeats=arguments.repeats,
        absent=series.absent,
        rows=series.rows,
    )
    write_results(results, arguments.output)
    show(question, series.rows, console)


def _arguments(question: Question) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=question.title)
    parser.add_argument("--gigabytes", type=float, default=question.gigabytes)
    parser.add_argument("--repeats", type=int, default=question.repeats)
    parser.add_argument("--place", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{question.name}.json")
    return parser.parse_args()
