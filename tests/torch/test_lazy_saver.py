"""`Saver` with lazy staging: optimizers wait for the copies, and nothing else changes what is copied late."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fwstore
from fwstore import Conflict, InvalidInput, LimitExceeded, SaveHandle, Unavailable
from fwstore.checkpoint.engine import SaveEngine
from fwstore_torch import SaveFailedWarning, Saver
from fwstore_torch.late import LateCopies
from fwstore_torch.parts import make_parts
from support.gates import GatedStore, packs

PATIENCE_S = 60.0


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[fwstore.Repository]:
    with fwstore.open(str(tmp_path), limits=fwstore.Limits(threads=2)) as repository:
        yield repository


class Gate:
    """Holds the copies that go on after a save returned, until somebody waits for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.waits = 0
        self.error: BaseException | None = None
        copy_late, wait_staged = SaveEngine.copy_late, SaveHandle.wait_staged

        def held(engine: SaveEngine, *args: Any) -> None:
            assert self.open.wait(PATIENCE_S), "nobody waited"
            if self.error is not None:
                raise self.error
            copy_late(engine, *args)

        def opening(handle: SaveHandle, timeout: float | None = None) -> None:
            self.waits += 1
            self.open.set()
            wait_staged(handle, timeout)

        monkeypatch.setattr(SaveEngine, "copy_late", held)
        monkeypatch.setattr(SaveHandle, "wait_staged", opening)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.open.set()


class CodeBook(nn.Module):
    """Has one of everything that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.tied = self.last.weight
        self.codes = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.codes.add_(1)
        found: torch.Tensor = self.last(self.norm(self.first(inputs)))
        return found


class Scaler:
    """A part with a tensor of its own."""

    def __init__(self) -> None:
        self.scale = torch.ones(4)

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


class Loop:
    """A training loop that changes everything that a loop may change."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = CodeBook()
        rate = torch.tensor(0.05)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, capturable=False)
        self.average = AveragedModel(self.model)
        self.scaler = Scaler()
        self.generator = torch.Generator().manual_seed(5)

    @property
    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
            "scaler": self.scaler,
        }

    def before_step(self) -> None:
        """All of a step but that of the optimizer."""
        loss = self.model(torch.rand(5, 6, generator=self.generator)).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.average.update_parameters(self.model)
        self.scaler.scale += 1
        self.optimizer.param_groups[0]["lr"] *= 0.9

    def train(self) -> None:
        self.before_step()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {name: part.state() for name, part in make_parts(self.parts)[0].items()}
        )


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return bool(left == right)


