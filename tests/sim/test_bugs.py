"""The sensitivity gate: every bug of the table is found, with its fewest faults and a command that repeats it."""

from __future__ import annotations

import pytest

from sim.bugs import BUGS, Bug, switched_on
from sim.plays import play
from sim.shrink import Failed, check, failure_of


def found(bug: Bug) -> int:
    """Return the first seed that finds a bug."""
    for seed in range(bug.seeds):
        if failure_of(play, seed) is not None:
            return seed
    raise AssertionError(f"{bug.seeds} seeds do not find it: {bug.name}")


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.seeds], ids=lambda bug: bug.name)
def test_the_simulator_finds(bug: Bug) -> None:
    with switched_on(bug):
        found(bug)


def test_what_is_found_is_shrunk_and_told_with_one_command() -> None:
    bug = next(bug for bug in BUGS if bug.name == "a save is recorded twice")
    with switched_on(bug):
        seed = found(bug)
        with pytest.raises(Failed) as told:
            check(play, seed, bug=bug.name)
        kept = told.value.args[0].split("faults that matter: ")[1].split("\n")[0].split(",")
        assert failure_of(play, seed, frozenset(kept)) is not None
        for fault in kept:
            assert failure_of(play, seed, frozenset(kept) - {fault}) is None
    assert f"make sim SEED={seed} " in told.value.args[0]
