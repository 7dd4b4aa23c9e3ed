"""The fault injector itself, because what it cannot do no test that uses it can find."""

from __future__ import annotations

import pytest

from fwstore.base.errors import NotFound, Unavailable
from fwstore.sched.runtime import Runtime
from fwstore.store.base import Store
from fwstore.store.create import create_once
from fwstore.store.memory import MemoryStore
from support.faults import (
    Crash,
    Fault,
    FaultyStore,
    crash_at,
    every_crash,
    fail_at,
    fault_at,
    late_at,
    lose_at,
)


@pytest.fixture
def inner(runtime: Runtime) -> MemoryStore:
    return MemoryStore(runtime)


def put(store: Store, key: str) -> None:
    store.put(key, [b"x"], mode="create")


def names(store: Store) -> list[str]:
    return [info.key for info in store.list("")]


def test_a_failed_operation_does_not_happen(inner: MemoryStore) -> None:
    store = FaultyStore(inner, fail_at(2))
    put(store, "a")
    with pytest.raises(Unavailable):
        put(store, "b")
    put(store, "c")
    assert names(inner) == ["a", "c"]
    assert store.counts == {"create": 3}


def test_a_lost_answer_leaves_the_effect(inner: MemoryStore) -> None:
    store = FaultyStore(inner, lose_at(1))
    with pytest.raises(Unavailable):
        put(store, "a")
    assert names(inner) == ["a"]


def test_a_late_write_lands_when_told_and_loses_to_a_newer_one(inner: MemoryStore) -> None:
    store = FaultyStore(inner, lambda operation: "late" if operation.number <= 2 else None)
    for key in ("a", "b"):
        with pytest.raises(Unavailable):
            put(store, key)
    assert names(inner) == []
    inner.put("a", [b"newer"], mode="create")
    store.land()
    assert names(inner) == ["a", "b"]
    assert inner.get("a", limit_bytes=5) == b"newer"


def test_the_dead_do_nothing(inner: MemoryStore) -> None:
    store = FaultyStore(inner, crash_at(2))
    upload = store.upload("pack")
    with pytest.raises(Crash):
        upload.write([b"1"])
    for dead in (lambda: put(store, "b"), lambda: store.get("a", limit_bytes=1), upload.commit):
        with pytest.raises(Crash):
            dead()
    upload.abort()
    assert names(inner) == []


def test_a_crash_during_a_write_leaves_it_applied(inner: MemoryStore) -> None:
    store = FaultyStore(inner, crash_at(1, "during"))
    with pytest.raises(Crash):
        put(store, "a")
    assert names(inner) == ["a"]


def test_a_crash_during_a_delete_leaves_half(inner: MemoryStore) -> None:
    for key in "abcd":
        put(inner, key)
    with pytest.raises(Crash):
        FaultyStore(inner, crash_at(1, "during")).delete(["a", "b", "c", "d"])
    assert names(inner) == ["c", "d"]


def test_every_crash_dies_twice_at_each_write(runtime: Runtime) -> None:
    def scenario(store: Store) -> None:
        put(store, "a")
        upload = store.upload("b")
        upload.write([b"1"])
        upload.commit()
        store.get("a", limit_bytes=1)
        store.delete(["a"])

    left = {
        label: names(inner) for label, inner in every_crash(lambda: MemoryStore(runtime), scenario)
    }
    assert left == {
        "before 1 create a": [],
        "during 1 create a": ["a"],
        "before 2 commit b": ["a"],
        "during 2 commit b": ["a", "b"],
        "before 3 delete a": ["a", "b"],
        "during 3 delete a": ["b"],
    }


@pytest.mark.parametrize("fault", ["fail", "lose", "late"])
def test_create_once_overcomes_a_missing_answer(
    inner: MemoryStore, runtime: Runtime, fault: Fault
) -> None:
    store = FaultyStore(inner, fault_at(1, fault))
    assert create_once(store, "slot", [b"ours"], runtime)
    store.land()
    assert inner.get("slot", limit_bytes=4) == b"ours"


def test_create_once_yields_to_whoever_came_first(inner: MemoryStore, runtime: Runtime) -> None:
    inner.put("slot", [b"theirs"], mode="create")
    for plan in (fail_at(1), lose_at(1), late_at(1), fail_at(2)):
        store = FaultyStore(inner, plan)
        assert not create_once(store, "slot", [b"ours"], runtime)
        store.land()
    assert inner.get("slot", limit_bytes=6) == b"theirs"


def test_create_once_survives_the_disappearance_of_the_winner(
    inner: MemoryStore, runtime: Runtime
) -> None:
    class Vanishing(MemoryStore):
        def get(self, key: str, *, limit_bytes: int) -> bytes:
            self.delete([key])
            return super().get(key, limit_bytes=limit_bytes)

    store = Vanishing(runtime)
    put(store, "slot")
    assert create_once(store, "slot", [b"ours"], runtime)
    with pytest.raises(NotFound):
        store.get("slot", limit_bytes=4)


def test_create_once_says_when_the_answer_stays_unknown(
    inner: MemoryStore, runtime: Runtime
) -> None:
    store = FaultyStore(inner, lambda operation: "late")
    began = runtime.clock.monotonic()
    with pytest.raises(Unavailable):
        create_once(store, "slot", [b"ours"], runtime)
    assert 60 < runtime.clock.monotonic() - began <= runtime.limits.request_timeout_s
    assert names(inner) == []
