"""A repository of less than 20 KiB that holds every kind of object, and what a reader must see in it.

hang()                                  builds memory://gallery
look() == look()                        everything a fresh process can read of it, as plain values
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fwstore
import fwstore.repository
from fwstore.base.config import Environment, Limits
from fwstore.base.ids import SeededIds
from fwstore.checkpoint.coordinator import StoreCoordinator
from fwstore.format.state import encode_state
from fwstore.format.summary import Hint, Summary, encode_hint, encode_summary
from fwstore.plan.box import Box
from fwstore.sched import BufferPool, InlineScheduler, Runtime
from fwstore.store.memory import MemoryStore
from support.lineages import TestClock

URL = "memory://gallery"
RUN, DONOR = "org/run", "gone"
STEPS = (2, 3)
Sight = Mapping[str, Any]


@contextmanager
def one_thread(monkeypatch: pytest.MonkeyPatch, seed: int = 1) -> Iterator[None]:
    """Make `fwstore.open` give repositories without threads, that repeat themselves and share buffers."""
    pool = BufferPool(lambda size: memoryview(bytearray(size)))
    runtime = Runtime(
        TestClock(), SeededIds(seed), InlineScheduler(), Limits(), Environment({"HOSTNAME": "h"})
    )
    with monkeypatch.context() as patch:
        patch.setattr(fwstore.repository, "system_runtime", lambda _: runtime)
        patch.setattr(fwstore.repository, "BufferPool", lambda *_: pool)
        yield


def state() -> dict[str, Any]:
    """Return a state with raw and encoded tensors of several dtypes, a tie, and plain values."""
    weight = np.repeat([1.5, -2.0], 32)
    return {
        "model": {"w": weight, 7: weight},
        "optimizer": {"step": 2},
        "empty": np.zeros((0, 3), np.uint16),
    }


def hang() -> MemoryStore:
    """Build the gallery anew and return its store.

    A run is saved, forked and deleted; its bytes stay as far as the fork needs them. The fork goes on in a
    second term.
    """
    with fwstore.open(URL) as repository:
        store = repository.store
        assert isinstance(store, MemoryStore)
        store.delete([info.key for info in store.list("")])
        donor = repository.run(DONOR)
        with donor.writer(codec="zstd") as writer:
            writer.save(1, {})
            writer.save(2, state(), position=(9, None), per_rank={"rng": 4})
        donor.remove(1)
        run = donor.fork(RUN, at=2)
        donor.delete()
        repository.gc()
        _save_in_phases(run)
        run.pin(2, "paper")
        _summarise(repository)
        run.tag("best", 3)
        keys = run.latest().access.keys
        StoreCoordinator(store, keys, "job-0-0", 0, 2).put("part-1-1", b"a message")
        return store


def _save_in_phases(run: fwstore.Run) -> None:
    """Save step 3 by its three phases, with a tensor cut otherwise than its grid: in fragments."""
    ticket = run.begin_save(3)
    whole = np.arange(6, dtype=np.float16)
    boxes = (Box((0,), (2,)), Box((2,), (4,)))
    pieces = tuple(fwstore.Piece(box, whole[box.slices()]) for box in boxes)
    part = run.write_part(
        ticket, {("half",): fwstore.Shard("float16", (6,), pieces, layout=None)}, rank=0
    )
    slots = {"half": fwstore.TensorSlot("numpy"), "plain": [1, None]}
    run.commit_save(ticket, [part], slots, metrics={"loss": 1.5}, annotations={"dcp": b"planned"})


def _summarise(repository: fwstore.Repository) -> None:
    """Write the derived objects that a log of some hundred slots has."""
    access = repository.find(RUN)
    assert access is not None
    fold = access.log.refresh()
    store, keys = repository.store, access.keys
    summary = Summary(fold.lineage, fold.seq, fold.digest, fold.export())
    store.put(keys.summary(fold.seq), [encode_summary(summary)], mode="create")
    hint = Hint(fold.lineage, fold.seq, fold.seq)
    store.put(keys.hint, [encode_hint(hint)], mode="overwrite")


def look(repository: fwstore.Repository) -> Sight:
    """Return what is listed: runs, checkpoints with their metrics, branches, pins."""
    run = repository.run(RUN)
    return {
        "runs": repository.runs(),
        "checkpoints": [
            (c.step, c.id, c.term, c.metrics, c.parent, c.wall_time) for c in run.checkpoints()
        ],
        "branches": run.branches(),
        "pins": run.pins(),
    }


def load(repository: fwstore.Repository, step: int) -> Sight:
    """Return all that one checkpoint holds, tensors as dtype, shape and bytes."""
    checkpoint = repository.run(RUN)[step]
    return {
        "state": _plain(checkpoint.load()),
        "slots": encode_state(checkpoint.state()),
        "position": checkpoint.position,
        "metrics": checkpoint.metrics,
        "per_rank": checkpoint.per_rank(0),
        "annotation": checkpoint.annotation("dcp"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(child) for child in value)
    return value
