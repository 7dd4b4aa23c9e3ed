"""Tests that need a GPU are left out where there is none, and run where there is one."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave them out, and say how many."""
    if torch.cuda.is_available():
        return
    without = [test for test in items if test.get_closest_marker("gpu") is not None]
    config.hook.pytest_deselected(items=without)
    items[:] = [test for test in items if test.get_closest_marker("gpu") is None]
