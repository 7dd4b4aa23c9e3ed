"""A small repository and a way to run commands against it."""

from __future__ import annotations

from pathlib import Path

import pytest

import fwstore
from fwstore_cli.main import run
from support.commands import Command, Outcome, make_state


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """The URL of a repository with run gpt at steps 10, 20 and 30."""
    url = str(tmp_path / "repository")
    with fwstore.open(url) as opened, opened.run("gpt").writer() as writer:
        for step in (10, 20, 30):
            writer.save(step, make_state(step), metrics={"loss": 1 / step}).result()
    return url


@pytest.fixture
def command(repository: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command in this process against the repository."""

    def run_command(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([*map(str, words), "-C", repository])
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return run_command
