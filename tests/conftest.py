"""Fixtures and settings that every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from support.ceph import Gateway, serve_rgw
from support.figures import Figures
from support.moto import MotoServer, serve_moto

hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    print_blob=True,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "nightly",
    deadline=None,
    print_blob=True,
    max_examples=1_000,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def _profile() -> str:
    if "FWSTORE_SOAK" in os.environ:
        return "nightly"
    return "ci" if os.environ.get("CI") else "dev"


hypothesis.settings.load_profile(os.environ.get("FWSTORE_PROFILE", _profile()))

# One worker runs all tests of a group, so that a server is started once and not once per worker.
_GROUPS = ("s3", "rgw", "gpu")
# What takes one of these is repeated, or counted, by `make soak`.
_SOAKED = {"soak", "figures"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one expensive server together under xdist, and find what `make soak` repeats."""
    for test in items:
        if "FWSTORE_SOAK" in os.environ and _SOAKED & set(getattr(test, "fixturenames", ())):
            test.add_marker(pytest.mark.soak)
        for group in _GROUPS:
            if test.get_closest_marker(group) is not None:
                test.add_marker(pytest.mark.xdist_group(group))
                break


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the developer has exported from changing what is tested."""
    for name in list(os.environ):
        if name.startswith(("FWSTORE_", "AWS_")) and name != "FWSTORE_SOAK":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def soak() -> int:
    """How many times the usual number of rounds the random tests make: 1, or 10 under `make soak`."""
    return int(os.environ.get("FWSTORE_SOAK", "1"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Where a test notes what it counted, for docs/reliability.md."""
    return Figures(request.node.nodeid, int(os.environ.get("FWSTORE_SOAK", "0")))


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """A moto S3 server for the session."""
    with serve_moto() as server:
        yield server


@pytest.fixture(scope="session")
def rgw_gateway() -> Iterator[Gateway]:
    """A Ceph gateway for the session: an S3 server whose conditional writes are atomic."""
    with serve_rgw() as gateway:
        yield gateway


@pytest.fixture(scope="session")
def rgw_bucket(rgw_gateway: Gateway) -> str:
    """The name of a bucket of the gateway; tests keep apart by prefix."""
    return rgw_gateway.make_bucket()


@pytest.fixture
def s3_bucket(
    moto_server: MotoServer, clean_environment: None, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The name of a fresh bucket; the AWS environment points at the server that has it."""
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    return moto_server.make_bucket()
