"""Bytes that stand in the store are not written again: after a save, a restart, a change of the world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fwstore
from support.coordinators import ThreadJob
from support.sharded import divided, rows

RNG = np.random.default_rng(21)
SHAPE = (1024, 128)


class Model:
    """Ten tensors of a megabyte, of which training changes one."""

    def __init__(self) -> None:
        self.arrays = {f"frozen{n}": RNG.random(SHAPE) for n in range(9)} | {
            "hot": RNG.random(SHAPE)
        }

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def train(self) -> None:
        self.arrays["hot"] = RNG.random(SHAPE)

    def states(self, world_size: int) -> list[Any]:
        return divided(self.arrays, rows(world_size))

    def check(self, url: str, step: int) -> None:
        with fwstore.open(url) as repo:
            found = repo.run("run")[step].load()
        assert found.keys() == self.arrays.keys()
        for name, array in self.arrays.items():
            assert np.array_equal(found[name], array), name


def written(job: ThreadJob, step: int, states: list[Any]) -> fwstore.SaveStatistics:
    """Save; return the figures, which are those of the whole job."""
    handles = job.each_rank(lambda rank: job.writers[rank].save(step, states[rank]))
    for handle in handles:
        handle.result(60)
    figures = handles[0].statistics()
    ranks = [handle.statistics().rank_bytes_written for handle in handles]
    assert figures.bytes_written == sum(ranks)
    return figures


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_second_save_writes_what_changed(url: str, world: int) -> None:
    model = Model()
    with ThreadJob(url, world) as job:
        first = written(job, 0, model.states(world))
        assert model.nbytes < first.bytes_written < 1.01 * model.nbytes
        for step in (1, 2, 3):
            model.train()
            again = written(job, step, model.states(world))
            assert again.bytes_written <= 0.11 * model.nbytes
            assert again.bytes_reused == 0.9 * model.nbytes
            assert again.bytes_logical == model.nbytes
    model.check(url, 3)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (1, 4), (4, 1), (2, 2), (8, 2)])
def test_a_job_on_another_world_finds_the_bytes_again(url: str, before: int, after: int) -> None:
    model = Model()
    with ThreadJob(url, before) as job:
        written(job, 0, model.states(before))
    model.train()
    with ThreadJob(url, after) as job:
        again = written(job, 1, model.states(after))
    assert again.bytes_written <= 0.11 * model.nbytes
    assert again.fragment_bytes == 0
    model.check(url, 1)


def test_a_world_that_cuts_cells_pays_once(url: str) -> None:
    model = Model()
    with ThreadJob(url, 2) as job:
        written(job, 0, model.states(2))
        model.train()
        written(job, 1, model.states(2))
    with ThreadJob(url, 3) as job:
        cut = written(job, 2, model.states(3))
        assert 0 < cut.fragment_bytes < 0.5 * model.nbytes
        assert cut.bytes_written <= cut.fragment_bytes + 0.11 * model.nbytes
        model.train()
        again = written(job, 3, model.states(3))
        assert again.bytes_written <= 0.11 * model.nbytes
        assert again.fragment_bytes == cut.fragment_bytes
    model.check(url, 3)
    with ThreadJob(url, 3) as job:
        assert written(job, 4, model.states(3)).bytes_written == 0
    model.check(url, 4)


def test_a_grid_is_changed_only_where_all_bytes_are_new(url: str) -> None:
    """The tensor that the last save wrote gets cells that suit three ranks; the frozen ones keep theirs."""
    model = Model()
    with ThreadJob(url, 2) as job:
        written(job, 0, model.states(2))
        model.train()
        written(job, 1, model.states(2))
        before = {n: t.cells for n, t in infos(job, 1).items()}
    model.train()
    with ThreadJob(url, 3) as job:
        written(job, 2, model.states(3))
        after = {n: t.cells for n, t in infos(job, 2).items()}
        checkpoint = job.repositories[0].run("run")[2]
        fragments = {n: len(checkpoint.manifest.rows((n,)).fragments) for n in model.arrays}
    assert {name for name in after if after[name] != before[name]} == {"hot"}
    assert fragments["hot"] == 0
    assert all(count > 0 for name, count in fragments.items() if name != "hot")
    model.check(url, 2)


def infos(job: ThreadJob, step: int) -> dict[str, Any]:
    manifest = job.repositories[0].run("run")[step].manifest
    return {str(info.path[0]): info for info in manifest.tensors()}


def test_an_unchanged_state_costs_nothing(url: str) -> None:
    model = Model()
    with ThreadJob(url, 2) as job:
        figures = [written(job, step, model.states(2)) for step in range(3)][-1]
        assert figures.bytes_written == 0
        assert figures.bytes_reused == model.nbytes
        assert figures.rank_bytes_staged == 0
        store = job.repositories[0].store
        size = sum(found.size for found in store.list("meta/run@1/_snap/000000000002-"))
        assert size < 10_000
    with ThreadJob(url, 2) as job:
        assert written(job, 3, model.states(2)).bytes_written == 0
    model.check(url, 3)


def test_only_what_changed_is_copied_once_it_is_known_what_does(url: str) -> None:
    model = Model()
    with ThreadJob(url, 1) as job:
        staged = []
        for step in range(4):
            staged.append(written(job, step, model.states(1)).rank_bytes_staged)
            model.train()
    assert staged == [model.nbytes, model.nbytes, model.nbytes / 10, model.nbytes / 10]


def test_changed_rows_of_a_tensor_are_written_by_cells(url: str) -> None:
    table = RNG.random((4096, 256))
    with fwstore.open(url) as repo, repo.run("run").writer() as writer:
        writer.save(0, {"table": table}).result(60)
        (_, cell_rows), _ = repo.run("run")[0].manifest.tensors()[0].cells
        for step, row in ((1, 0), (2, 4095), (3, 7), (4, 7)):
            table[row] += 1
            handle = writer.save(step, {"table": table})
            handle.result(60)
            cell = cell_rows * table.strides[0]
            assert cell <= handle.statistics().bytes_written < cell + 2000
        found = repo.run("run")[4].load()["table"]
    assert np.array_equal(found, table)


def test_bytes_that_come_back_are_found_only_in_the_parent(url: str) -> None:
    first, second = RNG.random(50_000), RNG.random(50_000)
    with fwstore.open(url) as repo, repo.run("run").writer() as writer:
        handles = []
        for step, array in enumerate((first, second, first, first)):
            handles.append(writer.save(step, {"w": array}))
            handles[-1].result(60)
        assert [handle.statistics().bytes_written == 0 for handle in handles] == [
            False,
            False,
            False,
            True,
        ]
        for step, array in enumerate((first, second, first, first)):
            assert np.array_equal(repo.run("run")[step].load()["w"], array)


def test_equal_cells_of_one_save_are_stored_once(url: str) -> None:
    with fwstore.open(url) as repo, repo.run("run").writer() as writer:
        state = {f"m{n}": np.zeros((1024, 256)) for n in range(8)}
        handle = writer.save(0, state)
        checkpoint = handle.result(60)
        assert checkpoint is not None
        assert handle.statistics().bytes_written < 300_000
        assert checkpoint.describe().bytes_logical == 8 * 1024 * 256 * 8
        assert all((array == 0).all() for array in checkpoint.load().values())


def test_tensors_that_change_their_form_are_written_anew(url: str) -> None:
    array = RNG.random((256, 256))
    forms: list[Any] = [
        array,
        array[:200],
        array.astype(np.float32),
        array.reshape(512, 128),
        array,
        array.T,
    ]
    with fwstore.open(url) as repo, repo.run("run").writer() as writer:
        for step, form in enumerate(forms):
            writer.save(step, {"w": form, "kept": array}).result(60)
        for step, form in enumerate(forms):
            found = repo.run("run")[step].load()
            assert np.array_equal(found["w"], form)
            assert found["w"].dtype == form.dtype
            assert np.array_equal(found["kept"], array)


@pytest.mark.parametrize("codec", ["raw", "zstd", "auto"])
def test_every_codec_reads_back(url: str, codec: Any) -> None:
    text = np.frombuffer(b"a sentence that repeats itself; " * 50_000, np.uint8)
    noise = RNG.random(100_000)
    with fwstore.open(url) as repo, repo.run("run").writer(codec=codec) as writer:
        for step in range(3):
            handle = writer.save(step, {"text": text, "noise": noise + step, "tiny": np.ones(2)})
            handle.result(60)
            found = repo.run("run")[step].load()
            assert np.array_equal(found["text"], text)
            assert np.array_equal(found["noise"], noise + step)
            part = repo.run("run")[step].tensors["text"][1_000_000:1_000_032]
            assert part.tobytes() == text[1_000_000:1_000_032].tobytes()
        names = {
            name: set(repo.run("run")[0].chunks(name).codec_names.values())
            for name in ("text", "noise")
        }
        size = repo.run("run")[0].describe().bytes_written
    if codec == "raw":
        assert names == {"text": {"raw"}, "noise": {"raw"}}
    if codec == "zstd":
        assert names["text"] == {"zstd-1"}
        assert size < noise.nbytes + text.nbytes / 10


def test_bytes_are_found_again_whatever_their_codec(url: str) -> None:
    text = np.frombuffer(b"a sentence that repeats itself; " * 50_000, np.uint8)
    codecs: list[Any] = ["zstd", "raw", "auto", "zstd"]
    with fwstore.open(url) as repo:
        for step, codec in enumerate(codecs):
            with repo.run("run").writer(codec=codec) as writer:
                handle = writer.save(step, {"text": text})
                handle.result(60)
                assert (handle.statistics().bytes_written == 0) == (step > 0)
                writer.save(step + 10, {"text": text}).result(60)
        assert np.array_equal(repo.run("run").latest().load()["text"], text)
        assert len(repo.run("run").latest().packs()) == 1


def test_a_fresh_process_and_a_hash_key_change_nothing(url: str) -> None:
    model = Model()
    for step in range(3):
        with fwstore.open(url, hash_key=b"x" * 32) as repo, repo.run("run").writer() as writer:
            handle = writer.save(step, model.arrays)
            handle.result(60)
            assert handle.statistics().bytes_written <= (0.11 if step else 1.1) * model.nbytes
            model.train()
