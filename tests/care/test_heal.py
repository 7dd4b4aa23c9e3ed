"""Healing: what is damaged at one site comes back byte for byte from another, proven, and its bad bytes are kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fwstore.care.gc import GcOptions, collect
from fwstore.care.packcheck import Level
from fwstore.care.quarantine import COPIES_MAX
from fwstore.format.record import Expire
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from fwstore.wan.copy import Supply
from support.faults import Fault, FaultyStore, Operation, every_crash
from support.lineages import fresh_log, keys_under, made_site, make_store
from support.processes import opened
from support.repairs import (
    KEYS,
    again,
    cut,
    everything,
    flip,
    kept,
    lose,
    one_of,
    repair,
    replicated,
    snapshots_and_packs,
)
from support.replicas import replicate
from support.through import STATE, inline_runtime, saved

PARTS = ("pack", "root", "leaf-", "packs-")
Damage = Callable[[Store, str], bytes]


def loads(store: Store, *steps: int) -> bool:
    """Load every step at a site alone and compare it with what was saved."""
    run = opened(store, inline_runtime()).run("run")
    for step in steps:
        state = run[step].load()
        expected = {**STATE, "step": np.full(1000, step, np.float32)}
        if state.keys() != expected.keys():
            return False
        if any(state[name].tobytes() != value.tobytes() for name, value in expected.items()):
            return False
    return True


def is_whole(store: Store) -> bool:
    """Whether a new process that cannot ask anybody finds nothing wrong."""
    report = repair(store)
    return not report.problems and not report.repairs


@pytest.mark.parametrize("damage", [flip, cut, lose])
@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_object_comes_back_byte_for_byte(part: str, damage: Damage) -> None:
    near, far = replicated(10, 20)
    before = snapshots_and_packs(far)
    key = one_of(far, part)
    damage(far, key)
    bad = everything(far).get(key)
    report = repair(far, near)
    assert {problem.key for problem in report.problems} == {key}
    assert not report.left
    (one,) = report.repairs
    assert (one.key, one.healed, one.sites, one.reason) == (key, True, ("near",), "")
    assert snapshots_and_packs(far) == before
    assert kept(far) == ({} if bad is None else {one.quarantined: bad})
    assert (one.quarantined is None) == (bad is None)
    assert is_whole(far)
    assert loads(far, 10, 20)


@pytest.mark.parametrize("level", ["quick", "sample", "data"])
def test_what_a_level_finds_it_heals(level: Level) -> None:
    near, far = replicated(10)
    before = snapshots_and_packs(far)
    for key in keys_under(far, "packs/"):
        flip(far, key, -200)
        lose(far, key)
    report = repair(far, near, level=level)
    assert len(report.repairs) == len(keys_under(near, "packs/")) > 3
    assert not report.left
    assert snapshots_and_packs(far) == before


def test_the_report_tells_which_checkpoints_and_tensors_were_hit() -> None:
    near, far = replicated(10, 20)
    table, leaf = one_of(far, "packs-"), one_of(far, "leaf-")
    shared = _pack_of_both(far)
    for key in (table, leaf, shared):
        flip(far, key, 70)
    report = repair(far, near)
    assert {p.key: p.healed for p in report.problems} == dict.fromkeys((table, leaf, shared), True)
    ids = {entry.step: entry.id for entry in fresh_log(far).fold.live()}
    assert {(p.step, p.snapshot) for p in report.problems} == set(ids.items())
    hit = {(p.key, p.step, p.tensor) for p in report.problems}
    names = {*STATE, "step"}
    step = next(step for step, name in ids.items() if name in table)
    assert {tensor for key, _, tensor in hit if key == table} == names
    assert {(s, tensor) for key, s, tensor in hit if key == leaf} == {(step, n) for n in names}
    assert {s for key, s, _ in hit if key == shared} == {10, 20}
    assert loads(far, 10, 20)


def _pack_of_both(store: Store) -> str:
    run = opened(store, inline_runtime()).run("run")
    first, second = ({pack.key for pack in run[step].packs()} for step in (10, 20))
    return min(first & second)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [flip, lose])
def test_a_source_with_wrong_bytes_is_passed_over(part: str, damage: Damage) -> None:
    near, far = replicated(10)
    third, before = again(near), snapshots_and_packs(far)
    key = one_of(far, part)
    flip(far, key)
    damage(near, key)
    report = repair(far, near, third)
    assert not report.left
    assert "third" in report.repairs[0].sites
    assert snapshots_and_packs(far) == before
    assert is_whole(far)


@pytest.mark.parametrize("part", PARTS)
def test_a_source_that_dies_is_replaced_by_the_next(part: str) -> None:
    near, far = replicated(10)
    before, key = snapshots_and_packs(far), one_of(far, part)
    third = again(near)
    flip(far, key)
    watched = FaultyStore(near)
    repair(again(far), watched, third)
    for number in range(1, len(watched.operations) + 1):

        def die(operation: Operation, at: int = number) -> Fault | None:
            return "fail" if operation.number >= at else None

        dying, hurt = FaultyStore(near, die), again(far)
        assert not repair(hurt, dying, third).left, number
        assert snapshots_and_packs(hurt) == before, number


@pytest.mark.parametrize("part", PARTS[1:])
def test_a_bad_answer_about_a_manifest_is_asked_for_once_more(part: str) -> None:
    near, far = replicated(10)
    key, before = one_of(far, part), snapshots_and_packs(far)
    flip(far, key)
    asked: list[str] = []

    def flip_once(operation: Operation) -> Fault | None:
        asked.extend([key] if operation.key == key else [])
        return "flip" if asked == [key] and operation.key == key else None

    assert not repair(far, FaultyStore(near, flip_once)).left
    assert snapshots_and_packs(far) == before
    assert asked == [key, key]


@pytest.mark.parametrize("part", PARTS)
def test_what_nobody_has_right_is_told_and_left_alone(part: str) -> None:
    near, far = replicated(10)
    key = one_of(far, part)
    flip(far, key)
    flip(near, key, -11)
    before = everything(far)
    report = repair(far, near, silent={"third": "it is cut off"})
    assert {p.key for p in report.left} == {key}
    (one,) = report.repairs
    assert (one.healed, one.sites, one.quarantined) == (False, (), None)
    assert "near" in one.reason
    assert everything(far) == before
    alone = repair(far)
    assert alone.repairs[0].reason == "there is no other site that could have it"
    assert "third is silent" in repair(far, silent={"third": "cut off"}).repairs[0].reason
    assert everything(far) == before


def test_what_belongs_to_the_log_of_a_site_is_never_brought() -> None:
    near, far = replicated(10)
    slot = KEYS.slot(1)
    flip(far, slot, 60)
    before = everything(far)
    report = repair(far, near)
    assert slot in {problem.key for problem in report.left}
    assert {one.key: one.healed for one in report.repairs}[slot] is False
    assert all(one.reason for one in report.repairs)
    assert everything(far) == before


@pytest.mark.parametrize("part", PARTS)
def test_what_could_not_be_looked_at_is_not_replaced(part: str) -> None:
    near, far = replicated(10)
    key = one_of(far, part)
    before = everything(far)
    deaf = FaultyStore(far, lambda o: "fail" if o.key == key and not o.writes else None)
    report = repair(deaf, near)
    (one,) = report.repairs
    assert (one.key, one.healed) == (key, False)
    assert "may be whole" in one.reason
    assert everything(far) == before


@pytest.mark.parametrize("part", PARTS)
def test_a_store_that_does_not_keep_what_is_written_is_told(part: str) -> None:
    near, far = replicated(10)
    key = one_of(far, part)
    flip(far, key)
    written: list[str] = []

    def rot(operation: Operation) -> None:
        if written:
            flip(far, written.pop())
        if operation.key == key and operation.writes:
            written.append(key)

    report = repair(FaultyStore(far, rot), near)
    assert {p.key for p in report.left} == {key}
    (one,) = report.repairs
    assert not one.healed
    assert one.reason
    assert one.quarantined in kept(far)


EVERY = frozenset({"create", "overwrite", "delete", "commit", "begin", "write", "list", "head"})


@pytest.mark.parametrize("damage", [flip, lose])
def test_a_repair_that_dies_anywhere_is_completed_by_the_next(damage: Damage) -> None:
    """At every moment an object is as bad as it was or whole, and its bad bytes are kept before it is whole."""
    near, hurt = replicated(10)
    before = snapshots_and_packs(hurt)
    bad = {}
    for part in PARTS:
        key = one_of(hurt, part)
        damage(hurt, key)
        bad[key] = everything(hurt).get(key)
    deaths = 0
    for death, far in every_crash(lambda: again(hurt), lambda s: repair(s, near), counted=EVERY):
        deaths += 1
        found, saved_bytes = everything(far), kept(far).values()
        for key, content in bad.items():
            assert found.get(key) in (content, before[key]), death
            if found.get(key) == before[key] and content is not None:
                assert content in saved_bytes, death
        assert not repair(far, near).left, death
        assert snapshots_and_packs(far) == before, death
        wanted = sorted(content for content in bad.values() if content is not None)
        assert sorted(kept(far).values()) == wanted, death
        collect(fresh_log(far), GcOptions())
        assert keys_under(far, "staged/") == [], death
        assert is_whole(far), death
    assert deaths > 40


def test_two_that_heal_at_once_agree() -> None:
    """The second one does all of its work in the middle of the first one's, at every operation."""
    near, hurt = replicated(10)
    before = snapshots_and_packs(hurt)
    for part in PARTS:
        flip(hurt, one_of(hurt, part))
    whole = FaultyStore(again(hurt))
    repair(whole, near)
    for number in range(1, len(whole.operations) + 1, 3):
        far = again(hurt)

        def other(operation: Operation, at: int = number, store: MemoryStore = far) -> None:
            if operation.number == at:
                repair(store, near)

        report = repair(FaultyStore(far, other), near)
        assert not report.left, number
        assert snapshots_and_packs(far) == before, number
        assert is_whole(far), number


