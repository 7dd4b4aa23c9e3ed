"""Every question is consistent with itself and with the peers there are."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks import lazy
from benchmarks.common.question import Question, question_from_json
from benchmarks.subjects import ADAPTERS

SCRIPTS = sorted(path.stem for path in Path(benchmarks.__path__[0]).glob("*.py"))
QUESTIONS: list[Question] = [
    module.QUESTION
    for name in SCRIPTS
    if hasattr(module := importlib.import_module(f"benchmarks.{name}"), "QUESTION")
]
OWN_SUBJECTS = {"obstore put and get_range", *lazy.SAVERS}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
class TestQuestion:
    def test_its_script_has_its_name_and_measures(self, question: Question) -> None:
        module = importlib.import_module(f"benchmarks.{question.name}")
        assert module.QUESTION is question
        assert callable(module.measure)

    def test_its_subjects_exist(self, question: Question) -> None:
        sizes = {point.subject for point in question.points}
        assert set(question.subjects) <= ADAPTERS.keys() | OWN_SUBJECTS | sizes
        assert set(question.floors) <= set(question.subjects)
        assert question.ours
        parts = [*question.ours, *question.floors, *question.peers]
        assert sorted(parts) == sorted(question.subjects)

    def test_its_marks_name_what_it_measures(self, question: Question) -> None:
        for mark in question.marks:
            assert {mark.subject, *mark.against} <= set(question.subjects)
            figures = {figure.name for figure in question.figures}
            assert {mark.figure, mark.against_figure or mark.figure} <= figures

    def test_its_subjects_stand_on_its_axis(self, question: Question) -> None:
        assert bool(question.axis) == bool(question.points)
        if question.points:
            assert [point.subject for point in question.points] == list(question.subjects)
            places = [(point.line, point.size) for point in question.points]
            assert len(set(places)) == len(places)

    def test_it_compares_ours_with_peers(self, question: Question) -> None:
        for ours, peer in question.pairs:
            assert ours in question.ours
            assert peer in question.peers
        assert {peer for _, peer in question.pairs} == set(question.peers)

    def test_it_survives_json(self, question: Question) -> None:
        assert question_from_json(json.loads(json.dumps(question.as_json()))) == question


def test_there_is_a_script_for_every_question_of_a_reader() -> None:
    names = {question.name for question in QUESTIONS}
    assert names >= {"save", "load", "unchanged", "memory", "gil"}
    assert names >= {"s3", "ranks", "history", "quick"}
    assert names >= {"growth", "planning", "records", "fragments", "tiles"}


def test_make_bench_asks_about_growth_like_about_everything_else() -> None:
    makefile = Path(benchmarks.__path__[0]).parent / "Makefile"
    (asked,) = re.findall("^QUESTIONS := (.*)$", makefile.read_text(), re.MULTILINE)
    assert set(asked.split()) <= {question.name for question in QUESTIONS}
    assert {question.name for question in QUESTIONS if question.points} <= set(asked.split())
