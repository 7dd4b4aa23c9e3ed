"""When a hold ends: by what the log of its home says, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from fwstore.format.record import Held, ObjectRef
from fwstore.format.summary import HoldEntry, SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.wan.holds import ended_holds as all_ended
from support.stored import BODIES, LINEAGE, SITE, record

HOME = "6" * 32
REF = ObjectRef("ab" * 32, 10)


def name(term: int, save: int) -> str:
    return f"{save:012d}-t{term}-s{save}-00112233445566ff"


def hold(term: int, save: int, *, intent: bool = False) -> HoldEntry:
    token = f"{term:016x}{save:016x}"
    tables = () if intent else (REF,)
    return HoldEntry(token, name(term, save), term, save, HOME, tables, (), intent, 0)


def entry(term: int, save: int, *, complete: bool) -> SnapshotEntry:
    held = () if complete else (Held(SITE, "4" * 32, (REF,)),)
    return SnapshotEntry(
        id=name(term, save), step=save, term=term, save=save, parent=None, root=REF, tables=(), groups=(),
        foreign=(), bytes_logical=0, bytes_written=0, metrics={}, position=None, holds=held,
        source=HOME if complete else None, seq=0, wall_time=0.0,
    )  # fmt: skip


def own(*holds: HoldEntry) -> Fold:
    fold = Fold(LINEAGE)
    fold.holds = {one.hold: one for one in holds}
    return fold


def home(*entries: SnapshotEntry, fence: int = 1, **changes: Any) -> dict[str, Fold]:
    fold = Fold(LINEAGE)
    fold.fence = fence
    fold.entries = {one.id: one for one in entries}
    fold.saves = {one.term: one.save for one in entries}
    for attribute, value in changes.items():
        setattr(fold, attribute, value)
    return {HOME: fold}


def ended_holds(fold: Fold, homes: dict[str, Fold], *retired: str) -> list[HoldEntry]:
    return all_ended(fold, homes, lambda uuid: uuid in retired)


OLD, NEW = hold(1, 1), hold(1, 2)
NEWEST = entry(1, 2, complete=False)


@pytest.mark.parametrize(
    "homes",
    [
        pytest.param(home(entry(1, 1, complete=True), NEWEST), id="published"),
        pytest.param(
            home(entry(1, 1, complete=False), NEWEST, expired={name(1, 1): None}), id="expired"
        ),
        pytest.param(home(NEWEST), id="collected, or never committed"),
    ],
)
def test_a_hold_ends_by_what_became_of_its_snapshot_at_home(homes: dict[str, Fold]) -> None:
    assert ended_holds(own(OLD, NEW), homes) == [OLD]


@pytest.mark.parametrize(
    "homes",
    [
        pytest.param({}, id="home was not read"),
        pytest.param(home(entry(1, 1, complete=False), NEWEST), id="not complete at home"),
        pytest.param(home(), id="the commit may still come"),
    ],
)
def test_until_then_it_stands(homes: dict[str, Fold]) -> None:
    assert ended_holds(own(OLD, NEW), homes) == []


def test_the_newest_stands_until_its_job_is_fenced() -> None:
    done = (entry(1, 1, complete=True), entry(1, 2, complete=True))
    assert ended_holds(own(NEW), home(*done)) == []
    assert ended_holds(own(NEW), home(*done, fence=2)) == [NEW]


def test_fenced_before_its_commit_it_ends() -> None:
    assert ended_holds(own(NEW), home(fence=2)) == [NEW]
    assert ended_holds(own(NEW), home(NEWEST, fence=2)) == []


def test_all_end_with_their_run() -> None:
    assert ended_holds(own(OLD, NEW), home(NEWEST, closed="deleted")) == [OLD, NEW]


def test_all_end_with_a_home_that_is_retired() -> None:
    assert ended_holds(own(OLD, NEW), {}, SITE) == []
    assert ended_holds(own(OLD, NEW), {}, HOME) == [OLD, NEW]


def test_intents_are_none_of_them() -> None:
    assert ended_holds(own(hold(1, 1, intent=True)), home(fence=5)) == []


def test_a_zombie_holds_nothing() -> None:
    fold = Fold(LINEAGE)
    fold.fence = 9
    refusal = fold.refusal(record(BODIES["hold"]), lambda uses, entry: False)
    assert refusal == "fenced"
