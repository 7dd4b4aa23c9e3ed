"""Ranks agree on who holds what, fail together, skip together, and never wait for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import (
    Box,
    Conflict,
    Fenced,
    InvalidInput,
    Layout,
    Piece,
    Shard,
    Split,
    Unavailable,
    UnsupportedValue,
)
from fwstore.checkpoint.catalogue import Agreement, make_catalogue
from fwstore.checkpoint.coordinator import LocalCoordinator
from fwstore.format.paths import TensorPath
from fwstore.sched.runtime import system_runtime
from support.coordinators import Board, SharedCoordinator, ThreadJob, outcomes, together
from support.faults import Fault, FaultyStore, Operation
from support.gates import GatedStore, packs
from support.hasty import hasty_runtime
from support.lineages import make_store
from support.processes import opened

RNG = np.random.default_rng(3)


def whole(value: float, size: int = 8) -> np.ndarray[Any, Any]:
    return np.full(size, float(value))


def shard(array: np.ndarray[Any, Any], layout: Layout, rank: int) -> Shard:
    """What a rank of a layout holds of an array."""
    boxes = layout.boxes(array.shape, rank)
    pieces = tuple(Piece(box, array[box.slices()]) for box in boxes)
    return Shard(array.dtype.name, array.shape, pieces, layout)


def kinds(results: list[Any]) -> list[type]:
    return [type(result) for result in results]


def votes(board: Board) -> list[tuple[int, str]]:
    return [(rank, key) for rank, key in board.journal if "/agree/" in key]


def test_replicas_are_written_once_in_total_and_evenly(url: str) -> None:
    state = {f"layer{n}": RNG.random((64, 700 + 300 * n)) for n in range(6)}
    with ThreadJob(url, 4) as job:
        handles = job.each_rank(lambda rank: job.writers[rank].save(0, state))
        for handle in handles:
            handle.result(60)
        written = [handle.statistics().rank_bytes_written for handle in handles]
        found = job.repositories[2].run("run")[0].load()
    total = sum(array.nbytes for array in state.values())
    assert total <= sum(written) < 1.01 * total
    assert max(written) <= 1.2 * sum(written) / 4
    for name, array in state.items():
        assert np.array_equal(found[name], array)


def test_stages_of_a_pipeline_bring_different_trees(url: str) -> None:
    shared = RNG.random((50, 500))
    states: list[dict[str, Any]] = [
        {"embed": whole(0), "shared": shared, "name": "first"},
        {"blocks": [whole(1), {"w": whole(2)}], "shared": shared, "name": "second"},
        {"head": {"out": whole(3)}, "shared": shared},
    ]
    with ThreadJob(url, 3) as job:
        job.save(0, states, per_rank=None)
        checkpoint = job.repositories[0].run("run")[0]
        found = checkpoint.load()
        assert checkpoint.describe().bytes_logical == shared.nbytes + 4 * whole(0).nbytes
    assert found["name"] == "first"
    assert found["embed"][0] == 0
    assert (found["blocks"][0][0], found["blocks"][1]["w"][0]) == (1, 2)
    assert found["head"]["out"][0] == 3
    assert np.array_equal(found["shared"], shared)
    into: dict[str, Any] = {"head": {"out": np.zeros(8)}, "shared": np.zeros_like(shared)}
    with fwstore.open(url) as repo:
        repo.run("run")[0].load(into=into, only=["head/**", "shared"])
    assert into["head"]["out"][0] == 3


def test_ranks_talk_about_their_tensors_only_when_these_change(url: str) -> None:
    with ThreadJob(url, 2) as job:
        for step in range(4):
            job.save(step, [{"w": whole(step)}] * 2)
        assert votes(job.board) == [(0, "t1/1/agree/0"), (1, "t1/1/agree/1")] or votes(
            job.board
        ) == [
            (1, "t1/1/agree/1"),
            (0, "t1/1/agree/0"),
        ]
        job.save(9, [{"w": whole(9), "new": whole(1)}] * 2)
        assert len(votes(job.board)) == 4


def test_new_lengths_on_all_ranks_need_no_new_agreement(url: str) -> None:
    with ThreadJob(url, 2) as job:
        for step in range(3):
            job.save(step, [{"w": np.full(5 + step, 1.0)}] * 2)
        assert len(votes(job.board)) == 2
        assert job.repositories[0].run("run")[2].load()["w"].shape == (7,)


@pytest.mark.parametrize("changing", [0, 1, 2])
def test_a_change_on_one_rank_only_fails_that_save_everywhere_and_the_next_works(
    url: str, changing: int
) -> None:
    def states(step: int, *, changed: bool) -> list[Any]:
        more = [{"extra": whole(7)} if changed and rank == changing else {} for rank in range(3)]
        return [{"w": whole(step), **own} for own in more]

    with ThreadJob(url, 3) as job:
        job.save(0, states(0, changed=False))
        assert kinds(job.try_save(1, states(1, changed=True))) == [Conflict] * 3
        job.save(1, states(1, changed=True))
        job.save(2, states(2, changed=True))
        assert kinds(job.try_save(3, states(3, changed=False))) == [Conflict] * 3
        job.save(4, states(4, changed=False))
        run = job.repositories[0].run("run")
        assert [c.step for c in run.checkpoints()] == [0, 1, 2, 4]
        assert run[1].load()["extra"][0] == 7
        assert "extra" not in run[4].load()


@pytest.mark.parametrize("changing", [0, 1])
def test_saves_under_way_while_a_change_is_settled_recover_too(url: str, changing: int) -> None:
    """No rank waits for a result: the next saves are called before the failure is known."""
    steps = 8

    def state(rank: int, step: int) -> Any:
        extra = {"extra": whole(step)} if step >= 3 and rank == changing else {}
        return {"w": whole(step), **extra}

    def train(job: ThreadJob, rank: int) -> list[type]:
        handles: list[Any] = []
        for step in range(steps):
            try:
                handles.append(job.writers[rank].save(step, state(rank, step)))
            except Conflict as error:
                handles.append(error)
        job.writers[rank].wait()
        return [
            type(h) if isinstance(h, Exception) else type(h.exception() or h.result())
            for h in handles
        ]

    with ThreadJob(url, 2) as job:
        first, second = job.each_rank(partial(train, job))
    assert first == second
    assert first[:3] == [fwstore.Checkpoint] * 3
    assert first.count(Conflict) in (1, 2)
    assert first[5:] == [fwstore.Checkpoint] * 3


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("settled", [False, True], ids=["first save", "later save"])
def test_a_value_that_one_rank_cannot_save_fails_all_with_its_reason(
    url: str, failing: int, settled: bool
) -> None:
    good: list[Any] = [{"w": whole(1)} for _ in range(3)]
    odd = {"odd": {1.5: whole(1)}}
    bad = [{**state, **odd} if rank == failing else state for rank, state in enumerate(good)]
    with ThreadJob(url, 3) as job:
        if settled:
            job.save(0, good)
        found = job.try_save(1, bad)
        assert kinds(found) == [UnsupportedValue] * 3
        for rank, error in enumerate(found):
            assert "odd" in str(error)
            assert failing in (rank, 0) or f"rank {failing} failed" in str(error)
        job.save(1, good)


@pytest.mark.parametrize("name", ["per_rank", "position"])
def test_a_plain_value_beside_the_state_that_cannot_be_stored_fails_all(
    url: str, name: str
) -> None:
    with ThreadJob(url, 2) as job:
        options = (
            [{name: {"deep": object()}}, {}] if name == "position" else [{}, {name: [lambda: 1]}]
        )
        calls = [
            partial(job.save_on, rank, 0, {"w": whole(0)}, **options[rank]) for rank in job.ranks
        ]
        assert kinds(outcomes(calls)) == [UnsupportedValue] * 2
        job.save(0, [{"w": whole(0)}] * 2)


def test_a_store_that_fails_one_rank_fails_the_save_of_all(url: str) -> None:
    with ThreadJob(url, 3, limits=fwstore.Limits(threads=2, request_timeout_s=0.1)) as job:
        job.save(0, [{"w": RNG.random(180_000)}] * 3)
        inner = job.repositories[1].store
        broken = True

        class Broken(GatedStore):
            def act(self, name: str, key: str, *args: Any, **options: Any) -> Any:
                if broken and packs(name, key):
                    raise Unavailable("the disk is gone")
                return super().act(name, key, *args, **options)

        replace_store(job, 1, Broken(inner))
        state = {"w": RNG.random(180_000)}
        found = job.try_save(1, [state] * 3)
        assert kinds(found) == [Unavailable] * 3
        assert all("the disk is gone" in str(error) for error in found)
        broken = False
        job.save(2, [state] * 3)
        assert np.array_equal(job.repositories[0].run("run")[2].load()["w"], state["w"])


def replace_store(job: ThreadJob, rank: int, store: Any) -> None:
    """Put a store below the writer of one rank."""
    access = job.writers[rank]._engine.session.access
    object.__setattr__(access.origin, "stores", (store,))


@pytest.mark.parametrize("settled", [False, True], ids=["first save", "later save"])
@pytest.mark.parametrize("missing", [0, 2])
def test_a_rank_that_is_gone_hangs_nobody(url: str, missing: int, settled: bool) -> None:
    limits = fwstore.Limits(threads=2, commit_timeout_s=0.3)
    with ThreadJob(url, 3, limits=limits) as job:
        if settled:
            job.save(0, [{"w": whole(0)}] * 3)
        alive = [rank for rank in job.ranks if rank != missing]
        job.channels[missing].mute = True
        found = outcomes([partial(job.save_on, rank, 1, {"w": whole(1)}) for rank in alive])
        assert kinds(found) == [Unavailable] * 2
        job.writers[missing]._endings.begin()
        job.channels[missing].mute = False
        job.save(2, [{"w": whole(2)}] * 3)
        assert job.repositories[0].run("run").latest().step == 2


def test_ranks_that_disagree_on_the_step_are_told(url: str) -> None:
    state = {"w": whole(1)}
    with ThreadJob(url, 3) as job:
        found = outcomes([partial(job.save_on, rank, 5 + rank // 2, state) for rank in job.ranks])
        assert kinds(found) == [InvalidInput] * 3
        assert all("rank 0 saves step 5, rank 2 step 6" in str(error) for error in found)
        job.save(5, [state] * 3)


@pytest.mark.parametrize("skipping", [0, 1])
def test_a_save_that_one_rank_skips_is_skipped_by_all(url: str, skipping: int) -> None:
    with ThreadJob(url, 2) as job:
        job.save(0, [{"w": whole(0)}] * 2)
        gates = [GatedStore(repository.store) for repository in job.repositories]
        for rank, gate in enumerate(gates):
            replace_store(job, rank, gate)
            gate.shut()
        first = job.each_rank(lambda rank: job.writers[rank].save(1, {"w": RNG.random(90_000)}))
        busy: list[Any] = ["skip" if rank == skipping else "wait" for rank in job.ranks]
        second = job.each_rank(
            lambda rank: job.writers[rank].save(2, {"w": whole(2)}, on_busy=busy[rank])
        )
        assert [handle.skipped for handle in second] == [rank == skipping for rank in job.ranks]
        for gate in gates:
            gate.open()
        assert [handle.result(60) for handle in second] == [None, None]
        assert all(handle.skipped for handle in second)
        assert None not in [handle.result(60) for handle in first]
        job.save(2, [{"w": whole(2)}] * 2)
        assert [c.step for c in job.repositories[0].run("run").checkpoints()] == [0, 1, 2]


@pytest.mark.parametrize("skipping", [0, 1])
def test_a_rank_that_skips_while_others_have_new_tensors(
    url: str, skipping: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadJob(url, 2) as job:
        job.save(0, [{"w": whole(0)}] * 2)
        for rank in job.ranks:
            busy = partial(bool, rank == skipping)
            monkeypatch.setattr(job.writers[rank], "_busy", busy)
        state = {"w": whole(1), "new": whole(1)}
        assert job.save(1, [state] * 2, on_busy="skip") == [None, None]
        assert None not in job.save(1, [state] * 2)


def test_a_fence_stops_every_rank(url: str) -> None:
    with ThreadJob(url, 2) as older:
        older.save(0, [{"w": whole(0)}] * 2)
        with ThreadJob(url, 3) as newer:
            assert newer.writers[2].base == older.repositories[0].run("run")[0]
            assert kinds(older.try_save(1, [{"w": whole(1)}] * 2)) == [Fenced] * 2
            assert kinds(older.try_save(2, [{"w": whole(2)}] * 2)) == [Fenced] * 2
            newer.save(1, [{"w": whole(5)}] * 3)
        assert older.repositories[0].run("run")[1].load()["w"][0] == 5


def test_a_rank_that_cannot_take_the_term_tells_the_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = Board().channels(2)
    repositories = [fwstore.open(url) for _ in channels]
    monkeypatch.setattr(repositories[0], "take_term", refuse)
    writers = [
        partial(repo.run("run").writer, coordinator=channel)
        for repo, channel in zip(repositories, channels, strict=True)
    ]
    assert kinds(outcomes(writers)) == [fwstore.PermissionDenied] * 2


def refuse(name: str, base: str | None) -> Any:
    raise fwstore.PermissionDenied("not here")


def test_a_store_that_is_not_shared_is_found_out(url: str) -> None:
    channels = Board().channels(2)
    repositories = [fwstore.open(url), fwstore.open(url + "/elsewhere")]
    found = outcomes(
        [
            partial(r.run("run").writer, coordinator=c)
            for r, c in zip(repositories, channels, strict=True)
        ]
    )
    assert isinstance(found[0], fwstore.Writer)
    assert isinstance(found[1], InvalidInput)
    assert "not shared by all ranks" in str(found[1])


@pytest.mark.parametrize("fault", ["flip", "truncate"])
def test_a_vote_that_is_damaged_on_the_way_is_not_one_of_another_store(fault: Fault) -> None:
    inner, channels, struck = make_store(), Board().channels(2), []

    def strike(operation: Operation) -> Fault | None:
        # Where rank 0 reads what it will announce, and where the first rank compares.
        if operation.name == "get" and operation.key.endswith("_term/00000001"):
            struck.append(operation)
            return fault if len(struck) in (1, 3) else None
        return None

    stores = [FaultyStore(inner, strike) for _ in channels]
    repositories = [opened(store, system_runtime()) for store in stores]
    writers = together(
        [
            partial(repository.run("run").writer, coordinator=channel)
            for repository, channel in zip(repositories, channels, strict=True)
        ]
    )
    assert len(writers) == 2
    assert len(struck) == 5


def test_a_vote_that_is_not_seen_at_once_is_not_one_of_another_store() -> None:
    inner, channels = make_store(), Board().channels(2)

    class Behind(FaultyStore):
        """A store that answers with what was there a moment ago."""

        hidden = 2

        def get(self, key: str, *, limit_bytes: int) -> bytes:
            if key.endswith("_term/00000001") and self.hidden:
                self.hidden -= 1
                raise fwstore.NotFound(key)
            return super().get(key, limit_bytes=limit_bytes)

    behind = Behind(inner)
    repositories = [opened(store, system_runtime()) for store in (inner, behind)]
    writers = together(
        [
            partial(repository.run("run").writer, coordinator=channel)
            for repository, channel in zip(repositories, channels, strict=True)
        ]
    )
    assert len(writers) == 2
    assert not behind.hidden


def test_a_channel_that_breaks_does_not_hide_what_failed(repo: fwstore.Repository) -> None:
    class Deaf(SharedCoordinator):
        def put(self, key: str, value: bytes) -> None:
            if "/" in key:
                raise Unavailable("the channel is gone")
            super().put(key, value)

    writer = repo.run("run").writer(coordinator=Deaf(Board(), 0, 1))
    with pytest.raises(UnsupportedValue, match="odd"):
        writer.save(0, {"odd": object()})


def layouts_of_parts(world: int) -> Mapping[str, Callable[[int], Layout]]:
    """By rank, the layout of that rank's own mesh: rows of a grid, columns of it, each alone."""
    half = world // 2
    return {
        "rows": lambda rank: Layout(
            (half,), (Split(0),), tuple(range(rank // half * half, (rank // half + 1) * half))
        ),
        "columns": lambda rank: Layout((2,), (Split(1),), (rank % half, rank % half + half)),
    }


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_meshes_that_divide_a_tensor_alike_share_the_work(url: str, name: str) -> None:
    array = RNG.random((64, 4096))
    layout = layouts_of_parts(4)[name]
    with ThreadJob(url, 4) as job:
        handles = job.each_rank(
            lambda rank: job.writers[rank].save(0, {"w": shard(array, layout(rank), rank)})
        )
        for handle in handles:
            handle.result(60)
        written = [handle.statistics().rank_bytes_written for handle in handles]
        assert np.array_equal(job.repositories[0].run("run")[0].load()["w"], array)
    assert sum(written) < 1.02 * array.nbytes
    assert max(written) <= 1.2 * sum(written) / 4


def test_meshes_that_divide_a_tensor_in_different_ways_are_refused(url: str) -> None:
    array = RNG.random((8, 8))
    splits = [(Split(0),), (Split(0),), (Split(1),), (Split(1),)]
    ranks = [(0, 1), (0, 1), (2, 3), (2, 3)]
    with ThreadJob(url, 4) as job:
        states = [
            {"w": shard(array, Layout((2,), splits[rank], ranks[rank]), rank)} for rank in job.ranks
        ]
        found = job.try_save(0, states)
        assert len(set(kinds(found))) == 1
        assert isinstance(found[0], fwstore.FwstoreError)
        assert "w" in str(found[0])
        assert job.repositories[0].run("run").latest(default=None) is None


def test_ranks_that_disagree_on_a_shape_are_told(url: str) -> None:
    with ThreadJob(url, 2) as job:
        found = job.try_save(0, [{"w": whole(0, 8)}, {"w": whole(0, 9)}])
        assert kinds(found) == [InvalidInput] * 2
        assert "w" in str(found[0])


def test_catalogues_are_named_by_what_they_claim() -> None:
    everyone = Layout((2,), (Split(0),), (0, 1))
    half = Layout((1,), (Split(0),), (0,))
    array = np.ones((4, 2))

    def digest(world: int = 2, **shards: Shard) -> bytes:
        tensors: dict[TensorPath, Shard] = {(name,): found for name, found in shards.items()}
        return make_catalogue(tensors, {}, world).digest

    plain = Shard("float64", (4, 2), (Piece(Box.whole((4, 2)), array),))
    other = Shard("float64", (4, 2), (Piece(Box.whole((4, 2)), array + 1),))
    part = Shard("float64", (4, 2), (Piece(Box((0, 0), (2, 2)), array[:2]),))
    assert digest(a=plain, b=other) == digest(b=plain, a=other)
    assert digest(a=plain) != digest(b=plain)
    assert digest(a=plain, p=part) == digest(a=plain)
    assert digest(a=plain, p=shard(array, everyone, 0)) == digest(a=plain)
    assert digest(a=plain, p=shard(array, half, 0)) != digest(a=plain)
    assert digest(1, a=plain, p=shard(array, half, 0)) == digest(1, a=plain)
    catalogue = make_catalogue({("b",): plain, ("a", 1): other}, {("c",): ("b",)})
    assert list(catalogue.tensors) == [("b",), ("a", 1)]
    assert catalogue.aliases == {("c",): ("b",)}


def test_a_failure_older_than_the_last_agreement_does_not_undo_it() -> None:
    agreement = Agreement(LocalCoordinator(), hasty_runtime())
    piece = Piece(Box.whole((2,)), np.ones(2))
    catalogue = make_catalogue({("w",): Shard("float64", (2,), (piece,))}, {})
    agreement.settle(catalogue, 5)
    agreement.forget(4)
    agreement.settle(catalogue, 6)
    assert agreement.voted_in == 5
    agreement.forget(5)
    agreement.settle(catalogue, 7)
    assert agreement.voted_in == 7