def loaded(checkpoint: fwstore.Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = checkpoint.load()
    return {name: value for name, value in found.items() if not name.startswith("_")}


def test_a_checkpoint_is_what_stood_there_though_everything_changed_at_once(
    repo: fwstore.Repository, gate: Gate
) -> None:
    loop = Loop()
    loop.train()
    with Saver(repo.run("r"), loop.parts, staging="lazy") as saver:
        saver.resume()
        for step in range(3):
            gate.open.clear()
            expected = loop.state()
            handle = saver.save(step)
            loop.before_step()
            assert not gate.open.is_set()
            assert not handle.done()
            before = gate.waits
            loop.optimizer.step()
            assert gate.waits == before + 1
            for group in loop.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.data.zero_()
            handle.result(PATIENCE_S)
            assert same(loaded(repo.run("r")[step]), expected)


def test_lazy_and_eager_runs_are_alike_bit_for_bit(repo: fwstore.Repository) -> None:
    kept: dict[str, list[Any]] = {"eager": [], "lazy": []}
    for staging, expected in kept.items():
        loop = Loop()
        options: Any = {"every": 1, "rng": False, "staging": staging}
        with Saver(repo.run(staging), loop.parts, **options) as saver:
            for step in saver.steps(8):
                loop.train()
                expected.append(loop.state())
                saver.step(step)
                saver.wait_staged()
                saver.wait_staged()
        for checkpoint in repo.run(staging).checkpoints():
            assert same(loaded(checkpoint), expected[checkpoint.step])
        assert [checkpoint.step for checkpoint in repo.run(staging).checkpoints()] == list(
            range(8)
        )[1:]
    assert same(kept["eager"], kept["lazy"])


def test_only_what_the_optimizers_own_is_copied_late() -> None:
    loop = Loop()
    loop.train()
    shared, _ = make_parts(loop.parts)
    parts: Any = shared
    is_late = LateCopies([parts["optimizer"]]).is_late()
    late = {name for name, value in parts["model"].state().items() if is_late(value)}
    layers = ("first", "norm", "last")
    assert late == {f"{n}.{kind}" for n in layers for kind in ("weight", "bias")} | {"tied"}
    states = parts["optimizer"].state()
    assert all(is_late(v) for state in states["state"].values() for v in state.values())
    others = [
        states["param_groups"][0]["lr"],
        *parts["average"].state().values(),
        loop.scaler.scale,
    ]
    assert not any(is_late(value) for value in others)
    weight = loop.model.first.weight
    assert not any(map(is_late, (weight[1:], weight.view(-1), weight.detach().clone(), None, 3)))


def test_parameters_that_change_without_a_step_are_waited_for_or_the_save_fails(
    repo: fwstore.Repository, gate: Gate
) -> None:
    loop = Loop()
    loop.train()
    with Saver(repo.run("r"), loop.parts, staging="lazy", max_failures=2) as saver:
        saver.resume()
        expected = loop.state()
        saver.save(0)
        saver.wait_staged()
        with torch.no_grad():
            loop.model.first.weight.clamp_(-0.01, 0.01)
        gate.open.clear()
        handle = saver.save(1)
        with torch.no_grad():
            loop.model.first.weight.zero_()
        loop.train()
        with pytest.raises(Conflict, match=r"1 tensors were changed .*model/first\.weight;"):
            handle.result(PATIENCE_S)
        with pytest.warns(SaveFailedWarning, match="step 1 failed"):
            saver.step(2)
        saver.save(3).result(PATIENCE_S)
    assert [checkpoint.step for checkpoint in repo.run("r").checkpoints()] == [0, 3]
    assert same(loaded(repo.run("r")[0]), expected)


def test_copies_that_fail_are_saves_that_fail(repo: fwstore.Repository, gate: Gate) -> None:
    loop = Loop()
    gate.error = LimitExceeded("no memory")
    saver = Saver(repo.run("r"), loop.parts, every=1, staging="lazy", max_failures=2)
    saver.resume()
    for step in range(1, 3):
        loop.train()
        if step == 1:
            saver.step(step)
    saver.writer.wait()
    with pytest.warns(SaveFailedWarning, match="step 1 failed .*no memory"):
        saver.step(3)
    loop.train()
    saver.writer.wait()
    with pytest.raises(Unavailable, match="2 saves in a row failed"):
        saver.step(4)
    with pytest.raises(Unavailable, match="not durable"):
        saver.close()
    assert repo.pool.statistics().leased_bytes == 0


def test_an_interrupted_step_gives_the_save_up(
    repo: fwstore.Repository, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    def interrupted(timeout: float | None) -> None:
        raise KeyboardInterrupt

    loop = Loop()
    saver = Saver(repo.run("r"), loop.parts, staging="lazy")
    saver.resume()
    handle = saver.save(0)
    before = loop.state()["model"]["tied"]
    with monkeypatch.context() as patch:
        patch.setattr(saver.writer._savings[-1].staged, "exception", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.optimizer.step()
    assert torch.equal(loop.model.tied, before)
    assert saver.writer._savings[-1].staged.done()
    with pytest.raises(Unavailable, match="interrupted"):
        handle.result(PATIENCE_S)
    saver.save(1).result(PATIENCE_S)
    with pytest.warns(SaveFailedWarning, match="step 0"):
        saver.close()
    assert [checkpoint.step for checkpoint in repo.run("r").checkpoints()] == [1]


@pytest.mark.parametrize("on_busy", ["wait", "skip"])
def test_a_slow_store_holds_saves_back_and_no_step(repo: fwstore.Repository, on_busy: Any) -> None:
    store = GatedStore(repo.store, packs)
    repo.store = store
    loop = Loop()
    with Saver(repo.run("r"), loop.parts, every=1, staging="lazy", on_busy=on_busy) as saver:
        saver.resume()
        store.shut()
        for step in (1, 2):
            loop.train()
            saver.step(step)
        store.wait_arrival()
        for _ in range(3):
            loop.train()
        store.open()
        saver.writer.wait()
        saver.step(3)
    steps = [checkpoint.step for checkpoint in repo.run("r").checkpoints()]
    assert steps == ([1, 2, 3] if on_busy == "wait" else [1, 3])


def test_a_stop_saves_the_step_that_is_being_copied(repo: fwstore.Repository) -> None:
    loop, last = Loop(), {}
    with Saver(repo.run("r"), loop.parts, staging="lazy", grace="30s") as saver:
        for step in saver.steps(100):
            loop.train()
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            last = loop.state()
            saver.step(step)
    assert saver.stopped is not None
    assert saver.stopped.saved
    assert same(loaded(repo.run("r").latest()), last)
    loop.train()


def leave_by_close(saver: Saver) -> None:
    threading.Timer(0.05, saver.wait_staged).start()
    saver.close()
    saver.close()


def leave_by_error(saver: Saver) -> None:
    told = pytest.warns(SaveFailedWarning, match="leaving without the save of step 0")
    with told, pytest.raises(ZeroDivisionError), saver:
        raise ZeroDivisionError
    saver.writer.close()


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_error])
def test_the_hooks_go_with_the_saver_once_nothing_reads_the_tensors(
    repo: fwstore.Repository, gate: Gate, leave: Callable[[Saver], None]
) -> None:
    loop = Loop()
    other = torch.optim.SGD(loop.model.parameters())
    saver = Saver(repo.run("r"), {**loop.parts, "other": other}, staging="lazy", grace=0.01)
    hooks = [loop.optimizer._optimizer_step_pre_hooks, other._optimizer_step_pre_hooks]
    assert [len(found) for found in hooks] == [1, 1]
    saver.resume()
    saver.save(0)
    leave(saver)
    assert gate.waits
    assert hooks == [{}, {}]
    assert [checkpoint.step for checkpoint in repo.run("r").checkpoints()] == [0]


def test_lazy_staging_needs_an_optimizer(repo: fwstore.Repository) -> None:
    model = nn.Linear(2, 2)
    scaler = Scaler()
    with pytest.raises(InvalidInput, match=r"staging='lazy'.*no part is an optimizer"):
        Saver(repo.run("r"), {"model": model, "scaler": scaler}, staging="lazy")
    wrong: Any = "late"
    with pytest.raises(InvalidInput, match="staging is 'eager' or 'lazy', not 'late'"):
        Saver(repo.run("r"), {"model": model}, staging=wrong)
    with Saver(repo.run("r"), {"model": model}) as saver:
        saver.wait_staged()
