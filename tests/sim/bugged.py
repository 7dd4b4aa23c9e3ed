"""A pytest plugin that runs any tests with a bug of the table: `PYTHONPATH=tests pytest -p sim.bugged --bug NAME tests/log`.

With `--marks FILE` it leaves out the tests of a suite that has failed, and writes which suites did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from sim.bugs import BUGS, switched_on

# Which tests are a suite, for the table of bugs: enough of each for an answer within seconds.
SUITES: Mapping[str, Sequence[str]] = {
    "log": ("tests/log/",),
    "collection": ("tests/care/test_gc.py", "tests/care/test_gc_crash.py"),
    "interleaving": ("tests/care/test_interleaving.py",),
    "crash points": (
        "tests/e2e/test_crash_points.py::test_a_process_dies_at_every_operation[the first save]",
        "tests/e2e/test_crash_points.py::test_a_writer_goes_on_after_a_save_that_failed[lose]",
    ),
    "ranks": ("tests/e2e/test_rank_deaths.py::test_a_rank_dies_at_every_write[1]",),
    "checkpoints": (
        "tests/checkpoint/test_fork.py",
        "tests/checkpoint/test_load.py",
        "tests/checkpoint/test_references.py",
    ),
    "content": ("tests/content/test_damage.py", "tests/content/test_manifest.py"),
    "formats": ("tests/format/test_record.py", "tests/format/test_frames.py"),
    "any order": ("tests/e2e/test_stateful.py",),
    "corruption": (
        "tests/e2e/test_corruption.py::test_what_is_not_ours_at_all_is_corrupt",
        "tests/e2e/test_corruption.py::test_bytes_behind_the_end",
    ),
    "hostile input": (
        "tests/e2e/test_hostile_input.py::test_what_is_hostile_ends_in_one_typed_error[JSON",
        "tests/e2e/test_hostile_input.py::test_what_is_hostile_ends_in_one_typed_error[frames",
    ),
    "power loss": ("tests/store/test_power_loss.py",),
    "stores": ("tests/store/test_directory.py",),
    "replication": (
        "tests/wan/test_replicator.py",
        "tests/wan/test_replicated_garbage.py",
        "tests/wan/test_turns.py",
    ),
    "sites": ("tests/wan/test_sites.py", "tests/wan/test_reading.py", "tests/wan/test_resume.py"),
}
# Of whole folders only the quick tests are asked.
_WHOLE = {"interleaving", "crash points", "ranks", "any order", "corruption", "power loss"}
_SLOW = ("slow", "s3", "rgw", "dist", "gpu")
_EXAMPLES = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bug", required=True, help="name of a bug in sim/bugs.py")
    parser.addoption("--marks", type=Path, help="where to write which suites failed")


def pytest_configure(config: pytest.Config) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == config.getoption("--bug"))
    on = ExitStack()
    on.enter_context(switched_on(bug))
    config.add_cleanup(on.close)
    if config.getoption("--marks"):
        hypothesis.settings.register_profile("dev", max_examples=_EXAMPLES, deadline=None)
        hypothesis.settings.load_profile("dev")
        config.pluginmanager.register(Marks(config.getoption("--marks")))


class Marks:
    """Notes which suites fail; each is over with its first failure.

    Args:
        path: Where the notes are written in the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: set[str] = set()

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        asked = (item for item in items if suite_of(item.nodeid))
        items[:] = [
            item
            for item in asked
            if suite_of(item.nodeid) in _WHOLE or not any(map(item.get_closest_marker, _SLOW))
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        # True says that the test was called: its suite has noticed the bug, so it need not be.
        return True if suite_of(pyfuncitem.nodeid) in self._failed else None

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(suite_of(report.nodeid))

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps({suite: int(suite in self._failed) for suite in SUITES}))


def suite_of(test: str) -> str:
    """Return the suite of a test; none for one that is asked about no bug."""
    found = (name for name, tests in SUITES.items() if test.startswith(tuple(tests)))
    return next(found, "")
