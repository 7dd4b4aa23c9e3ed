"""Packs on their way: parts, proof, other sources, what a crash costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import Corrupt, NotFound, Unavailable
from fwstore.codec.hashing import ContentHash
from fwstore.content.footers import Pack
from fwstore.sched import Runtime, ThreadScheduler
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from fwstore.wan.copy import SILENT_S, Copier, CopyTally, PackCopy, Supply
from support.faults import Crash, Fault, FaultyStore, Operation, Plan, crash_at, every_crash
from support.lineages import TestClock
from support.snapshots import Site, make_runtime

PART = 6_000


def small_runtime(**limits: Any) -> Runtime:
    small = {"part_bytes": PART, "read_request_bytes": 2_500, "pack_bytes": 30_000}
    return make_runtime(None, 3, **{**small, **limits})


def saved(codes: int = 1) -> tuple[MemoryStore, list[Pack]]:
    """A store with packs of chunks of about 1000 bytes, and how its table tells of them."""
    store = MemoryStore(make_runtime())
    site = Site(store, small_runtime())
    rng = np.random.default_rng(codes)
    array = rng.integers(0, 255, (97, 1001), np.uint8)
    built = site.save({("w",): array}, {("w",): ((1, 1), (1, 1001))})
    return store, site.open(built).all_packs()


def copies(packs: Sequence[Pack], *supplies: Supply) -> list[PackCopy]:
    return [
        PackCopy(pack.key, pack.info, tuple((supply, pack.key) for supply in supplies))
        for pack in packs
    ]


def copy(
    target: Store, packs: Sequence[Pack], *sources: Store, runtime: Runtime | None = None
) -> CopyTally:
    supplies = [Supply(f"site{number}", source) for number, source in enumerate(sources)]
    copier = Copier(target, runtime or small_runtime(), ContentHash())
    return copier.copy(copies(packs, *supplies))


def same(one: Store, other: Store, packs: Sequence[Pack]) -> bool:
    limit = 1 << 20
    return all(
        one.get(p.key, limit_bytes=limit) == other.get(p.key, limit_bytes=limit) for p in packs
    )


def test_packs_arrive_byte_for_byte_and_nothing_else_stays() -> None:
    source, packs = saved()
    assert len(packs) == 4
    target = MemoryStore(make_runtime())
    tally = copy(target, packs, source)
    assert same(source, target, packs)
    assert {info.key for info in target.list("")} == {pack.key for pack in packs}
    # Headers of packs follow from their footers and do not cross.
    assert tally.bytes_received == sum(pack.info.size - 64 for pack in packs)
    assert (tally.packs, tally.packs_found) == (4, 0)


def test_what_is_here_is_verified_and_not_asked_for_again() -> None:
    source, packs = saved()
    target = MemoryStore(make_runtime())
    copy(target, packs, source)
    again = copy(target, packs, FaultyStore(source, lambda o: "fail"))
    assert (again.packs, again.packs_found, again.bytes_received) == (0, 4, 0)


@pytest.mark.parametrize("place", [0, 70, 200, -1, -70])
def test_a_pack_that_stands_here_with_a_wrong_byte_is_replaced(place: int) -> None:
    source, packs = saved()
    target = MemoryStore(make_runtime())
    copy(target, packs, source)
    content = bytearray(target.get(packs[1].key, limit_bytes=1 << 20))
    content[place] ^= 4
    target.put(packs[1].key, [content], mode="overwrite")
    assert copy(target, packs, source).packs == 1
    assert same(source, target, packs)


def test_every_flipped_byte_of_a_source_is_noticed_and_never_visible() -> None:
    source, packs = saved()
    pack = packs[-1]
    clean = source.get(pack.key, limit_bytes=1 << 20)
    for place in range(0, len(clean), 97):
        content = bytearray(clean)
        content[place] ^= 1
        bad = MemoryStore(make_runtime())
        bad.put(pack.key, [content], mode="create")
        target = MemoryStore(make_runtime())
        if place < 64:
            # The header is made from the footer, so damage of it does not cross.
            copy(target, [pack], bad)
            assert same(source, target, [pack])
            continue
        with pytest.raises(Corrupt, match=f"{pack.key} at site0"):
            copy(target, [pack], bad)
        assert not list(target.list("packs/"))
        copy(target, [pack], bad, source)
        assert same(source, target, [pack])


def test_a_bad_answer_is_asked_for_once_more() -> None:
    source, packs = saved()
    flips = [0]

    def flip_once(operation: Operation) -> Fault | None:
        flips[0] += operation.name == "read_into"
        return "flip" if flips[0] == 3 and operation.name == "read_into" else None

    target = MemoryStore(make_runtime())
    copy(target, packs, FaultyStore(source, flip_once))
    assert same(source, target, packs)


def test_the_next_source_goes_on_where_one_dies_in_the_middle() -> None:
    """Nothing that arrived is fetched again, and who was silent is asked last."""
    source, packs = saved()
    dying = FaultyStore(source, lambda o: "fail" if o.number > 9 else None)
    other = FaultyStore(source)
    target = MemoryStore(make_runtime())
    tally = copy(target, packs, dying, other)
    assert same(source, target, packs)
    assert tally.packs == 4
    refused = [operation for operation in dying.operations if operation.number > 9]
    assert len(refused) <= 2
    with pytest.raises(Unavailable, match="site0"):
        copy(MemoryStore(make_runtime()), packs, FaultyStore(source, lambda o: "fail"))
    with pytest.raises(NotFound, match="site0"):
        copy(MemoryStore(make_runtime()), packs, MemoryStore(make_runtime()))


def test_who_is_silent_is_asked_last_for_a_while_and_nobody_else_is() -> None:
    source, packs = saved()
    runtime, target = replace(small_runtime(), clock=TestClock()), MemoryStore(make_runtime())
    empty = FaultyStore(MemoryStore(make_runtime()))
    silent = FaultyStore(source, lambda o: "fail")
    supplies = [Supply("empty", empty), Supply("silent", silent), Supply("whole", source)]
    copier = Copier(target, runtime, ContentHash())
    copier.copy(copies(packs[:2], *supplies))
    assert (len(empty.operations), len(silent.operations)) == (2, 1)
    runtime.clock.sleep(SILENT_S)
    copier.copy(copies(packs[2:3], *supplies))
    assert len(silent.operations) == 2


def test_a_throttle_that_fails_is_not_blamed_on_the_source() -> None:
    source, packs = saved()

    def refuse(_: int) -> None:
        raise Unavailable("the own store keeps no lease")

    asked = FaultyStore(source)
    copier = Copier(MemoryStore(make_runtime()), small_runtime(), ContentHash())
    with pytest.raises(Unavailable, match=r"^the own store keeps no lease$"):
        copier.copy(copies(packs, Supply("near", asked, refuse), Supply("third", asked)))
    assert asked.operations == []


def test_a_copier_that_is_killed_sends_at_most_one_part_again() -> None:
    """At every operation of the target: what is fetched twice is at most a part, with a footer."""
    source, packs = saved()
    pack = packs[0]
    asked: list[int] = []

    def bring(store: Store) -> None:
        copier = Copier(store, small_runtime(), ContentHash())
        copier.copy(copies([pack], Supply("near", source, asked.append)))

    def scenario(store: Store) -> None:
        asked.clear()
        bring(store)

    scenario(MemoryStore(make_runtime()))
    whole = sum(asked)
    assert whole > 4 * PART
    counted = frozenset({"overwrite", "write", "commit"})
    deaths = every_crash(lambda: MemoryStore(make_runtime()), scenario, counted=counted)
    for count, (death, left) in enumerate(deaths):
        bring(left)
        assert same(source, left, [pack]), death
        assert not list(left.list("staged/")), death
        assert sum(asked) <= whole + PART + pack.info.footer_length + 64, death
        assert count < 60, death


def test_limits_bound_what_is_asked_for_at_once_and_throttle_hears_of_all() -> None:
    source, packs = saved()
    asked: list[int] = []
    copier = Copier(MemoryStore(make_runtime()), small_runtime(), ContentHash())
    tally = copier.copy(copies(packs, Supply("near", source, asked.append)))
    assert max(asked[1:]) <= max(2_500, packs[0].info.footer_length + 64)
    assert sum(asked) == tally.bytes_received


def test_a_pack_of_one_part_is_not_staged() -> None:
    source, packs = saved()
    target = FaultyStore(MemoryStore(make_runtime()))
    copy(target, packs, source, runtime=small_runtime(part_bytes=1 << 20))
    assert {o.name for o in target.operations} == {"head", "begin", "write", "commit"}


def test_a_dead_process_leaves_nothing_visible() -> None:
    source, packs = saved()
    target = MemoryStore(make_runtime())
    for number in range(1, 40):
        dying = FaultyStore(target, crash_at(number))
        with pytest.raises(Crash):
            copy(dying, packs, source)
        for info in target.list("packs/"):
            assert same(source, target, [p for p in packs if p.key == info.key])


def fails_from(number: int) -> Plan:
    return lambda operation: "fail" if operation.number >= number else None


@pytest.mark.parametrize("threads", [1, 2, 3, 12])
def test_a_part_that_does_not_come_ends_its_pack_and_gives_all_memory_back(threads: int) -> None:
    """Other parts of it wait for their turn, and other packs for memory, when it fails."""
    source, packs = saved()
    runtime = small_runtime(inflight_bytes=PART)
    scheduler = ThreadScheduler(threads)
    target = MemoryStore(make_runtime())
    copier = Copier(target, replace(runtime, scheduler=scheduler), ContentHash())
    for number in range(1, 20):
        broken = FaultyStore(source, fails_from(number))
        with pytest.raises(Unavailable):
            copier.copy(copies(packs, Supply("near", broken)))
        target.delete([info.key for info in target.list("")])
    copier.copy(copies(packs, Supply("near", source)))
    assert same(source, target, packs)
    scheduler.close()
