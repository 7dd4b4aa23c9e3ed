"""Small messages between ranks: three channels with one behaviour, and how a job finds its own."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

import fwstore
from fwstore import Coordinator, Fenced, InvalidInput, Unavailable
from fwstore.base.config import Environment
from fwstore.checkpoint.coordinator import (
    C10dCoordinator,
    LocalCoordinator,
    StoreCoordinator,
    World,
    decode_failure,
    encode_failure,
    find_world,
    wait_for,
)
from fwstore.format.keys import LineageKeys
from fwstore.sched.runtime import Runtime
from fwstore.store.memory import MemoryStore
from support.coordinators import HashStore
from support.hasty import hasty_runtime

KEYS = LineageKeys("run", 1)


def runtime_of(**variables: str) -> Runtime:
    return replace(hasty_runtime(), environment=Environment(variables))


def c10d() -> tuple[Coordinator, Coordinator]:
    store = HashStore()
    first, second = (C10dCoordinator(store, rank, 2, "job/") for rank in range(2))
    return first, second


def of_store() -> tuple[Coordinator, Coordinator]:
    store = MemoryStore(hasty_runtime())
    first, second = (StoreCoordinator(store, KEYS, "job-1", rank, 2) for rank in range(2))
    return first, second


def alone() -> tuple[Coordinator, Coordinator]:
    channel = LocalCoordinator()
    return channel, channel


@pytest.mark.parametrize("make", [c10d, of_store, alone])
def test_every_channel_behaves_alike(make: Callable[[], tuple[Coordinator, Coordinator]]) -> None:
    here, there = make()
    assert there.poll("3/part/0") is None
    for value in (b"x", b"", b"\0" * 1000, b"again"):
        here.put("3/part/0", value)
        assert there.poll("3/part/0") == value
    assert there.poll("3/part/1") is None
    there.drop("3/part/0")
    there.drop("3/part/0")
    assert here.poll("3/part/0") is None
    assert (here.rank, here.world_size) in ((0, 2), (0, 1))


def test_incarnations_of_a_job_do_not_hear_each_other() -> None:
    store = HashStore()
    C10dCoordinator(store, 0, 2, "1/").put("job", b"old")
    assert C10dCoordinator(store, 0, 2, "2/").poll("job") is None
    objects = MemoryStore(hasty_runtime())
    StoreCoordinator(objects, KEYS, "a", 0, 2).put("job", b"old")
    assert StoreCoordinator(objects, KEYS, "b", 0, 2).poll("job") is None
    assert next(objects.list("")).key.startswith("meta/run@1/")


def test_a_c10d_store_that_is_gone_is_unavailable() -> None:
    store = HashStore(deletes=False)
    channel = C10dCoordinator(store, 0, 2, "")
    channel.put("a", b"1")
    channel.drop("a")
    assert channel.poll("a") == b"1"
    store.broken = True
    with pytest.raises(Unavailable, match="reset by peer"):
        channel.put("a", b"2")
    with pytest.raises(Unavailable, match="reset by peer"):
        channel.poll("a")


def test_waiting_takes_the_first_key_that_is_there_and_ends_at_its_deadline() -> None:
    runtime = hasty_runtime()
    channel = LocalCoordinator()
    channel.put("second", b"2")
    deadline = runtime.clock.monotonic() + 60
    assert wait_for(channel, ("first", "second"), runtime, deadline=deadline) == ("second", b"2")
    channel.put("first", b"1")
    assert wait_for(channel, ("first", "second"), runtime, deadline=deadline) == ("first", b"1")
    with pytest.raises(Unavailable, match="3/part/7 or 3/agree/7"):
        wait_for(channel, ("3/part/7", "3/agree/7"), runtime, deadline=deadline)
    assert runtime.clock.monotonic() >= deadline


def test_waiting_goes_on_until_the_value_comes_and_stops_when_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = hasty_runtime()
    channel = LocalCoordinator()
    polls = itertools.count()

    def late(key: str) -> bytes | None:
        return b"here" if next(polls) == 20 else None

    monkeypatch.setattr(channel, "poll", late)
    deadline = runtime.clock.monotonic() + 60
    assert wait_for(channel, ("key",), runtime, deadline=deadline)[1] == b"here"
    with pytest.raises(Fenced, match="stop now"):
        wait_for(channel, ("k",), runtime, deadline=deadline, stop=lambda: Fenced("stop now"))


@pytest.mark.parametrize(
    "error",
    [
        kind("what happened")
        for kind in (Fenced, InvalidInput, Unavailable, fwstore.UnsupportedValue)
    ],
)
def test_failures_travel_with_their_class(error: fwstore.FwstoreError) -> None:
    found = decode_failure(encode_failure(error))
    assert type(found) is type(error)
    assert str(found) == "what happened"


def test_foreign_failures_and_odd_messages_become_unavailable() -> None:
    found = decode_failure(encode_failure(ZeroDivisionError("by\nzero")))
    assert type(found) is Unavailable
    assert "ZeroDivisionError" in str(found)
    assert len(encode_failure(ValueError("x" * 10_000))) <= 4096
    assert type(decode_failure(b"\xff\xfe")) is Unavailable
    assert type(decode_failure(b"")) is Unavailable


def test_a_world_is_found_in_arguments_then_in_the_environment() -> None:
    job = runtime_of(RANK="2", WORLD_SIZE="4")
    assert find_world(job, None, None) == World(rank=2, world_size=4)
    assert find_world(job, 0, 2) == World(rank=0, world_size=2)
    assert find_world(runtime_of(), None, None) == World(rank=0, world_size=1)
    assert find_world(runtime_of(RANK="2"), None, None) == World(rank=0, world_size=1)
    for rank, size in ((0, None), (None, 3)):
        with pytest.raises(InvalidInput, match="both"):
            find_world(job, rank, size)
    for rank, size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InvalidInput, match="does not fit"):
            find_world(job, rank, size)
    with pytest.raises(InvalidInput, match="does not fit"):
        find_world(runtime_of(RANK="4", WORLD_SIZE="4"), None, None)


def test_a_world_is_found_in_an_initialised_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_rank=lambda: 1,
        get_world_size=lambda: 3,
    )
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    found = find_world(runtime_of(RANK="0", WORLD_SIZE="9"), None, None)
    assert found == World(rank=1, world_size=3, process_group=True)
