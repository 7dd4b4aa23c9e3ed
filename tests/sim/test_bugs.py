"""The sensitivity gate: every bug of the table is found, with its fewest faults and a command that repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.bugs import BUGS, Bug, switched_on
from sim.plays import play
from sim.sensitivity import fails, found
from sim.shrink import Failed, check, failure_of


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.seeds], ids=lambda bug: bug.name)
def test_the_simulator_finds(bug: Bug) -> None:
    assert found(bug, bug.seeds) is not None


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.suites], ids=lambda bug: bug.name)
def test_other_suites_find(bug: Bug) -> None:
    assert fails(bug, ["-x", *bug.suites])


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_what_a_bug_patches_is_there(bug: Bug) -> None:
    """A name that was changed meanwhile is no bug that was found."""
    with switched_on(bug):
        pass


def test_the_table_has_every_hole_that_there_can_be() -> None:
    assert len(BUGS) == len({bug.name for bug in BUGS}) >= 25
    assert all(bug.seeds or bug.suites for bug in BUGS)
    # H8 needs data sets.
    here = {f"H{number}" for number in range(1, 18)} - {"H8"}
    assert {hole for bug in BUGS for hole in bug.holes} == here


def test_every_row_of_the_published_table_is_a_bug_that_was_caught() -> None:
    figures = Path(__file__).parents[2] / "docs/reliability.json"
    rows = json.loads(figures.read_text())["bugs"]["rows"]
    assert rows.keys() <= {bug.name for bug in BUGS}
    assert not [name for name, cells in rows.items() if not any(cells.values())]


def test_what_is_found_is_shrunk_and_told_with_one_command() -> None:
    bug = next(bug for bug in BUGS if bug.name == "a save is recorded twice")
    seed = found(bug, bug.seeds)
    assert seed is not None
    with switched_on(bug):
        with pytest.raises(Failed) as told:
            check(play, seed, bug=bug.name)
        kept = told.value.args[0].split("faults that matter: ")[1].split("\n")[0].split(",")
        assert failure_of(play, seed, frozenset(kept)) is not None
        for fault in kept:
            assert failure_of(play, seed, frozenset(kept) - {fault}) is None
    assert f"make sim SEED={seed} " in told.value.args[0]
