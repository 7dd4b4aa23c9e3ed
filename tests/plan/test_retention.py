"""Retention: pure, protective, explained."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import InvalidInput
from fwstore.format.record import ObjectRef
from fwstore.format.summary import SnapshotEntry
from fwstore.plan.retention import Keep, plan_expire


def entry(step: int, **metrics: float) -> SnapshotEntry:
    return SnapshotEntry(
        id=f"{step:012d}-t1-s{step + 1}-{'a' * 16}", step=step, term=1, save=step + 1, parent=None,
        root=ObjectRef("ab" * 32, 1), tables=(), groups=(), foreign=(), bytes_logical=0,
        bytes_written=0, metrics=metrics, position=None, holds=(), source=None, seq=0, wall_time=0.0,
    )  # fmt: skip


def chain(*steps: int) -> list[SnapshotEntry]:
    """Newest first, with a loss that falls and an accuracy that does too."""
    return [entry(step, loss=1000.0 - step, accuracy=-step) for step in sorted(steps, reverse=True)]


def kept(entries: list[SnapshotEntry], keep: Keep, **protected: str) -> list[int]:
    return [verdict.step for verdict in plan_expire(entries, keep, protected).kept]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(last=2), [90, 80]),
        (Keep(last=1), [90]),
        (Keep(last=100), [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]),
        (Keep(every_steps=50), [90, 50, 0]),
        (Keep(every_steps=25), [90, 80, 50, 30, 0]),
        (Keep(best=("loss", 2)), [90, 80]),
        (Keep(best=("accuracy", 2, "max")), [90, 10, 0]),
        (Keep(best=("missing", 2)), [90]),
        (Keep(last=1, every_steps=50, best=("accuracy", 1, "max")), [90, 50, 0]),
    ],
)
def test_rules(keep: Keep, expected: list[int]) -> None:
    assert kept(chain(*range(0, 100, 10)), keep) == expected


def test_values_that_are_not_numbers_are_never_best() -> None:
    entries = [entry(3), entry(2, loss=float("nan")), entry(1, loss=5.0), entry(0, loss=9.0)]
    assert kept(entries, Keep(best=("loss", 1))) == [3, 1]


def test_of_equal_values_the_newest_is_best() -> None:
    entries = [entry(step, loss=1.0) for step in (3, 2, 1)]
    assert kept(entries, Keep(best=("loss", 2))) == [3, 2]


@given(
    st.lists(st.integers(0, 500), unique=True, max_size=30),
    st.builds(
        Keep,
        last=st.integers(1, 5),
        every_steps=st.none() | st.integers(1, 100),
        best=st.none() | st.tuples(st.just("loss"), st.integers(1, 4)),
    ),
    st.data(),
)
def test_protected_snapshots_never_expire(
    steps: list[int], keep: Keep, data: st.DataObject
) -> None:
    entries = chain(*steps)
    chosen = data.draw(st.lists(st.sampled_from(entries), max_size=4)) if entries else []
    protected = {one.id: "pinned" for one in chosen}
    plan = plan_expire(entries, keep, protected)
    gone = {verdict.id for verdict in plan.expired}
    assert not gone & protected.keys()
    assert not entries or entries[0].id not in gone
    assert len(plan.kept) + len(plan.expired) == len(entries)
    assert all(verdict.reason for verdict in (*plan.kept, *plan.expired))
    again = plan_expire([one for one in entries if one.id not in gone], keep, protected)
    assert again.expired == ()


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"last": 0},
        {"every_steps": 0},
        {"best": ("loss",)},
        {"best": ("loss", 0)},
        {"best": ("loss", 1, "low")},
        {"best": (3, 1)},
        {"best": ("loss", 1.5)},
        {"best": ("loss", True)},
        {"best": 5},
        {"best": "loss"},
        {"last": "3"},
        {"last": 2.5},
        {"last": True},
        {"last": float("nan")},
        {"every_steps": "10"},
        {"every_steps": 1.5},
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="Keep"):
        Keep(**rules)  # type: ignore[arg-type]
