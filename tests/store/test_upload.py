"""Uploads to an object store: what they keep in memory, and what they send from it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fwstore.base.config import Limits
from fwstore.base.units import MIB
from fwstore.store.address import open_store
from fwstore.store.object import ObjectStore
from support.hasty import hasty_runtime
from support.moto import MotoServer

pytestmark = pytest.mark.s3

LIMITS = Limits(part_bytes=5 * MIB, inflight_bytes=10 * MIB)


@pytest.fixture
def store(moto_server: MotoServer, s3_bucket: str) -> Iterator[ObjectStore]:
    runtime = hasty_runtime(LIMITS)
    made = open_store(f"s3://{s3_bucket}/pre?endpoint={moto_server.endpoint}", runtime)
    assert isinstance(made, ObjectStore)
    yield made
    made.close()
    runtime.scheduler.close()


def test_the_memory_of_parts_is_bounded_and_used_again(store: ObjectStore) -> None:
    content = os.urandom(41 * MIB)
    for key in ("one", "two"):
        upload = store.upload(key)
        for start in range(0, len(content), 3 * MIB):
            upload.write([content[start : start + MIB], content[start + MIB : start + 3 * MIB]])
        upload.commit()
        assert store.get(key, limit_bytes=len(content)) == content
    lent = store._maker.clients().parts._pool.statistics()
    assert lent.peak_leased_bytes == LIMITS.inflight_bytes


def test_many_uploads_at_once_do_not_wait_for_one_another(store: ObjectStore) -> None:
    uploads = [store.upload(f"u/{number}") for number in range(5)]
    for number, upload in enumerate(uploads):
        upload.write([bytes([number]) * MIB])
    for number, upload in enumerate(uploads):
        upload.commit()
        assert store.get(f"u/{number}", limit_bytes=MIB) == bytes([number]) * MIB


def test_what_was_written_may_change_at_once(store: ObjectStore) -> None:
    upload = store.upload("a")
    memory = bytearray(b"1" * 7 * MIB)
    upload.write([memory])
    memory[:] = b"2" * len(memory)
    upload.write([memory])
    memory[:] = b"3" * len(memory)
    upload.commit()
    assert store.get("a", limit_bytes=14 * MIB) == b"1" * 7 * MIB + b"2" * 7 * MIB
