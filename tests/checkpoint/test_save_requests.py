"""What a save asks of a bucket, counted: requests cost time and money there.

Sizes stand to each other as by default, a sixty-fourth of them, so that a GiB is 16 MiB here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from typing_extensions import Buffer

import fwstore
from fwstore import Limits
from fwstore.base.config import REMOTE_THREADS
from fwstore.base.units import GIB
from fwstore.content import sources, write
from fwstore.sched import Runtime
from fwstore.store.base import Capabilities, Mode
from fwstore.store.memory import MemoryStore

SCALE = 64
SIZES = ("pack_bytes", "part_bytes", "inflight_bytes")
LIMITS = Limits(
    threads=REMOTE_THREADS, **{name: getattr(Limits(), name) // SCALE for name in SIZES}
)
# The mark is 40.
REQUESTS_PER_GIB = 38


class Bucket(MemoryStore):
    """Counts what an object store would be asked in its place."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.requests = 0

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, remote=True)

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        parts = -(-size // LIMITS.part_bytes)
        # An upload in parts is begun and completed.
        self.requests += parts + 2 if parts > 1 else 1
        super().put(key, buffers, mode=mode, write_id=write_id)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> list[Bucket]:
    opened: list[Bucket] = []

    def open_bucket(url: str, runtime: Runtime, options: object = None) -> Bucket:
        opened.append(Bucket(runtime))
        return opened[-1]

    monkeypatch.setattr("fwstore.repository.open_store", open_bucket)
    monkeypatch.setattr(write, "_LANE_BYTES", write._LANE_BYTES // SCALE)
    monkeypatch.setattr(sources, "_GROUP_BYTES", sources._GROUP_BYTES // SCALE)
    return opened


@pytest.mark.parametrize("gigabytes", [1, 3])
def test_requests_of_a_save(bucket: list[Bucket], gigabytes: int) -> None:
    size = gigabytes * GIB // SCALE
    state = {f"w{number}": np.full(1 << 14, number, "<f4") for number in range(size >> 16)}
    with fwstore.open("memory://counted", limits=LIMITS) as repository:
        (store,) = bucket
        with repository.run("run").writer() as writer:
            for step in (1, 2):
                for array in state.values():
                    np.add(array, len(state), out=array)
                before = store.requests
                writer.save(step, state, blocking=True)
                assert store.requests - before <= REQUESTS_PER_GIB * gigabytes
