"""Stores of every kind, each fresh, and a runtime that does not wait."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fwstore.sched.runtime import Runtime
from fwstore.store.address import open_store
from fwstore.store.base import Store
from support.ceph import Gateway
from support.hasty import hasty_runtime


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """The runtime of production, but for waiting."""
    made = hasty_runtime()
    yield made
    made.scheduler.close()


@pytest.fixture
def rgw_url(
    rgw_gateway: Gateway,
    rgw_bucket: str,
    clean_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The address of an empty prefix on the gateway; the environment has its credentials."""
    for name, value in rgw_gateway.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{rgw_bucket}/some/{uuid.uuid4().hex}"


@pytest.fixture(
    params=[
        "memory",
        "directory",
        pytest.param("moto", marks=pytest.mark.s3),
        pytest.param("rgw", marks=pytest.mark.rgw),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a fresh, empty store of each kind."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "directory":
        return str(tmp_path / "new" / "root")
    if request.param == "moto":
        return f"s3://{request.getfixturevalue('s3_bucket')}/some/{uuid.uuid4().hex}"
    rgw_url: str = request.getfixturevalue("rgw_url")
    return rgw_url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A fresh, empty store of each kind."""
    # Not the fixture `runtime`: credentials are in the environment only now.
    runtime = hasty_runtime()
    made = open_store(url, runtime)
    yield made
    made.close()
    runtime.scheduler.close()
