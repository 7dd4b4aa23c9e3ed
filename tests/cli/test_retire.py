"""`fwstore site retire`: three directories, one of which is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import fwstore
from fwstore_cli.exits import ExitCode
from fwstore_cli.main import run
from support.commands import Outcome, make_state

At = Callable[..., Outcome]


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """Two sites that train and a witness, whose store was wiped."""
    file = tmp_path / "sites.toml"
    file.write_text(
        """
        [sites.near]
        store = "near"
        [sites.far]
        store = "far"
        [sites.third]
        store = "third"
        role = "witness"
        """,
        encoding="utf-8",
    )
    with fwstore.open(file, site="near") as opened, opened.run("gpt").writer() as writer:
        writer.save(10, make_state(10)).result()
    (tmp_path / "third" / "fwstore.json").unlink()
    return file


@pytest.fixture
def near(topology: Path, capsys: pytest.CaptureFixture[str]) -> At:
    """Runs one command in this process at a site."""

    def run_command(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([*map(str, words), "-C", str(topology), "--site", "near"])
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return run_command


@pytest.mark.filterwarnings("ignore:site third is silent")
def test_a_site_is_retired_and_told_of(near: At) -> None:
    told = near("site", "retire", "third", "--reason", "burnt down", "--yes", "--json")
    assert told.code == 0, told.errors
    found = json.loads(told.output)
    assert (found["site"], found["held_at"], found["forced"]) == ("third", ["near", "far"], False)
    status = json.loads(near("status", "--json").output)
    states = {site["name"]: site for site in status["sites"]}
    assert [name for name, site in states.items() if site["retired"]] == ["third"]
    assert states["third"]["uuid"] == found["uuid"]
    assert "retired: burnt down" in near("status").output


def test_a_site_that_answers_is_not_retired_by_mistake(near: At) -> None:
    refused = near("site", "retire", "far", "--reason", "tidying", "--yes")
    assert refused.code == ExitCode.USAGE
    assert "answers" in refused.errors
    asked = near("site", "retire", "far", "--reason", "tidying", "--force")
    assert asked.code == ExitCode.USAGE
    assert "say --yes" in asked.errors


def test_the_risk_of_force_is_told_before(near: At) -> None:
    told = near("site", "retire", "--help").output
    assert "two histories" in " ".join(told.replace("│", " ").split())
