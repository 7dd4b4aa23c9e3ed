"""A pytest plugin that runs any tests with a bug of the table: `PYTHONPATH=tests pytest -p sim.bugged --bug NAME tests/log`."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from sim.bugs import BUGS, switched_on


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bug", required=True, help="name of a bug in sim/bugs.py")


def pytest_configure(config: pytest.Config) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == config.getoption("--bug"))
    on = ExitStack()
    on.enter_context(switched_on(bug))
    config.add_cleanup(on.close)
