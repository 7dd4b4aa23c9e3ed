"""`fwstore site retire`: three directories, one of which is gone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from fwstore_cli.exits import ExitCode
from support.commands import Command


@pytest.fixture
def near(at: Command, topology: Path) -> Command:
    """Runs one command at a site of two that train; the store of their witness was wiped."""
    (topology.parent / "third" / "fwstore.json").unlink()
    return partial(at, "near")


@pytest.mark.filterwarnings("ignore:site third is silent")
def test_a_site_is_retired_and_told_of(near: Command) -> None:
    told = near("site", "retire", "third", "--reason", "burnt down", "--yes", "--json")
    assert told.code == 0, told.errors
    found = json.loads(told.output)
    assert (found["site"], found["held_at"], found["forced"]) == ("third", ["near", "far"], False)
    status = json.loads(near("status", "--json").output)
    states = {site["name"]: site for site in status["sites"]}
    assert [name for name, site in states.items() if site["retired"]] == ["third"]
    assert states["third"]["uuid"] == found["uuid"]
    assert "retired: burnt down" in near("status").output


def test_a_site_that_answers_is_not_retired_by_mistake(near: Command) -> None:
    refused = near("site", "retire", "far", "--reason", "tidying", "--yes")
    assert refused.code == ExitCode.USAGE
    assert "answers" in refused.errors
    asked = near("site", "retire", "far", "--reason", "tidying", "--force")
    assert asked.code == ExitCode.USAGE
    assert "say --yes" in asked.errors


def test_the_risk_of_force_is_told_before(near: Command) -> None:
    told = near("site", "retire", "--help").output
    assert "two histories" in " ".join(told.replace("│", " ").split())