def test_names_that_differ_between_sites_are_followed() -> None:
    """The far site condemned the names of the packs once: there they stand under the next incarnation."""
    near, far = make_store(), make_store()
    saved(near, 10)
    replicate(far, near)
    gone = fresh_log(far).fold.live()[0]
    fresh_log(far).append(lambda _: Expire((gone.id,), "simulated"))
    collect(fresh_log(far), GcOptions())
    saved(near, 20)
    replicate(far, near)
    assert any(key.endswith(".1") for key in keys_under(far, "packs/"))
    here, there = snapshots_and_packs(far), snapshots_and_packs(near)
    for key in [*here]:
        flip(far, key)
    assert not repair(far, near).left
    assert snapshots_and_packs(far) == here
    newest = max(entry.id for entry in fresh_log(near).fold.live())
    hurt = [key for key in there if newest in key]
    for key in hurt:
        flip(near, key)
    assert not repair(near, far).left
    assert snapshots_and_packs(near) == there


def test_a_fork_and_what_it_borrowed_are_healed_at_its_home() -> None:
    """Elsewhere the packs that it borrowed stand under its own name."""
    near, far = make_store(), make_store()
    base = opened(near, inline_runtime())
    with base.run("base").writer() as writer:
        writer.save(0, STATE).result()
    base.run("base").fork("run", at=0)
    saved(near, 10)
    replicate(far, near)
    before = everything(near)
    (entry,) = (e for e in fresh_log(near).fold.live() if e.step == 10)
    assert len(entry.foreign) == 1
    hurt = [k for k in before if k.startswith((KEYS.snapshot(entry.id), "packs/base@1/"))]
    assert len(hurt) > 4
    for key in hurt:
        flip(near, key)
    report = repair(near, far)
    assert {one.key for one in report.repairs if one.healed} >= set(hurt)
    assert not report.left
    after = everything(near)
    assert {key: after[key] for key in hurt} == {key: before[key] for key in hurt}
    assert loads(near, 10)


