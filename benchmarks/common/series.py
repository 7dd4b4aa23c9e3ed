"""Runs a question: every repeat of every subject in a fresh process, in an order that favours nobody.

What was measured is stored after every trial, so that a series that was interrupted can go on.

Invariant: nobody is left out silently. A peer that cannot be had, or fails, is named as absent with the reason; a
failure of our own ends the series.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.backing import LEFT_BYTES, backing_process, follow
from benchmarks.common.environments import Absent, interpreter, last_line
from benchmarks.common.machine import describe_machine
from benchmarks.common.order import rounds
from benchmarks.common.question import Question
from benchmarks.common.results import (
    RESULTS,
    Results,
    read_result,
    rows_to_keep,
    write_results,
)
from benchmarks.common.statistics import Row
from benchmarks.common.tables import show
from benchmarks.subjects import ADAPTERS


@dataclass
class Series:
    """A question being answered.

    Attributes:
        only: Whom to measure, where not all.
        rows: What was measured, now or before.
    """

    question: Question
    gigabytes: float
    repeats: int
    place: Path
    socket: Path
    output: Path
    console: Console
    only: Sequence[str] = ()
    pythons: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Size of the state."""
        return int(self.gigabytes * 1e9)

    def run(self) -> None:
        """Measure every subject as often as asked."""
        self._find_subjects()
        measured = {(row["subject"], row["repeat"]) for row in self.rows}
        for number, order in enumerate(rounds(list(self.pythons), self.repeats)):
            for subject in order:
                if subject not in self.absent and (subject, number) not in measured:
                    self._measure(subject, number)

    def _find_subjects(self) -> None:
        for subject in self.question.subjects:
            if self.only and subject not in self.only:
                self._leave_out(subject, "it was not asked")
                continue
            adapter = ADAPTERS.get(subject)
            try:
                self.pythons[subject] = interpreter(adapter.requirement if adapter else "")
            except Absent as reason:
                self._leave_out(subject, str(reason))

    def _leave_out(self, subject: str, reason: str) -> None:
        self.absent[subject] = reason
        self.console.print(f"  {subject} is absent: {reason}", highlight=False, soft_wrap=True)

    def _measure(self, subject: str, repeat: int) -> None:
        try:
            result = self._trial(subject)
        except Absent as reason:
            if subject in self.question.ours:
                raise SystemExit(f"{subject} failed:\n{reason}") from reason
            self._leave_out(subject, f"it failed: {last_line(str(reason))}")
            return
        self.rows.append({"subject": subject, "repeat": repeat, **result})
        self._tell(self.rows[-1])
        self.store()

    def store(self) -> None:
        """Store what came out so far."""
        results = Results(
            question=self.question,
            machine=describe_machine(self.place),
            gigabytes=self.gigabytes,
            repeats=self.repeats,
            absent=self.absent,
            rows=self.rows,
        )
        write_results(results, self.output)

    def _trial(self, subject: str) -> dict[str, Any]:
        folder = self.place / "trial"
        module = f"benchmarks.{self.question.name}"
        command = [self.pythons[subject], "-m", "benchmarks.common.trial", module, subject]
        try:
            ended = subprocess.run(
                [*command, str(folder), str(self.size_bytes), str(self.socket)],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            # What the trial has freed is still backed.
            follow(self.socket)
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
        series = Series(
            question,
            arguments.gigabytes,
            arguments.repeats,
            Path(place),
            arguments.backing or Path(place) / "backing",
            arguments.output,
            console,
            only=arguments.only,
        )
        if arguments.resume and arguments.output.exists():
            before = read_result(arguments.output)
            series.rows += rows_to_keep(before, question, arguments.gigabytes)
        with _backed(series.socket, series.size_bytes):
            series.run()
        series.store()
    show(question, series.rows, console)


def _backed(socket: Path, size_bytes: int) -> AbstractContextManager[None]:
    """Return what keeps memory backed, unless somebody does so already or the state is small."""
    if socket.exists() or size_bytes < LEFT_BYTES // 2:
        return nullcontext()
    return backing_process(socket)


def _arguments(question: Question) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=question.title)
    parser.add_argument("--gigabytes", type=float, default=question.gigabytes)
    parser.add_argument("--repeats", type=int, default=question.repeats)
    parser.add_argument("--place", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument(
        "--backing",
        type=Path,
        help="socket of a running benchmarks.common.backing, which fills up once",
    )
    parser.add_argument("--only", nargs="*", default=(), help="subjects, where not all are asked")
    parser.add_argument("--resume", action="store_true", help="keep what the output holds already")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{question.name}.json")
    return parser.parse_args()
