"""Failed saves warn until they are too many; those that cannot get better raise at once."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from fwstore.base.errors import Corrupt, Fenced, InvalidInput, Unavailable
from fwstore.checkpoint.handle import SaveHandle, SaveStatistics
from fwstore_torch.failures import FailureLimit, SaveFailedWarning
from fwstore_torch.options import SaverOptions, make_settings


class Times:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ended(step: int, outcome: Any) -> SaveHandle:
    future: Future[Any] = Future()
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return SaveHandle(step, future, SaveStatistics(step=step))


def limit(times: Times | None = None) -> FailureLimit:
    return FailureLimit(3, 100.0, times or Times())


def test_failures_in_a_row_warn_then_raise() -> None:
    counted = limit()
    for step in (1, 2):
        counted.watch(ended(step, Unavailable("the store is away")))
        with pytest.warns(SaveFailedWarning, match=f"step {step}"):
            counted.check()
    counted.watch(ended(3, Corrupt("odd")))
    with pytest.raises(Unavailable, match="3 saves in a row") as caught:
        counted.check()
    assert isinstance(caught.value.__cause__, Corrupt)


def test_a_success_starts_the_count_again_and_a_skip_does_not() -> None:
    counted = limit()
    for step, outcome, failures in (
        (1, Unavailable("x"), 1),
        (2, None, 1),
        (3, "a checkpoint", 0),
        (4, Unavailable("x"), 1),
    ):
        counted.watch(ended(step, outcome))
        if isinstance(outcome, Unavailable):
            with pytest.warns(SaveFailedWarning):
                counted.check()
        else:
            counted.check()
        assert counted.failures == failures


def test_a_failure_after_too_long_without_a_save_raises() -> None:
    times = Times()
    counted = limit(times)
    times.now = 90.0
    counted.watch(ended(1, "a checkpoint"))
    counted.check()
    times.now = 180.0
    with pytest.warns(SaveFailedWarning):
        counted.failed(2, Unavailable("x"))
    times.now = 191.0
    with pytest.raises(Unavailable, match="nothing was saved for 101 s"):
        counted.failed(3, Unavailable("x"))


@pytest.mark.parametrize("error", [Fenced("x"), InvalidInput("x"), ZeroDivisionError("x")])
def test_errors_that_stay_raise_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        limit().failed(1, error)


def test_a_save_under_way_is_looked_at_later() -> None:
    counted = limit()
    future: Future[Any] = Future()
    counted.watch(SaveHandle(1, future, SaveStatistics(step=1)))
    counted.check()
    future.set_exception(Unavailable("x"))
    with pytest.warns(SaveFailedWarning):
        counted.check()


def test_every_means_steps_or_time() -> None:
    steps = make_settings({"every": 100})
    assert [step for step in range(301) if steps.is_due(step)] == [100, 200, 300]
    timed = make_settings({"every": "10m", "grace": 30})
    assert (timed.every_s, timed.grace_s, timed.is_due(600)) == (600.0, 30.0, False)
    assert not make_settings({}).is_due(100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": True}, "every=True"),
        ({"every": 1.5}, r"every=1\.5"),
        ({"every": "soon"}, "soon"),
        ({"max_failures": 0}, "max_failures"),
        ({"evry": 10}, "evry"),
        ({"grace": "x"}, "duration"),
    ],
    ids=["zero", "bool", "part", "text", "failures", "typo", "grace"],
)
def test_senseless_options_are_refused(options: SaverOptions, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_settings(options)
