"""Branches and the graph on the command line: drawn right, promoted only when told to."""

from __future__ import annotations

import pytest

import fwstore
from fwstore_cli.exits import ExitCode
from fwstore_cli.graph import draw
from support.commands import Command, make_state


def save(repository: str, *steps: int, at: int | None = None) -> None:
    with fwstore.open(repository) as opened:
        run = opened.run("gpt")
        with run.writer(base=None if at is None else run[at]) as writer:
            for step in steps:
                writer.save(step, make_state(step)).result()


def shape(repository: str) -> list[str]:
    with fwstore.open(repository) as opened:
        lines = draw(opened.run("gpt").terms())
    return [
        line if node is None else f"{line} {node.checkpoint.step if node.checkpoint else 'term'}"
        for line, node in lines
    ]


def test_the_graph_of_one_line(repository: str) -> None:
    assert shape(repository) == ["* 30", "* 20", "* 10", "= term"]


def test_the_graph_shows_what_was_left_behind(repository: str) -> None:
    save(repository, 20, at=10)
    save(repository, 15, 25, at=10)
    save(repository, 35)
    assert shape(repository) == [
        "* 35",
        "= term",
        "* 25",
        "* 15",
        "= term",
        "| o 20",
        "| = term",
        "| | o 30",
        "| | o 20",
        "| |/",
        "|/|",
        "|/",
        "* 10",
        "= term",
    ]


def test_the_graph_begins_anew_where_bases_were_removed(repository: str) -> None:
    save(repository, 20, at=10)
    with fwstore.open(repository) as opened:
        opened.run("gpt").remove(10)
    assert shape(repository) == ["* 20", "= term", "o 30", "o 20", "= term"]


def test_log_draws_the_graph(command: Command, repository: str) -> None:
    save(repository, 20, at=10)
    drawn = command("log", "gpt", "--graph").output
    assert [line.split()[0] for line in drawn.splitlines()[1:]] == [
        "*",
        "=",
        "|",
        "|",
        "|/",
        "*",
        "=",
    ]
    assert "after step 10" in drawn
    assert "not shown" in command("log", "gpt", "--graph", "-n", 2).errors
    newest, oldest = command("log", "gpt", "--graph", "--json").value
    assert (newest["term"], newest["after_step"], newest["tail"]) == (2, 10, [])
    assert [row["step"] for row in newest["checkpoints"]] == [20]
    assert [row["step"] for row in oldest["checkpoints"]] == [10]
    assert [row["step"] for row in oldest["tail"]] == [20, 30]


def test_branches_are_listed_and_promoted(command: Command, repository: str) -> None:
    assert command("branch", "list", "gpt", "--json").value == []
    save(repository, 20, at=10)
    (branch,) = command("branch", "list", "gpt", "--json").value
    assert (branch["branch"], branch["term"]) == ("t1", 1)
    assert [row["step"] for row in branch["checkpoints"]] == [30, 20]
    assert "t1" in command("branch", "list", "gpt").output
    done = command("branch", "promote", "gpt", "t1", "--yes", "--json").value
    assert (done["newest_step"], [row["step"] for row in done["superseded"]]) == (30, [20])
    assert [row["term"] for row in command("ls", "gpt", "--json").value] == [1, 1, 1]
    assert "left behind" in command("branch", "promote", "gpt", "t2", "-y").output


@pytest.mark.parametrize("words", [(), ("--json",)], ids=str)
def test_a_promotion_asks_first(command: Command, repository: str, words: tuple[str, ...]) -> None:
    save(repository, 20, at=10)
    refused = command("branch", "promote", "gpt", "t1", *words)
    assert refused.code == ExitCode.USAGE
    assert "leave steps 20 behind" in refused.errors
    assert "--yes" in refused.errors
    assert [row["step"] for row in command("ls", "gpt", "--json").value] == [10, 20]


def test_a_branch_that_is_not_there(command: Command) -> None:
    missing = command("branch", "promote", "gpt", "t9", "--yes")
    assert missing.code == ExitCode.NOT_FOUND
    assert "nothing was left behind" in missing.errors
