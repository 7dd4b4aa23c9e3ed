"""A repository in the memory of this process, forgotten after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fwstore
from fwstore.store import memory


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty store."""
    name = request.node.nodeid
    yield f"memory://{name}"
    memory._shared.pop(name, None)


@pytest.fixture
def repo(url: str) -> Iterator[fwstore.Repository]:
    """An empty repository."""
    with fwstore.open(url, limits=fwstore.Limits(threads=2)) as repository:
        yield repository


@pytest.fixture
def run(repo: fwstore.Repository) -> fwstore.Run:
    """A run without checkpoints."""
    return repo.run("run")
