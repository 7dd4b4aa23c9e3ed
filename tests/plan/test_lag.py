"""How far a site is behind: everything that is missing is counted once, and rates come from what arrived."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.format.record import ObjectRef
from fwstore.format.summary import SnapshotEntry
from fwstore.plan.lag import AGES_S, SiteView, lag_of, measured_rate
from fwstore.plan.replication import Priority, ReplicationPlan, Transfer
from support.stored import SITE

NOW = 1_000_000.0


def entry(
    save: int, wall_time: float, *, written: int = 100, source: str | None = None
) -> SnapshotEntry:
    return SnapshotEntry(
        id=f"{10 * save:012d}-t1-s{save}-{'a' * 16}", step=10 * save, term=1, save=save, parent=None,
        root=ObjectRef("ab" * 32, 1), tables=(), groups=(), foreign=(), bytes_logical=1000,
        bytes_written=written, metrics={}, position=None, holds=(), source=source, seq=save,
        wall_time=wall_time,
    )  # fmt: skip


def view(
    saved: list[SnapshotEntry], there: list[SnapshotEntry], missing: list[SnapshotEntry]
) -> SiteView:
    transfers = tuple(
        Transfer(one.id, one.step, Priority.HISTORY, "canonical history", ((SITE, one),))
        for one in missing
    )
    return SiteView(
        run="gpt",
        site="far",
        chain=saved[::-1],
        there={one.id: one for one in there},
        saved={one.id: one for one in saved},
        plan=ReplicationPlan(transfers, ()),
    )


@given(st.lists(st.floats(0, 1e7), max_size=30))
def test_everything_that_is_missing_is_in_one_bucket(ages: list[float]) -> None:
    saved = [entry(number + 1, NOW - age) for number, age in enumerate(ages)]
    lag = lag_of(view(saved, [], saved), NOW)
    assert sum(bucket.checkpoints for bucket in lag.ages) == len(lag.missing) == len(ages)
    assert sum(bucket.bytes_new for bucket in lag.ages) == lag.bytes_missing == 100 * len(ages)
    assert [bucket.age for bucket in lag.ages] == list(AGES_S)


def test_ages_and_steps() -> None:
    saved = [entry(save, NOW - age) for save, age in enumerate((90_000, 7000, 90, 60), start=1)]
    there = [entry(1, NOW, source=SITE)]
    lag = lag_of(view(saved, there, saved[:0:-1]), NOW)
    assert (lag.newest_step, lag.newest_there) == (40, 10)
    assert [one.step for one in lag.missing] == [40, 30, 20]
    assert [bucket.checkpoints for bucket in lag.ages] == [1, 1, 0, 1, 0]
    assert (lag.missing[0].age_s, lag.missing[0].bytes_logical) == (60, 1000)


def test_the_age_is_that_of_the_save_and_not_of_a_copy() -> None:
    saved, copied = entry(1, NOW - 500), entry(1, NOW - 5, source=SITE)
    transfer = Transfer(copied.id, copied.step, Priority.NEWEST, "newest", ((SITE, copied),))
    seen = replace(view([saved], [], []), plan=ReplicationPlan((transfer,), ()))
    assert lag_of(seen, NOW).missing[0].age_s == 500


def test_a_site_that_has_everything() -> None:
    saved = [entry(1, NOW - 5), entry(2, NOW - 4)]
    lag = lag_of(view(saved, saved, []), NOW)
    assert (lag.newest_there, lag.bytes_missing, lag.forecast_s) == (20, 0, 0.0)
    assert lag.bytes_per_second is None


def test_a_run_without_checkpoints() -> None:
    lag = lag_of(view([], [], []), NOW)
    assert (lag.newest_step, lag.newest_there, lag.forecast_s) == (None, None, 0.0)


def test_the_forecast_follows_from_what_arrived() -> None:
    saved = [entry(save, 100.0 * save, written=1000) for save in range(1, 7)]
    # The second waited for the first; the third was copied as soon as it was saved.
    there = [
        entry(1, 150.0, written=1000, source=SITE),
        entry(2, 250.0, written=1000, source=SITE),
        entry(3, 340.0, written=1000, source=SITE),
    ]
    rate = measured_rate({e.id: e for e in there}, {e.id: e for e in saved})
    assert rate == pytest.approx(1000 / 50)
    lag = lag_of(view(saved, there, saved[:2:-1]), NOW)
    assert lag.forecast_s == pytest.approx(3 * 50)


def test_clocks_that_disagree_give_a_rate_all_the_same() -> None:
    saved = {(one := entry(1, 500.0)).id: one}
    there = {(one := entry(1, 100.0, source=SITE)).id: one}
    assert (measured_rate(there, saved) or 0) > 0
    assert lag_of(view([entry(1, NOW + 50)], [], [entry(1, NOW + 50)]), NOW).missing[0].age_s == 0


def test_what_arrived_with_nothing_new_tells_no_rate() -> None:
    saved = {(one := entry(1, 100.0)).id: one}
    there = {(one := entry(1, 200.0, written=0, source=SITE)).id: one}
    assert measured_rate(there, saved) is None
    missing = entry(2, 150.0)
    assert lag_of(view([missing], [], [missing]), NOW).forecast_s is None
