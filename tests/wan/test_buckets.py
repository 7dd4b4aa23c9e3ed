"""Replication between buckets, whose uploads and answers are not those of a directory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore.base.config import Limits
from fwstore.base.units import MIB
from fwstore.log.site import Site, create_site, open_site
from fwstore.sched import system_runtime
from fwstore.store.address import open_store
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator
from support.faults import Crash, Fault, FaultyStore, Operation

PART = 5 * MIB
LIMITS = Limits(
    threads=8, part_bytes=PART, pack_bytes=18 * MIB, read_request_bytes=MIB, inflight_bytes=4 * PART
)


@pytest.mark.s3
@pytest.mark.slow
def test_a_copy_between_buckets_goes_on_where_a_worker_died(s3_bucket: str) -> None:
    near, far = f"s3://{s3_bucket}/near", f"s3://{s3_bucket}/far"
    state: dict[str, Any] = {
        "w": np.random.default_rng(1).integers(0, 255, 24 * MIB, np.uint8),
        "step": 7,
    }
    with fwstore.open(near, limits=LIMITS) as repo, repo.run("gpt").writer() as writer:
        writer.save(7, state).result()
    runtime = system_runtime(LIMITS)
    there, store = open_store(near, runtime), open_store(far, runtime)
    own = create_site(store, runtime, name="far")
    site = open_site(there)
    received: list[int] = []
    source = Source(Site(site.uuid, "near", there), received.append)

    staged: list[str] = []

    def dies_late(operation: Operation) -> Fault | None:
        if operation.name == "overwrite" and operation.key.startswith("staged/"):
            staged.append(operation.key)
        return "crash" if len(staged) > 2 else None

    dying = FaultyStore(store, dies_late)
    with pytest.raises(Crash):
        Replicator(
            Destination(own=Site(own.uuid, "far", dying), sources=(source,), runtime=runtime)
        ).once()
    report = Replicator(Destination(own=own, sources=(source,), runtime=runtime)).once()
    assert not report.troubles
    assert [copied.step for copied in report.copied] == [7]
    assert sum(received) <= 24 * MIB + 4 * PART + MIB // 4
    assert not list(store.list("staged/"))
    there.close()
    store.close()
    runtime.scheduler.close()
    with fwstore.open(far) as repo:
        loaded = repo.run("gpt").latest().load()
        assert np.array_equal(loaded["w"], state["w"])
        assert repo.verify(level="data").problems == ()
