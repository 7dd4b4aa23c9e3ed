"""What a training loop may do with `Saver` beside the plain way, and what must not stop it."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fwstore
from fwstore_torch import Saver, StopTraining
from support.faults import FaultyStore
from support.gates import GatedStore


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[fwstore.Repository]:
    with fwstore.open(str(tmp_path), limits=fwstore.Limits(request_timeout_s=0.2)) as repository:
        yield repository


def steps_of(run: fwstore.Run) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def test_a_step_that_was_saved_on_request_is_not_saved_again_when_due(
    repo: fwstore.Repository,
) -> None:
    run = repo.run("job")
    with Saver(run, {"model": nn.Linear(2, 2)}, every=2) as saver:
        for step in saver.steps(5):
            asked = saver.save(step)
            told = saver.step(step)
            assert told is (asked if step in (2, 4) else None)
    assert steps_of(run) == [0, 1, 2, 3, 4]


def test_the_last_step_is_saved_although_an_earlier_save_still_runs(
    repo: fwstore.Repository,
) -> None:
    run = repo.run("job")
    gate = GatedStore(repo.store)
    repo.store = gate
    with Saver(run, {"model": nn.Linear(2, 2)}, every=1, on_busy="skip") as saver:
        for step in saver.steps(4):
            if step == 1:
                gate.shut()
            handle = saver.step(step)
            if step == 2:
                assert handle is not None
                assert handle.skipped
                gate.open()
    assert steps_of(run) == [1, 3]


def test_a_job_leaves_with_its_stop_also_where_warnings_are_errors(
    repo: fwstore.Repository,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    repo.store = FaultyStore(repo.store, lambda op: "fail" if op.key.startswith("packs/") else None)
    saver = Saver(repo.run("job"), {"model": nn.Linear(2, 2)})
    saver.resume()
    os.kill(os.getpid(), signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StopTraining) as stop:
            saver.step(0)
    assert not stop.value.saved
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_resume_passes_over_a_damaged_base_also_where_warnings_are_errors(
    repo: fwstore.Repository,
) -> None:
    model = nn.Linear(2, 2)
    run = repo.run("job")
    with Saver(run, {"model": model}) as saver:
        saver.resume()
        saver.save(0)
        with torch.no_grad():
            model.weight.zero_()
        saver.save(1)
    root = f"meta/job@1/_snap/{run[1].id}/root"
    repo.store.put(root, [b"damaged"], mode="overwrite")
    with fwstore.open(repo.url) as again, warnings.catch_warnings():
        warnings.simplefilter("error")
        with Saver(again.run("job"), {"model": nn.Linear(2, 2)}) as saver:
            assert saver.resume() == 1


def test_a_part_that_was_saved_and_is_not_asked_for_is_not_lost_in_silence(
    repo: fwstore.Repository,
) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    with Saver(repo.run("base"), {"model": nn.Linear(2, 2)}) as saver:
        saver.resume()
        saver.save(0)
    frozen = {"reference": repo.run("base")[0]}
    parts = {"model": model, "optimizer": optimizer}
    with Saver(repo.run("job"), parts, frozen=frozen) as saver:
        saver.resume()
        saver.save(0)
    with pytest.raises(
        fwstore.InvalidInput, match=r"parts \['optimizer'\], which this Saver lacks"
    ):
        Saver(repo.run("job"), {"model": model}).resume()
    assert Saver(repo.run("job"), {"model": model}).resume(strict=False) == 1
    assert Saver(repo.run("job"), parts).resume() == 1


def test_a_loss_may_carry_its_graph(repo: fwstore.Repository) -> None:
    model, loss = nn.Linear(2, 2), torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Saver(repo.run("job"), {"model": model}, every=1) as saver:
            for step in saver.steps(2):
                loss = model(torch.ones(2)).sum()
                saver.step(step, metrics={"loss": loss})
    assert repo.run("job").latest().metrics == {"loss": pytest.approx(loss.item())}
