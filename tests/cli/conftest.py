"""A small repository and a way to run commands against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore_cli.main import run


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    output: str
    errors: str

    @property
    def value(self) -> Any:
        """The JSON document on standard output."""
        assert self.code == 0, self.errors
        return json.loads(self.output)


Command = Callable[..., Outcome]


def make_state(step: int) -> dict[str, Any]:
    """A state of which only half the bytes change with the step."""
    frozen = np.arange(200_000, dtype=np.float32).reshape(400, 500)
    return {
        "model": {"frozen": frozen, "trained": np.full((400, 500), step, np.float32)},
        "step": step,
    }


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
