"""A run in a directory, for tests that do something wrong to it, and empty stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fwstore
from fwstore.store import memory
from support.offers import QUICK, RUN
from support.oracle import make_state


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty store in memory."""
    name = request.node.nodeid
    yield f"memory://{name}"
    memory._shared.pop(name, None)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a repository: its run has a checkpoint of step 1."""
    with fwstore.open(tmp_path / "store") as repository, repository.run(RUN).writer() as writer:
        writer.save(1, make_state(1)).result()
    return tmp_path / "store"


@pytest.fixture
def run(place: Path) -> Iterator[fwstore.Run]:
    """That run."""
    with fwstore.open(place, limits=QUICK) as repository:
        yield repository.run(RUN)