def test_what_was_given_up_meanwhile_is_not_written_again() -> None:
    near, hurt = replicated(10, 20)
    key = min(_packs(hurt, 10) - _packs(hurt, 20))
    flip(hurt, key, 90)
    whole = FaultyStore(again(hurt))
    repair(whole, near)
    numbers = [o.number for o in whole.operations if o.key == key and o.name in ("begin", "write")]
    assert numbers
    for number in numbers:
        far = again(hurt)

        def give_up(operation: Operation, at: int = number, store: MemoryStore = far) -> None:
            if operation.number == at:
                gone = next(e for e in fresh_log(store).fold.live() if e.step == 10)
                fresh_log(store).append(lambda _: Expire((gone.id,), "simulated"))
                collect(fresh_log(store), GcOptions())

        report = repair(FaultyStore(far, give_up), near)
        assert key not in keys_under(far, "packs/"), number
        assert (report.problems, report.repairs) == ((), ()), number
        assert kept(far) == {}, number


def _packs(store: Store, step: int) -> set[str]:
    return {pack.key for pack in opened(store, inline_runtime()).run("run")[step].packs()}


def test_only_so_much_is_kept_of_one_object_and_the_same_once() -> None:
    near, far = replicated(10)
    key = one_of(far, "leaf-")
    places = []
    for place in (-9, -9, -10, -11, -12, -13, -14):
        flip(far, key, place)
        (one,) = repair(far, near).repairs
        assert one.healed
        places.append(one.quarantined)
    assert places[0] == places[1]
    assert places[-2:] == [None, None]
    assert set(places) == {*kept(far), None}
    assert len(kept(far)) == COPIES_MAX
    assert is_whole(far)


