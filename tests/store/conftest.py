"""One store of every kind, each fresh."""

from __future__ import annotations

import pytest

from fwstore.sched.runtime import Runtime, system_runtime


@pytest.fixture
def runtime() -> Runtime:
    """The runtime of production."""
    return system_runtime()
