"""Forks and references: bytes are shared, histories are not, and a donor keeps what is borrowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import AlreadyExists, InvalidInput, Keep, NotFound
from fwstore.store.base import Store

RNG = np.random.default_rng(8)


def save(run: fwstore.Run, *steps: int, state: Any = None, **options: Any) -> fwstore.Checkpoint:
    checkpoint = None
    with run.writer(**options) as writer:
        for step in steps:
            made = {"w": RNG.random(20_000), "step": step} if state is None else state
            checkpoint = writer.save(step, made, metrics={"loss": step / 2}).result(60)
    assert checkpoint is not None
    return checkpoint


def pack_bytes(store: Store) -> int:
    return sum(found.size for found in store.list("packs/"))


def test_a_fork_begins_with_the_checkpoint_and_copies_nothing(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    save(run, 1, 2, 3)
    before = pack_bytes(repo.store)
    fork = run.fork("child/of", at=2)
    assert pack_bytes(repo.store) == before
    (found,) = fork.checkpoints()
    assert (found.step, found.run, found.parent, found.metrics) == (
        2,
        "child/of",
        None,
        {"loss": 1},
    )
    assert np.array_equal(found.load()["w"], run[2].load()["w"])
    assert found.load()["step"] == 2
    assert found.describe().bytes_reused == run[2].describe().bytes_logical
    assert found.describe().bytes_written == 0
    assert [c.step for c in run.checkpoints()] == [1, 2, 3]
    assert run.fork("newest").latest().step == 3
    assert repo.runs() == ["child/of", "newest", "run"]


def test_everything_of_the_checkpoint_comes_along(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    weight = RNG.random(10)
    words = [f"word {number}" for number in range(20_000)]
    with run.writer() as writer:
        state = {"a": weight, "tied": weight, "words": words}
        writer.save(4, state, position={"shard": 2}, per_rank={"rng": 3}).result(60)
    found = run.fork("child")[4]
    assert found.position == {"shard": 2}
    assert found.per_rank(0) == {"rng": 3}
    state = found.load()
    assert state["tied"] is state["a"]
    assert state["words"] == words


def test_a_fork_goes_on_by_itself_and_finds_its_bytes_again(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    state = {"frozen": RNG.random(200_000), "hot": RNG.random(10)}
    save(run, 1, state=state)
    fork = run.fork("child")
    with fork.writer() as writer:
        assert writer.base == fork[1]
        handle = writer.save(2, {**state, "hot": state["hot"] + 1})
        handle.result(60)
    assert handle.statistics().bytes_reused == state["frozen"].nbytes
    assert handle.statistics().bytes_written < 2000
    save(run, 2, state=state)
    assert [c.step for c in fork.checkpoints()] == [1, 2]
    assert np.array_equal(fork[2].load()["hot"], state["hot"] + 1)
    assert np.array_equal(run[2].load()["hot"], state["hot"])


def test_names_that_exist_and_steps_that_do_not_are_refused(run: fwstore.Run) -> None:
    save(run, 1)
    run.fork("child")
    with pytest.raises(AlreadyExists, match="child"):
        run.fork("child")
    with pytest.raises(AlreadyExists, match="run"):
        run.fork("run")
    with pytest.raises(NotFound):
        run.fork("other", at=9)
    with pytest.raises(InvalidInput):
        run.fork("no@good")


def test_a_donor_keeps_borrowed_packs_until_the_fork_is_gone(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    save(run, 1, 2, 3)
    fork = run.fork("child", at=1)
    expected = run[1].load()["w"]
    with pytest.raises(InvalidInput, match="used by child@1"):
        run.remove(1)
    save(run, 4, 5, 6, keep=Keep(last=1))
    save(run, 7, keep=Keep(last=1))
    assert [c.step for c in run.checkpoints()] == [1, 6, 7]
    assert np.array_equal(fork[1].load()["w"], expected)
    run.delete()
    repo.gc()
    assert np.array_equal(fork.latest().load()["w"], expected)
    fork.delete()
    repo.gc()
    repo.gc()
    assert pack_bytes(repo.store) == 0
    assert repo.runs() == []


def test_a_run_with_pins_is_deleted_only_with_them(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    save(run, 1, 2)
    run.fork("child", at=1)
    pins = [run.pin(step, f"of step {step}") for step in (1, 2)]
    with pytest.raises(InvalidInput, match=f"{pins[0]} .of step 1.*{pins[1]} .of step 2"):
        run.delete()
    assert run.exists()
    run.unpin(pins[0])
    run.delete(lift_pins=True)
    assert repo.runs() == ["child"]
    repo.run("child").delete()
    repo.gc()
    repo.gc()
    assert pack_bytes(repo.store) == 0


def test_a_fork_of_a_fork_holds_on_to_the_first_donor(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    expected = save(run, 1).load()["w"]
    child = run.fork("child")
    grandchild = child.fork("grandchild")
    for gone in (run, child):
        gone.delete()
        grandchild.writer().close()
        repo.gc()
        repo.gc()
        assert np.array_equal(grandchild[1].load()["w"], expected)
    save(grandchild, 2)
    save(grandchild, 3)
    grandchild.remove(1)
    repo.gc()
    repo.gc()
    keys = [found.key for found in repo.store.list("packs/")]
    assert all(key.startswith("packs/grandchild@1/") for key in keys)


def test_references_stand_below_their_prefix_in_every_save(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    weight = RNG.random((300, 400))
    base = save(repo.run("base"), 7, state={"model": {"w": weight, "tied": weight}, "lr": 1})
    before = pack_bytes(repo.store)
    with run.writer(references={"reference": base}) as writer:
        for step in (1, 2):
            handle = writer.save(step, {"policy": {"w": np.full(3, float(step))}})
            handle.result(60)
            assert handle.statistics().bytes_written < 1000
    assert pack_bytes(repo.store) < before + 2000
    for step in (1, 2):
        found = run[step].load()
        assert np.array_equal(found["reference"]["model"]["w"], weight)
        assert found["policy"]["w"][0] == step
        assert set(run[step].tensors) == {
            ("policy", "w"),
            ("reference", "model", "w"),
            ("reference", "model", "tied"),
        }
    part = run[2].load(only="policy/**")
    assert set(part) == {"policy"}
    into = {"reference": {"model": {"w": np.zeros((300, 400))}}}
    run[2].load(into=into, only="reference/model/w")
    assert np.array_equal(into["reference"]["model"]["w"], weight)


def test_references_survive_the_retention_of_their_donor(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    donor = repo.run("base")
    expected = save(donor, 1).load()["w"]
    with run.writer(references={"reference": donor[1]}) as writer:
        writer.save(1, {"w": np.ones(3)}).result(60)
    save(donor, 2, 3, 4, keep=Keep(last=1))
    repo.gc()
    repo.gc()
    assert [c.step for c in donor.checkpoints()] == [1, 4]
    assert np.array_equal(run[1].load()["reference"]["w"], expected)
    donor.delete()
    repo.gc()
    with run.writer() as writer:
        assert np.array_equal(run[1].load()["reference"]["w"], expected)
        writer.save(2, {"w": np.ones(3)}).result(60)
    assert set(run[2].load()) == {"w"}
    run.remove(1)
    repo.gc()
    with run.writer() as writer:
        writer.save(3, {"w": np.ones(3)}).result(60)
    repo.gc()
    repo.gc()
    assert all(not found.key.startswith("packs/base") for found in repo.store.list("packs/"))


def test_a_tensor_that_a_reference_brings_too_is_refused(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    base = save(repo.run("base"), 1)
    with run.writer(references={"reference": base}) as writer:
        with pytest.raises(InvalidInput, match="reference/w"):
            writer.save(1, {"reference": {"w": np.zeros(20_000)}}).result(60)
        writer.save(1, {"other": np.ones(1)}).result(60)
    assert list(run[1].load()) == ["other", "reference"]


def test_declared_bases_are_searched_for_known_bytes(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    state = {"model": RNG.random(300_000), "head": RNG.random(100)}
    base = save(repo.run("base"), 1, state=state)
    tuned = {"model": state["model"], "head": RNG.random(100)}
    with run.writer(bases=[base]) as writer:
        for step in (1, 2):
            handle = writer.save(step, tuned)
            handle.result(60)
            assert handle.statistics().bytes_written < 3000
            assert handle.statistics().bytes_reused >= state["model"].nbytes
    assert {pack.lineage for pack in run[2].packs()} == {"base@1", "run@1"}
    repo.run("base").delete()
    repo.gc()
    repo.gc()
    assert np.array_equal(run[2].load()["model"], state["model"])


def test_removing_pinning_and_tagging(run: fwstore.Run, repo: fwstore.Repository) -> None:
    save(run, 1, 2, 3, 4)
    pin = run.pin(1, "paper")
    run.tag("best", 2)
    with pytest.raises(InvalidInput, match="paper"):
        run.remove(1)
    with pytest.raises(InvalidInput, match="tag best"):
        run.remove(2)
    run.remove(3)
    with pytest.raises(NotFound):
        run.remove(3)
    run.tag("best", 4)
    run.remove(2)
    run.unpin(pin)
    run.remove(1)
    run.tag("best", None)
    repo.gc()
    assert [c.step for c in run.checkpoints()] == [4]
    with pytest.raises(InvalidInput):
        run.tag("no good", 4)
    with pytest.raises(NotFound):
        run.tag("fine", 9)


def test_pinned_and_tagged_checkpoints_outlive_retention(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    save(run, 1, 2, 3)
    run.pin(1, "paper")
    run.tag("best", 2)
    save(run, 4, 5, keep=Keep(last=1))
    save(run, 6, keep=Keep(last=1))
    assert [c.step for c in run.checkpoints()] == [1, 2, 5, 6]
    assert run[1].load()["step"] == 1


def test_what_is_lent_may_be_lent_on_after_it_was_replaced(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    expected = save(run, 1).load()["w"]
    child = run.fork("child")
    run.commit_save(run.begin_save(1), [], {})
    run.commit_save(run.begin_save(1), [], {})
    repo.gc()
    grandchild = child.fork("grandchild")
    child.delete()
    repo.gc()
    repo.gc()
    assert np.array_equal(grandchild[1].load()["w"], expected)
    assert run[1].load() == {}
