"""A small repository of one site, and one of several, and ways to run commands against them."""

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
    return lambda *words: _run(capsys, [*map(str, words), "-C", repository])


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """Two sites, of which `near` has steps 10 and 20 of run gpt, and a witness."""
    file = tmp_path / "sites.toml"
    file.write_text(
        """
        name = "two"
        [sites.near]
        store = "near"
        [sites.far]
        store = "far"
        [sites.third]
        store = "third"
        role = "witness"
        [[links]]
        from = "near"
        to = "far"
        cap = "80 Mbit/s"
        """,
        encoding="utf-8",
    )
    with fwstore.open(file, site="near") as opened, opened.run("gpt").writer() as writer:
        for step in (10, 20):
            writer.save(step, make_state(step)).result()
    return file


@pytest.fixture
def at(topology: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command in this process at a site, which is named first."""
    return lambda site, *words: _run(
        capsys, [*map(str, words), "-C", str(topology), "--site", site]
    )


def _run(capsys: pytest.CaptureFixture[str], words: list[str]) -> Outcome:
    capsys.readouterr()
    code = run(words)
    shown = capsys.readouterr()
    return Outcome(code, shown.out, shown.err)
