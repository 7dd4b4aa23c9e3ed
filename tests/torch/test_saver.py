"""`Saver` in one process: what is saved, what is restored, and what happens when something fails."""

from __future__ import annotations

import os
import random
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fwstore
from fwstore import Fenced, InvalidInput, Unavailable
from fwstore_torch import PerRank, SaveFailedWarning, Saver, StopTraining
from fwstore_torch.rng import capture_rng, restore_rng
from support.faults import FaultyStore, Operation


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    before = capture_rng()
    yield
    restore_rng(before)


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[fwstore.Repository]:
    with fwstore.open(str(tmp_path), limits=fwstore.Limits(request_timeout_s=0.2)) as repository:
        yield repository


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def make_parts(**others: Any) -> dict[str, Any]:
    model = nn.Linear(3, 2)
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1),
        "counter": Counter(),
        **others,
    }


def train(parts: dict[str, Any]) -> float:
    parts["counter"].count += 1
    loss = parts["model"](torch.rand(4, 3) + random.random()).square().sum()
    parts["optimizer"].zero_grad()
    loss.backward()
    parts["optimizer"].step()
    return float(loss.detach())


def test_a_resumed_run_goes_on_bit_for_bit(repo: fwstore.Repository) -> None:
    torch.manual_seed(1)
    random.seed(1)
    parts = make_parts()
    start = {name: value.clone() for name, value in parts["model"].state_dict().items()}
    rng = capture_rng()
    whole = [train(parts) for _ in range(7)]
    restore_rng(rng)

    losses = []
    for total in (3, 5, 7):
        parts = make_parts()
        parts["model"].load_state_dict(start)
        restore_rng(rng)
        with Saver(repo.run("job"), parts, every=100) as saver:
            losses += [train(parts) for _ in saver.steps(total)]
    assert losses == whole
    assert parts["counter"].count == 7


def test_steps_are_saved_when_due_and_at_the_end(repo: fwstore.Repository) -> None:
    run = repo.run("job")
    with Saver(run, make_parts(), every=2) as saver:
        handles = [saver.step(step, metrics={"loss": 1.0}) for step in saver.steps(6)]
    assert [handle is not None for handle in handles] == [False, False, True, False, True, False]
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4, 5]
    with Saver(run, make_parts()) as saver:
        assert saver.resume() == 6
        assert list(saver.steps(6)) == []


def test_memory_for_the_first_save_is_made_ready_after_the_first_step(
    repo: fwstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    warm_up = fwstore.Writer.warm_up

    def noted(writer: fwstore.Writer, state: Any) -> None:
        asked.append((sorted(state), len(state["optimizer"]["state"])))
        warm_up(writer, state)

    monkeypatch.setattr(fwstore.Writer, "warm_up", noted)
    parts = make_parts()
    with Saver(repo.run("r"), parts, every=3) as saver:
        for _ in saver.steps(5):
            train(parts)
    assert asked == [(["model", "optimizer"], 2)]
    with Saver(repo.run("s"), parts) as saver:
        saver.resume()
        saver.save(0)
        saver.step(0)
    assert len(asked) == 1


def test_a_manual_loop_saves_on_request(repo: fwstore.Repository) -> None:
    parts = make_parts()
    saver = Saver(repo.run("job"), parts)
    assert saver.resume() == 0
    assert saver.step(0) is None
    handle = saver.save(1, metrics={"loss": 0.5}, position={"shard": 3})
    checkpoint = handle.result(10)
    assert checkpoint is not None
    assert checkpoint.position == {"shard": 3}
    assert checkpoint.metrics == {"loss": 0.5}
    saver.close()
    saver.close()


def test_misuse_is_told(repo: fwstore.Repository) -> None:
    saver = Saver(repo.run("job"), make_parts())
    with pytest.raises(InvalidInput, match=r"resume\(\) first"):
        saver.step(0)
    saver.resume()
    with pytest.raises(InvalidInput, match="once"):
        saver.resume()
    saver.close()
    with pytest.raises(InvalidInput, match="both"):
        Saver(repo.run("job"), make_parts(), frozen={"model": repo.run("x")})  # type: ignore[dict-item]  # a clash of names is found first


def test_parts_that_do_not_fit_are_named(repo: fwstore.Repository) -> None:
    with Saver(repo.run("job"), make_parts()) as saver:
        saver.resume()
        saver.save(0)
    more = Saver(repo.run("job"), make_parts(ema=nn.Linear(3, 2)))
    with pytest.raises(InvalidInput, match="ema"):
        more.resume()
    more.close()
    wide = make_parts()
    wide["model"] = nn.Linear(3, 2, bias=False)
    wide["optimizer"] = torch.optim.AdamW(wide["model"].parameters())
    other = Saver(repo.run("job"), wide)
    with pytest.raises(InvalidInput, match="bias"):
        other.resume()
    other.close()
    lenient = Saver(repo.run("job"), make_parts(ema=nn.Linear(3, 2)))
    assert lenient.resume(strict=False) == 1
    lenient.close()


def test_parts_of_each_rank_and_generators_come_back(repo: fwstore.Repository) -> None:
    own = Counter()
    own.count = 5
    with Saver(repo.run("job"), make_parts(loader=PerRank(own))) as saver:
        saver.resume()
        saver.save(0)
        expected = (random.random(), torch.rand(2).tolist())
    own.count = 0
    random.seed(99)
    with Saver(repo.run("job"), make_parts(loader=PerRank(own))) as saver:
        saver.resume()
        assert (random.random(), torch.rand(2).tolist()) == expected
    assert own.count == 5
    random.seed(99)
    untouched = random.getstate()
    with Saver(repo.run("job"), make_parts(loader=PerRank(own)), rng=False) as saver:
        saver.resume()
        assert random.getstate() == untouched


def test_frozen_references_are_part_of_every_save_and_cost_nothing(
    repo: fwstore.Repository,
) -> None:
    base = nn.Linear(400, 400)
    with repo.run("base").writer() as writer:
        writer.save(7, {"weights": base.state_dict()}).result(10)
    with Saver(repo.run("job"), make_parts(), frozen={"reference": repo.run("base")[7]}) as saver:
        saver.resume()
        handle = saver.save(0)
        assert handle.result(10) is not None
    assert handle.statistics().bytes_written < 20_000
    state = repo.run("job").latest().load()
    assert torch.equal(state["reference"]["weights"]["weight"], base.weight)


def test_trainable_only_leaves_frozen_parameters_out(repo: fwstore.Repository) -> None:
    def adapted() -> dict[str, Any]:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        model[0].requires_grad_(requires_grad=False)
        return {"model": model}

    source, target = adapted(), adapted()
    with Saver(repo.run("job"), source, trainable_only=True) as saver:
        saver.resume()
        saver.save(0)
    assert set(repo.run("job").latest().load()["model"]) == {"1.weight", "1.bias"}
    with Saver(repo.run("job"), target, trainable_only=True) as saver:
        saver.resume()
    assert torch.equal(source["model"][1].weight, target["model"][1].weight)
    assert not torch.equal(source["model"][0].weight, target["model"][0].weight)


def test_a_signal_ends_a_manual_loop_with_a_saved_step(repo: fwstore.Repository) -> None:
    before = signal.getsignal(signal.SIGTERM)
    saver = Saver(repo.run("job"), make_parts())
    saver.resume()
    saver.step(0)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopTraining) as caught:
        saver.step(1)
    assert (caught.value.step, caught.value.saved, caught.value.code) == (1, True, 143)
    assert repo.run("job").latest().step == 1
    assert signal.getsignal(signal.SIGTERM) is before
    saver.close()


