"""docs/reliability.md says what runs counted, names tests that exist, and is never edited by hand where it is made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.promises import PHRASES, PROMISES
from benchmarks.common.reliability_page import composed, placed, promises
from benchmarks.reliability import FIGURES, PAGE, gathered, read_figures
from sim.bugs import BUGS

ROOT = Path(__file__).parents[2]
EMPTY: dict[str, Any] = {"runs": {}, "bugs": {"commits": [], "rows": {}}, "peers": {}}


def note(suite: str, run: str, **counts: int) -> dict[str, object]:
    return {"suite": suite, "run": run, "commit": "abc", "counts": counts}


def test_the_page_is_what_its_figures_make_of_it() -> None:
    page = (ROOT / PAGE).read_text()
    assert composed(page, json.loads((ROOT / FIGURES).read_text())) == page


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text[:40])
def test_a_promise_is_held_by_tests_that_exist(promise: object) -> None:
    for test in getattr(promise, "tests", ()):
        file, _, name = test.partition("::")
        assert re.search(rf"def {name or 'test_'}", (ROOT / file).read_text()), test
    assert set(getattr(promise, "suites", ())) <= PHRASES.keys()


def test_what_workers_counted_is_summed_and_what_was_not_run_stays() -> None:
    old = EMPTY | {
        "runs": {"network": {"counts": {"done": 7, "unavailable": 1}, "commits": ["old"]}}
    }
    kills = [
        note("crash points", run, covered=count, total=count) for run, count in (("a", 2), ("b", 3))
    ]
    damage = [note("damage: load", "a", **{"slot: detected": 4, "slot: harmless": 1})]
    bugs = [note("bugs", "a bug", simulator=1, log=0), note("bugs", "another", log=0)]
    figures = gathered(old, [*kills, *damage, *bugs])
    assert figures["runs"]["crash points"] == {
        "counts": {"covered": 5, "total": 5},
        "commits": ["abc"],
    }
    assert figures["runs"]["network"]["commits"] == ["old"]
    told = promises(figures)
    assert "5 of 5 crash points" in told
    assert "5 damages, 4 detected, 0 repaired, 1 harmless, 0 wrong" in told
    assert f"1 of {len(BUGS)} bugs caught" in told


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        placed("text", "promises", "table")


def test_there_are_no_figures_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_figures() == EMPTY
