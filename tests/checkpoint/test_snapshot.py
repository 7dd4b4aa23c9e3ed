"""What a checkpoint tells of itself, and what it says when it is gone or damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Box, Corrupt, Expired, NotFound, TensorSlot
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.sched import ThreadScheduler
from support.coordinators import ThreadJob
from support.gates import GatedStore
from support.lineages import make_store
from support.processes import process

RNG = np.random.default_rng(6)


def save(run: fwstore.Run, step: int, state: Any, **options: Any) -> fwstore.Checkpoint:
    with run.writer() as writer:
        checkpoint = writer.save(step, state, **options).result(60)
    assert checkpoint is not None
    return checkpoint


def test_a_checkpoint_tells_who_it_is(run: fwstore.Run) -> None:
    first = save(run, 5, {"w": np.ones(2)}, metrics={"loss": 0.5})
    second = save(run, 9, {"w": np.ones(2)})
    assert (first.run, first.step, first.term, first.parent) == ("run", 5, 1, None)
    assert (second.step, second.term, second.parent) == (9, 2, first.id)
    assert first.metrics == {"loss": 0.5}
    assert second.metrics == {}
    assert first.lineage == second.lineage
    assert 0 < first.wall_time <= second.wall_time
    assert "step=5" in repr(first)
    again = run[5]
    assert again == first
    assert hash(again) == hash(first)
    assert first != second
    assert first != "first"
    assert len({first, again, second}) == 2


def test_a_checkpoint_that_waits_for_its_store_keeps_no_other_waiting() -> None:
    inner = make_store()
    with process(inner, 1) as repository:
        save(repository.run("run"), 1, {"w": np.ones(2)})
    stalled = GatedStore(inner, lambda name, key: name == "get" and key.endswith("/root"))
    with process(stalled, 2) as waiting, process(inner, 3) as other:
        late, early = waiting.run("run").latest(), other.run("run").latest()
        stalled.shut()
        loading = ThreadScheduler(1).spawn("late", late.load)
        stalled.wait_arrival()
        assert ThreadScheduler(1).spawn("early", early.load).result(10)
        assert not loading.done()
        stalled.open()
        assert loading.result(60)


def test_the_plain_state_stands_without_its_tensors(run: fwstore.Run) -> None:
    weight = np.ones(3)
    checkpoint = save(run, 0, {"a": [weight, {"lr": 0.1}], "tied": weight, "note": "x"})
    assert checkpoint.state() == {
        "a": [TensorSlot("numpy"), {"lr": 0.1}],
        "tied": TensorSlot("numpy", ("a", 0)),
        "note": "x",
    }


def test_positions_and_values_of_single_ranks(url: str) -> None:
    with ThreadJob(url, 3) as job:
        own: list[Any] = [{"rng": [1, 2]}, None, b"\1" * 100_000]
        state = {"w": np.ones(2)}
        position = {"shard": 3, "sample": 1 << 70}
        job.each_rank(
            lambda rank: (
                job.writers[rank]
                .save(0, state, per_rank=own[rank], position=position if rank == 0 else "ignored")
                .result(60)
            )
        )
        checkpoint = job.repositories[1].run("run")[0]
        assert [checkpoint.per_rank(rank) for rank in range(3)] == own
        assert checkpoint.per_rank(1, "default") == "default"
        assert checkpoint.per_rank(99) is None
        assert checkpoint.position == position
        assert list(checkpoint.tensors) == [("w",)]
        assert set(checkpoint.load()) == {"w"}


def test_a_description_counts_what_there_is(run: fwstore.Run) -> None:
    frozen, hot = RNG.random((512, 256)), RNG.random((64, 64))
    first = save(run, 0, {"frozen": frozen, "hot": hot, "n": np.zeros((0, 4))})
    second = save(run, 1, {"frozen": frozen, "hot": hot + 1, "n": np.zeros((0, 4))})
    about, then = first.describe(), second.describe()
    assert (about.run, about.step, about.id, about.parent) == ("run", 0, first.id, None)
    assert (about.tensors, about.packs, about.leaves, about.fragments) == (3, 1, 1, 0)
    assert about.bytes_logical == frozen.nbytes + hot.nbytes
    assert about.bytes_logical < about.bytes_written < 1.01 * about.bytes_logical
    assert about.chunks == len(first.chunks("frozen")) + len(first.chunks("hot"))
    assert then.parent == first.id
    assert then.bytes_reused == frozen.nbytes
    assert hot.nbytes < then.bytes_written < 1.1 * hot.nbytes
    assert then.packs == 2
    assert about.software["fwstore"] == fwstore.__version__


def test_chunks_tell_where_every_byte_lies(run: fwstore.Run) -> None:
    array = RNG.random((512, 256))
    checkpoint = save(run, 0, {"w": array, "x": np.ones(4)})
    table = checkpoint.chunks("w")
    packs = checkpoint.packs()
    assert len(table) == 4
    assert int(table.raw_lengths.sum()) == array.nbytes
    assert table.codec_names == {0: "raw"}
    store = checkpoint.access.store
    covered = np.zeros(array.shape, np.int64)
    for row in range(len(table)):
        box = Box(tuple(table.offsets[row].tolist()), tuple(table.sizes[row].tolist()))
        covered[box.slices()] += 1
        stored = store.get_range(
            packs[table.packs[row]].key, int(table.positions[row]), int(table.stored_lengths[row])
        )
        assert stored == array[box.slices()].tobytes()
    assert (covered == 1).all()
    assert table.cells.tolist() == [0, 1, 2, 3]
    with pytest.raises(NotFound):
        checkpoint.chunks("nope")


def test_chunks_of_fragments_stand_in_the_table_too(run: fwstore.Run) -> None:
    array = np.arange(40.0)
    save(run, 0, {"w": array})
    parts = [Box((0,), (17,)), Box((17,), (23,))]
    shard = Shard("float64", (40,), tuple(Piece(b, array[b.slices()]) for b in parts))
    checkpoint = save(run, 1, {"w": shard})
    table = checkpoint.chunks("w")
    assert (table.offsets.tolist(), table.sizes.tolist()) == ([[0], [17]], [[17], [23]])
    assert table.cells.tolist() == [0, 0]
    assert checkpoint.describe().bytes_fragments == array.nbytes


def test_boxes_of_many_tensors_are_read_at_once(run: fwstore.Run) -> None:
    array = RNG.random((10, 6))
    checkpoint = save(run, 0, {"a": array, "b": np.arange(5)})
    left, right, other = np.zeros((10, 2)), np.zeros((3, 4)), np.zeros(2, np.uint64)
    checkpoint.read_into(
        {
            ("a",): [(Box((0, 0), (10, 2)), left), (Box((4, 2), (3, 4)), right)],
            ("b",): [(Box((3,), (2,)), other)],
        }
    )
    assert np.array_equal(left, array[:, :2])
    assert np.array_equal(right, array[4:7, 2:])
    assert other.tolist() == [3, 4]
    with pytest.raises(NotFound, match="nope"):
        checkpoint.read_into({("nope",): [(Box((0,), (2,)), other)]})


def test_a_checkpoint_that_retention_took_is_expired(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    gone = save(run, 0, {"w": RNG.random(100)})
    fresh = run[0]
    save(run, 1, {"w": RNG.random(100)})
    save(run, 2, {"w": RNG.random(100)})
    run.remove(0)
    assert np.array_equal(gone.load()["w"].shape, (100,))
    repo.gc()
    for read in (fresh.load, fresh.describe, fresh.state, lambda: fresh.position):
        with pytest.raises(Expired):
            read()
    with pytest.raises(Expired):
        gone.tensors["w"][0]
    with pytest.raises(Expired, match="step 0"):
        run[0]
    with pytest.raises(NotFound, match="it has steps 1, 2"):
        run[7]


def test_missing_bytes_that_the_log_lists_are_damage(run: fwstore.Run) -> None:
    checkpoint = save(run, 0, {"w": RNG.random(100)})
    store = checkpoint.access.store
    (pack,) = checkpoint.packs()
    store.delete([pack.key])
    with pytest.raises(Corrupt, match="missing"):
        run[0].load()
    store.delete([info.key for info in store.list("meta/") if info.key.endswith("/root")])
    with pytest.raises(Corrupt, match="missing"):
        run[0].load()


def test_a_damaged_byte_is_never_returned(run: fwstore.Run) -> None:
    checkpoint = save(run, 0, {"w": RNG.random(100), "x": np.ones(4)})
    store = checkpoint.access.store
    (pack,) = checkpoint.packs()
    table = checkpoint.chunks("w")
    content = bytearray(store.get(pack.key, limit_bytes=1 << 20))
    content[int(table.positions[0]) + 11] ^= 4
    store.put(pack.key, [bytes(content)], mode="overwrite")
    with pytest.raises(Corrupt, match=r"tensor w\[0:100\]") as caught:
        run[0].load()
    assert pack.key in str(caught.value)
    assert run[0].load(only="x")["x"].tolist() == [1, 1, 1, 1]


def test_annotations_are_found_by_name(run: fwstore.Run) -> None:
    ticket = run.begin_save(4)
    piece = Piece(Box.whole((3,)), np.ones(3))
    part = run.write_part(ticket, {("w",): Shard("float64", (3,), (piece,))}, rank=0)
    checkpoint = run.commit_save(
        ticket, [part], {"w": TensorSlot("numpy")}, annotations={"meta": b"\0x", "empty": b""}
    )
    assert checkpoint.annotation("meta") == b"\0x"
    assert checkpoint.annotation("empty") == b""
    assert checkpoint.annotation("nope") is None
    assert checkpoint.annotation("nope", b"default") == b"default"
    assert checkpoint.load()["w"].tolist() == [1, 1, 1]