def test_no_room_for_bad_bytes_leaves_them_where_they_are() -> None:
    near, far = replicated(10)
    key = one_of(far, "pack")
    flip(far, key, 90)
    before = snapshots_and_packs(far)

    def full(operation: Operation) -> Fault | None:
        writes = operation.name in ("write", "overwrite", "create")
        return "full" if writes and operation.key.startswith("quarantine/") else None

    report = repair(FaultyStore(far, full), near)
    assert not report.repairs[0].healed
    assert "no room" in report.repairs[0].reason
    assert snapshots_and_packs(far) == before
    assert kept(far) == {}


def test_collections_leave_the_quarantine_alone_until_they_are_asked() -> None:
    near, far = replicated(10)
    flip(far, one_of(far, "pack"), 90)
    flip(far, one_of(far, "root"))
    repair(far, near)
    bad = kept(far)
    assert len(bad) == 2
    assert not collect(fresh_log(far), GcOptions()).garbage
    made_site("f", far)
    repository = opened(far, inline_runtime())
    assert repository.gc().bytes_freed == 0
    assert kept(far) == bad
    report = repository.verify()
    assert {info.key: info.size for info in report.quarantined} == {
        k: len(v) for k, v in bad.items()
    }
    planned = repository.gc(run="run", quarantine=True, dry_run=True)
    assert kept(far) == bad
    freed = repository.gc(run="run", quarantine=True)
    assert [(a.key, a.size_bytes, a.run) for a in freed.actions if a.action == "delete"] == [
        (key, len(content), "run") for key, content in sorted(bad.items())
    ]
    assert planned.bytes_freed == freed.bytes_freed == sum(map(len, bad.values()))
    assert kept(far) == {}
    assert repository.verify().quarantined == ()


def test_every_byte_that_is_asked_for_waits_for_the_link() -> None:
    near, far = replicated(10)
    asked: list[int] = []
    keys = [one_of(far, part) for part in PARTS]
    sizes = {key: len(flip(far, key)) for key in keys}
    repair(far, supplies=[Supply("near", near, asked.append)])
    # Headers of packs follow from their footers and do not cross.
    assert sum(sizes.values()) - 64 <= sum(asked) <= sum(sizes.values())
    assert max(asked) <= max(sizes.values())
