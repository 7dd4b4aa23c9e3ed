"""Loading what is not here yet: brought once, kept, published; whoever dies, whatever is damaged or gone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from fwstore import Checkpoint
from fwstore.base.errors import Corrupt, NotFound, Unavailable
from fwstore.care.gc import GcOptions, collect
from fwstore.format.keys import LineageKeys
from fwstore.format.record import Expire
from fwstore.sched import ThreadScheduler
from fwstore.store.memory import MemoryStore
from support.faults import Fault, FaultyStore, Operation, every_crash
from support.hasty import hasty_runtime
from support.lineages import fresh_log, keys_under, make_store, pack_keys
from support.processes import LIMITS
from support.replicas import check_replica, differing, published, replicate
from support.through import is_right, saved, through

KEYS = LineageKeys("run", 1)


def crossings(near: FaultyStore) -> Counter[tuple[str, str]]:
    """How often every pack was asked for, by operation."""
    return Counter((o.name, o.key) for o in near.operations if o.key.startswith("packs/"))


def packs_of(checkpoint: Checkpoint) -> set[str]:
    return {pack.key for pack in checkpoint.packs()}


def test_what_is_missing_crosses_once_stays_and_is_published() -> None:
    near, far = FaultyStore(saved(make_store(), 10)), make_store()
    checkpoint = through(far, near, step=10)
    assert is_right(checkpoint)
    wanted = packs_of(checkpoint)
    assert len(wanted) > 3
    assert pack_keys(far, KEYS) == wanted
    assert set(crossings(near).values()) == {1}
    assert published(far) == [10]
    log = check_replica(far)
    assert differing(near.inner, far, list(log.fold.entries)) == []
    assert not log.fold.holds
    assert keys_under(far, "staged/") == []
    near.reset()
    assert is_right(through(far, near, step=10))
    assert not [o for o in near.operations if o.key.startswith(("packs/", KEYS.snapshots))]
    assert not replicate(far, near.inner).copied


def test_what_an_older_checkpoint_brought_does_not_cross_again() -> None:
    near, far = FaultyStore(saved(make_store(), 10, 20)), make_store()
    assert is_right(through(far, near, step=10))
    near.reset()
    assert is_right(through(far, near, step=20))
    shared = packs_of(through(far, near, step=10)) & packs_of(through(far, near, step=20))
    assert shared
    assert shared.isdisjoint(key for _, key in crossings(near))
    assert published(far) == [10, 20]


def test_a_part_is_brought_for_a_part_of_the_state_and_replication_brings_the_rest() -> None:
    near, far = FaultyStore(saved(make_store(), 10)), make_store()
    checkpoint = through(far, near, step=10)
    checkpoint.load(only="w0")
    here = pack_keys(far, KEYS)
    assert here
    assert here < packs_of(checkpoint)
    assert published(far) == []
    (hold,) = fresh_log(far).fold.holds.values()
    assert (hold.intent, hold.snapshot) == (True, checkpoint.id)
    collect(fresh_log(far), GcOptions())
    assert pack_keys(far, KEYS) == here
    near.reset()
    replicate(far, near)
    assert here.isdisjoint(key for _, key in crossings(near))
    assert published(far) == [10]


def test_a_reader_that_dies_anywhere_leaves_what_the_next_one_goes_on_with() -> None:
    near = saved(make_store(), 10)
    clean = make_store()
    assert is_right(through(clean, near, step=10))
    deaths = 0
    for death, far in every_crash(make_store, lambda store: through(store, near, step=10).load()):
        deaths += 1
        assert isinstance(far, MemoryStore)
        assert is_right(through(far, near, step=10)), death
        log = check_replica(far)
        assert not log.fold.holds or published(far) == [], death
        replicate(far, near)
        assert published(far) == [10], death
        collect(fresh_log(far), GcOptions())
        check_replica(far)
        assert pack_keys(far, KEYS) == pack_keys(clean, KEYS), death
        assert keys_under(far, "staged/") == [], death
    assert deaths > 20


@pytest.mark.parametrize("fault", ["fail", "flip"])
def test_a_source_that_dies_or_rots_at_the_end_is_replaced_by_the_next(fault: Fault) -> None:
    whole = saved(make_store(), 10)
    third = make_store()
    replicate(third, whole)
    last = 0

    def plan(operation: Operation) -> Fault | None:
        nonlocal last
        last += operation.key.startswith("packs/")
        return fault if last > 6 and operation.key.startswith("packs/") else None

    near, other, far = FaultyStore(whole, plan), FaultyStore(third), make_store()
    assert is_right(through(far, near, other, step=10))
    assert last > 6
    assert 0 < len(crossings(other)) < len(crossings(near))
    assert published(far) == [10]
    check_replica(far)


def test_without_another_source_the_reader_is_told() -> None:
    near = FaultyStore(
        saved(make_store(), 10), lambda o: "fail" if o.key.startswith("packs/") else None
    )
    far = make_store()
    with pytest.raises(Unavailable, match="near"):
        through(far, near, step=10).load()
    near.reset(lambda o: "flip" if o.key.startswith("packs/") else None)
    with pytest.raises(Corrupt, match="near"):
        through(far, near, step=10).load()
    assert published(far) == []
    check_replica(far)


def test_what_was_given_up_here_is_read_and_not_kept() -> None:
    near, far = saved(make_store(), 10, 20), make_store()
    replicate(far, near)
    gone = next(entry for entry in fresh_log(far).fold.live() if entry.step == 10)
    fresh_log(far).append(lambda _: Expire((gone.id,), "simulated"))
    collect(fresh_log(far), GcOptions())
    before = keys_under(far, "")
    with pytest.warns(UserWarning, match="not kept here"):
        assert is_right(through(far, near, step=10, direct=True))
    assert keys_under(far, "") == before


def test_condemned_names_come_back_under_others_and_are_read_there() -> None:
    """The pack of step 10 was condemned here; step 20 shares packs with step 10 and is read through."""
    near, far = saved(make_store(), 10), make_store()
    replicate(far, near)
    entry = fresh_log(far).fold.live()[0]
    fresh_log(far).append(lambda _: Expire((entry.id,), "simulated"))
    collect(fresh_log(far), GcOptions())
    assert pack_keys(far, KEYS) == set()
    saved(near, 20)
    watched = FaultyStore(near)
    assert is_right(through(far, watched, step=20, direct=True))
    assert published(far) == [20]
    assert any(key.endswith(".1") for key in pack_keys(far, KEYS))
    check_replica(far)
    assert max(count for (name, _), count in crossings(watched).items() if name != "head") == 1


def test_threads_of_one_process_bring_every_pack_once() -> None:
    near, far = FaultyStore(saved(make_store(), 10)), make_store()
    scheduler = ThreadScheduler(8)
    runtime = replace(hasty_runtime(LIMITS), scheduler=scheduler)
    try:
        checkpoint = through(far, near, step=10, runtime=runtime)
        readers = [scheduler.spawn("reader", is_right, checkpoint) for _ in range(8)]
        assert all(reader.result(60) for reader in readers)
    finally:
        scheduler.close()
    assert set(crossings(near).values()) == {1}
    assert published(far) == [10]


def test_what_nobody_has_is_missing() -> None:
    near, far = saved(make_store(), 10), make_store()
    checkpoint = through(far, near, step=10)
    entry = checkpoint.entry
    fresh_log(near).append(lambda _: Expire((entry.id,), "simulated"))
    with pytest.raises(NotFound):
        checkpoint.load()
    assert keys_under(far, "packs/") == []
    assert not fresh_log(far).fold.holds
