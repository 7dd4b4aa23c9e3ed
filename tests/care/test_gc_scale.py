"""What a collection costs follows what is given up, not how much stays."""

from __future__ import annotations

import pytest

from fwstore.care.gc import GcOptions, GcReport, collect
from fwstore.care.orphans import DEAD_MANIFEST, DEAD_PACK
from fwstore.care.survey import ROOTS_READ_MAX, UNUSED_MANIFEST, UNUSED_PACK
from fwstore.format.keys import parse_pack_key
from fwstore.plan.mark import Garbage
from fwstore.plan.retention import Keep
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.lineages import (
    Saver,
    canonical_steps,
    fresh_log,
    keys_under,
    make_runtime,
    make_store,
    missing_of_roots,
    pack_keys,
    resume,
)

pytestmark = pytest.mark.slow

GIVEN_UP = 10
FEW, MANY = 100, 10_000


def long_run(saves: int, *, frozen: bool) -> tuple[MemoryStore, Saver]:
    """A run of many saves, each of which writes a pack; all may share one that the first save wrote."""
    store = make_store()
    saver = Saver(resume(store))
    saver.commit(0, fresh=2)
    shared = saver.packs[:1] if frozen else []
    for step in range(1, saves):
        saver.commit(step, reuse=shared)
    return store, saver


def collected(store: MemoryStore, options: GcOptions) -> tuple[GcReport, int]:
    """Collect in a process that has the log open; return what it did and its number of requests."""
    counted = FaultyStore(store)
    log = fresh_log(counted)
    counted.reset()
    report = collect(log, options)
    return report, len(counted.operations)


def cost(saves: int, *, frozen: bool, orphans: bool, before: int) -> int:
    """Give up ten saves of a run whose first ones went before; return the number of requests."""
    store, saver = long_run(saves, frozen=frozen)
    if before:
        collected(store, GcOptions(keep=Keep(last=saves - before)))
    packs = pack_keys(store, saver.term.keys)
    keep = Keep(last=saves - before - GIVEN_UP)
    report, requests = collected(store, GcOptions(keep=keep, orphans=orphans))
    assert [v.step for v in report.expired] == list(range(before, before + GIVEN_UP))[::-1]
    assert {line.reason for line in report.garbage} == {UNUSED_PACK, UNUSED_MANIFEST}
    assert len(packs - pack_keys(store, saver.term.keys)) >= GIVEN_UP - 1
    assert missing_of_roots(fresh_log(store)) == []
    return requests


@pytest.mark.parametrize(
    ("frozen", "orphans", "before"),
    [(False, False, 0), (True, False, 0), (False, True, 0), (True, True, 10)],
    ids=["after a commit", "after a commit, frozen pack", "full", "full, frozen pack"],
)
def test_ten_of_ten_thousand_cost_as_much_as_ten_of_a_hundred(
    *, frozen: bool, orphans: bool, before: int
) -> None:
    few, many = (
        cost(saves, frozen=frozen, orphans=orphans, before=before) for saves in (FEW, MANY)
    )
    assert many <= 3 * few


def test_what_too_many_may_need_is_left_to_a_full_collection() -> None:
    """The first save wrote one pack that all share and one that nobody else needs: their group is one."""
    store, saver = long_run(FEW + GIVEN_UP + ROOTS_READ_MAX, frozen=True)
    (own,) = set(first_packs(store, saver)) - {saver.packs[0].key([saver.term.keys])}
    keep = Keep(last=FEW + ROOTS_READ_MAX)
    collected(store, GcOptions(keep=keep, orphans=False))
    assert own in pack_keys(store, saver.term.keys)
    planned, _ = collected(store, GcOptions(keep=keep, dry_run=True))
    assert [(line.reason, line.objects) for line in planned.garbage] == [(DEAD_PACK, 1)]
    report, _ = collected(store, GcOptions(keep=keep))
    assert report.garbage == planned.garbage
    assert own not in pack_keys(store, saver.term.keys)
    assert missing_of_roots(fresh_log(store)) == []


def first_packs(store: MemoryStore, saver: Saver) -> list[str]:
    keys = pack_keys(store, saver.term.keys)
    return [key for key in keys if (parse_pack_key(key).term, parse_pack_key(key).save) == (1, 1)]


def test_a_reconcile_reports_the_orphans_of_dead_sessions_first_and_takes_no_living_key() -> None:
    store, saver = long_run(FEW, frozen=True)
    dead: set[str] = set()
    for seed in range(20, 25):
        # A session that dies before its record is written.
        before = set(keys_under(store, ""))
        saver.write(10**6 + seed, fresh=3)
        dead |= set(keys_under(store, "")) - before
        saver = Saver(resume(store, make_runtime(seed)))
    living = set(keys_under(store, "")) - dead
    explained: list[Garbage] = []
    planned, _ = collected(store, GcOptions(dry_run=True, explain=explained.append))
    assert {found.key for found in explained} == dead
    assert set(keys_under(store, "")) == living | dead
    report, _ = collected(store, GcOptions())
    assert report.garbage == planned.garbage
    assert {line.reason for line in report.garbage} == {DEAD_PACK, DEAD_MANIFEST}
    assert report.bytes_deleted == sum(found.size for found in explained)
    assert living <= set(keys_under(store, ""))
    assert not dead & set(keys_under(store, ""))
    assert canonical_steps(store) == list(range(FEW))[::-1]
