"""The end of a load through this site: its publish begins once, does nothing twice, and keeps nobody waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from fwstore import Checkpoint
from fwstore.format.keys import LineageKeys
from fwstore.sched.inline import InlineScheduler
from fwstore.store.base import ObjectInfo
from fwstore.wan import through as module
from fwstore.wan.pull import Puller
from fwstore.wan.through import Bringer, ThroughStore
from support.faults import Fault, FaultyStore, Operation
from support.lineages import make_store, pack_keys
from support.replicas import check_replica, published, replicate
from support.through import inline_runtime, is_right, saved, through
from support.topologies import Places

R = TypeVar("R")
KEYS = LineageKeys("run", 1)
READS = frozenset({"get", "get_range", "read_into"})


class Beside(FaultyStore):
    """A store beside which something else happens whenever somebody has looked for an object."""

    beside: Callable[[], None] = staticmethod(lambda: None)

    def head(self, key: str) -> ObjectInfo:
        found = super().head(key)
        self.beside()
        return found


class Spawns(InlineScheduler):
    """Keeps the names of what ran on a thread of its own."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def spawn(self, name: str, function: Callable[..., R], /, *args: object) -> Future[R]:
        self.names.append(name)
        return super().spawn(name, function, *args)


def store_of(checkpoint: Checkpoint) -> ThroughStore:
    found = checkpoint.access.origin.stores[0]
    assert isinstance(found, ThroughStore)
    return found


def bringer_of(checkpoint: Checkpoint) -> Bringer:
    return store_of(checkpoint)._bringer


def pack_reads(store: FaultyStore) -> Counter[str]:
    return Counter(o.key for o in store.operations if o.name in READS and "packs/" in o.key)


def test_two_readers_that_see_the_last_pack_at_once_publish_once() -> None:
    near, far, scheduler = saved(make_store(), 10), Beside(make_store()), Spawns()
    runtime = replace(inline_runtime(), scheduler=scheduler)
    checkpoint = through(far, near, step=10, runtime=runtime)
    wanted = {pack.key for pack in checkpoint.packs()}

    def another() -> None:
        if pack_keys(far.inner, KEYS) == wanted:
            far.beside = lambda: None
            bringer_of(checkpoint)._look_for_the_rest(checkpoint.id)

    far.beside = another
    assert is_right(checkpoint)
    assert published(far.inner) == [10]
    assert scheduler.names.count("publish") == 1


def test_publishing_asks_for_nothing_that_this_process_brought() -> None:
    near, far = FaultyStore(saved(make_store(), 10)), FaultyStore(make_store())
    assert is_right(through(far, near, step=10))
    assert published(far.inner) == [10]
    asked = Counter(o.key for o in near.operations if o.name == "get" and KEYS.snapshots in o.key)
    assert len(asked) > 2
    assert set(asked.values()) == {1}
    while_brought = pack_reads(far)
    far.reset()
    assert is_right(through(far, near, step=10))
    # Each was read in vain once, before it was brought.
    assert while_brought == pack_reads(far) + Counter(list(while_brought))


def began_elsewhere(near: FaultyStore, far: FaultyStore) -> None:
    """Let another process bring a part, which whoever publishes has to verify."""
    through(far, near, step=10).load(only="w0")
    far.reset()
    near.reset()


def test_whoever_publishes_shows_that_it_is_alive() -> None:
    near, far = FaultyStore(saved(make_store(), 10)), FaultyStore(make_store())
    began_elsewhere(near, far)
    runtime = inline_runtime()

    def slow(operation: Operation) -> Fault | None:
        runtime.clock.sleep(3.0 if operation.name in READS else 0.0)
        return None

    far.reset(slow)
    assert is_right(through(far, near, step=10, runtime=runtime))
    assert published(far.inner) == [10]
    signs = [o for o in far.operations if o.name == "overwrite" and "publish" in o.key]
    assert signs


def test_a_publish_ends_after_close_and_a_replicator_does_the_rest() -> None:
    near, far = FaultyStore(saved(make_store(), 10)), FaultyStore(make_store())
    began_elsewhere(near, far)
    runtime = inline_runtime()
    checkpoint = through(far, near, step=10, runtime=runtime)

    def slow(operation: Operation) -> Fault | None:
        if "publish" in operation.key:
            store_of(checkpoint).close()
        runtime.clock.sleep(30.0 if operation.name in READS else 0.0)
        return None

    far.reset(slow)
    with pytest.warns(UserWarning, match="not published yet: the repository was closed"):
        assert is_right(checkpoint)
    assert published(far.inner) == []
    check_replica(far.inner)
    near.reset()
    replicate(far.inner, near)
    assert published(far.inner) == [10]
    assert not pack_reads(near)


def test_closing_a_repository_ends_its_publish_without_an_error(
    sites: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sites.open("a") as repository, repository.run("run").writer() as writer:
        writer.save(1, {"w": np.arange(64.0)}).result()
    with sites.open("b") as repository:
        repository.run("run").writer().close()
    monkeypatch.setattr(module, "_CLOSING_S", 0.0)

    def pull(_: Puller, __: object, alive: Callable[[], None]) -> None:
        while True:
            alive()

    monkeypatch.setattr(Puller, "pull", pull)
    repository = sites.open("b")
    assert np.array_equal(repository.run("run")[1].load()["w"], np.arange(64.0))
    with pytest.warns(UserWarning, match="closed meanwhile"):
        repository.close()


def test_what_keeps_a_publish_from_its_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = saved(make_store(), 10), make_store()

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Puller, "pull", fail)
    with pytest.warns(UserWarning, match="not published yet: .*a bug"):
        assert is_right(through(far, near, step=10))


@pytest.mark.parametrize("full", [("packs/", "staged/"), ("packs/", "staged/", "meta/")])
def test_a_full_disk_is_read_past_and_nothing_is_kept(full: tuple[str, ...]) -> None:
    def no_room(operation: Operation) -> Fault | None:
        writes = operation.writes or operation.name in ("begin", "write")
        return "full" if writes and operation.key.startswith(full) else None

    near, far = FaultyStore(saved(make_store(), 10)), FaultyStore(make_store())
    checkpoint = through(far, near, step=10, direct=True)
    far.reset(no_room)
    with pytest.warns(UserWarning, match="not kept here: injected: no room"):
        assert is_right(checkpoint)
    assert not pack_keys(far.inner, KEYS)
    # It is not tried with every pack: what cannot be kept would cross twice.
    assert far.counts["begin"] <= 1
