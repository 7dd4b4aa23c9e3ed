"""The page names what is missed, tied, lost and absent before anything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.common.page import page
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.results import Results, read_results, rows_to_keep, write_results

QUESTION = Question(
    name="durable",
    title="How soon?",
    subjects=("raw", "fwstore", "peer", "gone"),
    floors=("raw",),
    figures=(Figure("durable_s", "durable"),),
    marks=(Mark("fwstore", "durable_s", 1.5, ("raw",)),),
    note="Fsynced.",
)


def results(ours: float, absent: dict[str, str] | None = None) -> Results:
    seconds = {"raw": 1.0, "fwstore": ours, "peer": 2.0}
    return Results(
        question=QUESTION,
        machine={"processor": "a fast one", "file system": "ext4"},
        gigabytes=3.0,
        repeats=1,
        absent=absent or {},
        rows=[
            {"subject": name, "repeat": 0, "figures": {"durable_s": value}, "version": f"{name} 1"}
            for name, value in seconds.items()
        ],
    )


def weak_points(text: str) -> str:
    return text.split("## Where")[1].split("\n## ", maxsplit=1)[0]


def test_the_page_names_machine_versions_and_figures() -> None:
    text = page([results(1.2)], {"durable": "benchmarks/durable.svg"})
    assert "- processor: a fast one" in text
    assert "Measured: fwstore 1, peer 1, raw 1." in text
    assert "| fwstore | 1.2 ± 0% |" in text
    assert "![How soon?](benchmarks/durable.svg)" in text
    assert "Fsynced. State: 3 GB; repeats: 1." in text
    assert "Nowhere" in weak_points(text)


@pytest.mark.parametrize(
    ("ours", "said"),
    [(1.6, "1.6 x raw (mark 1.5, noise 0%): missed"), (2.0, "tie"), (2.4, "behind")],
)
def test_what_is_missed_tied_or_lost_stands_first(ours: float, said: str) -> None:
    assert said in weak_points(page([results(ours)], {}))


def test_who_is_absent_is_named_with_the_reason() -> None:
    text = page([results(1.0, {"gone": "no wheel for this Python"})], {})
    assert "gone is not measured, or not to the end: no wheel" in weak_points(text)
    assert "| gone |" not in text


def test_machines_that_differ_are_all_named() -> None:
    other = Results(**{**vars(results(1.0)), "machine": {"processor": "a slow one"}})
    text = page([results(1.0), other], {})
    assert "a fast one" in text
    assert "a slow one" in text


def test_results_survive_the_way_to_a_file(tmp_path: Path) -> None:
    written = results(1.3, {"gone": "why"})
    write_results(written, tmp_path / "deep" / "durable.json")
    assert list(read_results(tmp_path / "deep")) == [written]


def test_repeats_are_counted_and_not_taken_for_granted() -> None:
    one = results(1.2)
    more = Results(**{**vars(one), "rows": [*one.rows, one.rows[0]], "repeats": 5})
    assert "repeats: 1 to 2." in page([more], {})


def test_a_series_goes_on_only_with_what_answers_the_same_question() -> None:
    before = results(1.2)
    assert rows_to_keep(before, QUESTION, 3.0) == before.rows
    with pytest.raises(ValueError, match="another --output"):
        rows_to_keep(before, QUESTION, 0.3)
    other = dataclasses.replace(QUESTION, figures=(Figure("blocked_s", "blocked"),))
    with pytest.raises(ValueError, match="blocked_s"):
        rows_to_keep(before, other, 3.0)