def test_a_signal_ends_an_iteration(repo: fwstore.Repository) -> None:
    done = []
    with Saver(repo.run("job"), make_parts()) as saver:
        for step in saver.steps(1000):
            done.append(step)
            if step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert done == [0, 1, 2, 3, 4]
    assert saver.stopped is not None
    assert (saver.stopped.step, saver.stopped.saved, saver.stopped.code) == (4, True, 138)


def broken(repo: fwstore.Repository, fails: Callable[[Operation], bool]) -> None:
    repo.store = FaultyStore(repo.store, lambda operation: "fail" if fails(operation) else None)


def test_failed_saves_warn_then_raise(repo: fwstore.Repository) -> None:
    broken(repo, lambda operation: operation.key.startswith("packs/"))
    saver = Saver(repo.run("job"), make_parts(), every=1, max_failures=2)
    saver.resume()
    saver.step(1)
    saver.writer.wait()
    with pytest.warns(SaveFailedWarning, match="step 1"):
        saver.step(2)
    saver.writer.wait()
    with pytest.raises(Unavailable, match="2 saves in a row"):
        saver.step(3)
    with pytest.raises(Unavailable, match="not durable"):
        saver.close()
    saver.close()


def test_a_failed_last_save_is_raised_by_close(repo: fwstore.Repository) -> None:
    full = False
    broken(repo, lambda operation: full and operation.key.startswith("packs/"))
    parts = make_parts()
    saver = Saver(repo.run("job"), parts)
    saver.resume()
    saver.save(0).result(10)
    full = True
    train(parts)
    saver.save(1)
    with pytest.warns(SaveFailedWarning), pytest.raises(Unavailable, match="not durable"):
        saver.close()
    assert repo.run("job").latest().step == 0


def test_every_failed_save_is_told_once(repo: fwstore.Repository) -> None:
    def crash() -> None:
        with Saver(repo.run("job"), make_parts()) as saver:
            saver.resume()
            saver.save(2)
            saver.writer.wait()
            saver.save(3)
            raise ZeroDivisionError

    broken(repo, lambda operation: operation.key.startswith("packs/"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        saver = Saver(repo.run("job"), make_parts())
        saver.resume()
        saver.save(0)
        saver.writer.wait()
        saver.save(1)
        with pytest.raises(Unavailable, match="not durable"):
            saver.close()
        with pytest.raises(ZeroDivisionError):
            crash()
    messages = " ".join(str(warning.message) for warning in told)
    assert re.findall(r"save of step (\d)", messages) == ["0", "1", "3", "2"]


def test_an_error_in_training_is_not_hidden(repo: fwstore.Repository) -> None:
    def crash() -> None:
        with Saver(repo.run("job"), make_parts()) as saver:
            for step in saver.steps(5):
                saver.save(step)
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert repo.run("job").latest().step == 0


def test_an_older_job_is_fenced(repo: fwstore.Repository) -> None:
    older = Saver(repo.run("job"), make_parts(), every=1)
    older.resume()
    newer = Saver(repo.run("job"), make_parts(), every=1)
    newer.resume()
    older.step(1)
    older.writer.wait()
    with pytest.raises(Fenced):
        older.step(2)
    older.close()
    newer.step(1)
    newer.close()
    assert repo.run("job").latest().step == 1
