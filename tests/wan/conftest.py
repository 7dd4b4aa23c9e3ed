"""Sites for tests of what happens between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.topologies import Places, places


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Places]:
    """Two sites that train, `a` and `b`, and a witness `w`."""
    with places(tmp_path) as made:
        yield made
