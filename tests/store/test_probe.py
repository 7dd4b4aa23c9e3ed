"""The probe passes honest stores and names the promise that a dishonest one breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import boto3
import pytest
from typing_extensions import Buffer

from fwstore.base.errors import AlreadyExists, NotFound, PermissionDenied, Unavailable
from fwstore.sched.runtime import Runtime
from fwstore.store.address import open_store
from fwstore.store.base import Mode, ObjectInfo, ReadInto, Store
from fwstore.store.memory import MemoryStore
from fwstore.store.probe import ProbeReport, probe_store
from support.hasty import hasty_runtime
from support.moto import MotoServer


def failed(report: ProbeReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


@pytest.mark.slow
def test_an_honest_store_passes_and_is_left_as_it_was(
    store: Store, url: str, request: pytest.FixtureRequest
) -> None:
    # The conditional PUT of moto checks and then acts: now and then two racers win.
    racers = 1 if request.node.callspec.params["url"] == "moto" else 32
    report = probe_store(store, hasty_runtime(), racers=racers)
    assert report.passed, report
    assert report.url == url
    assert [name for name in failed(report) if name != "lifecycle"] == []
    assert list(store.list("")) == []


class NoExclusion(MemoryStore):
    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        super().put(key, buffers, mode="overwrite", write_id=write_id)


class Stale(MemoryStore):
    def get(self, key: str, *, limit_bytes: int) -> bytes:
        found = super().get(key, limit_bytes=limit_bytes)
        return b"0" if key.endswith("/fresh") else found


class LateList(MemoryStore):
    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        listed = super().list(prefix, start_after=start_after, limit=limit)
        return (info for info in listed if not info.key.endswith("list/b"))


class WrongRange(MemoryStore):
    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return super().get_range(key, 0, length)


class WrongScatter(MemoryStore):
    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        return None


class Torn(MemoryStore):
    def get(self, key: str, *, limit_bytes: int) -> bytes:
        found = super().get(key, limit_bytes=limit_bytes)
        return found[:999] if key.endswith("/whole") else found


class Forgetful(MemoryStore):
    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        super().put(key, buffers, mode=mode)


class Undeletable(MemoryStore):
    def delete(self, keys: Sequence[str]) -> None:
        return None


class DeleteOnce(MemoryStore):
    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.head(key)
        super().delete(keys)


class Skewed(MemoryStore):
    def head(self, key: str) -> ObjectInfo:
        found = super().head(key)
        return ObjectInfo(key, found.size, found.modified + 3600, found.write_id)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (NoExclusion, ["one winner"]),
        (Stale, ["read after write"]),
        (LateList, ["list after write"]),
        (WrongRange, ["ranges"]),
        (WrongScatter, ["ranges"]),
        (Torn, ["whole replacement"]),
        (Forgetful, ["metadata"]),
        (Undeletable, ["list after write", "deletion"]),
        (DeleteOnce, ["deletion"]),
    ],
)
def test_a_broken_promise_is_named(
    runtime: Runtime, kind: Callable[[Runtime], Store], expected: list[str]
) -> None:
    report = probe_store(kind(runtime), runtime)
    assert failed(report) == expected
    assert not report.passed
    assert all(check.advice for check in report.checks if not check.passed)


def test_a_wrong_clock_is_told_but_does_not_forbid(runtime: Runtime) -> None:
    report = probe_store(Skewed(runtime), runtime)
    assert failed(report) == ["clock"]
    assert report.passed


class ReadOnly(MemoryStore):
    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        raise PermissionDenied("may not write")


class Gone(MemoryStore):
    def head(self, key: str) -> ObjectInfo:
        raise Unavailable("nobody answers")


@pytest.mark.parametrize(("kind", "expected"), [(ReadOnly, "writable"), (Gone, "reachable")])
def test_a_probe_stops_where_it_cannot_go_on(
    runtime: Runtime, kind: Callable[[Runtime], Store], expected: str
) -> None:
    report = probe_store(kind(runtime), runtime)
    assert failed(report)[0] == expected
    assert len(report.checks) == 2
    assert not report.passed


class WinnerLost(MemoryStore):
    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        super().put(key, [b"x"] if "race" in key else buffers, mode=mode, write_id=write_id)


def test_a_winner_whose_bytes_are_not_there_is_no_winner(runtime: Runtime) -> None:
    assert failed(probe_store(WinnerLost(runtime), runtime)) == ["one winner"]


def test_the_errors_that_a_probe_expects_are_those_of_stores(runtime: Runtime) -> None:
    store = MemoryStore(runtime)
    with pytest.raises(NotFound):
        store.head("a")
    store.put("a", [b""], mode="create")
    with pytest.raises(AlreadyExists):
        store.put("a", [b""], mode="create")


@pytest.fixture
def buckets(moto_server: MotoServer, s3_bucket: str) -> Iterator[Any]:
    client = boto3.client("s3", endpoint_url=moto_server.endpoint)
    yield client
    client.close()


def rule(prefix: str, **effect: object) -> dict[str, object]:
    return {"ID": "mine", "Status": "Enabled", "Filter": {"Prefix": prefix}, **effect}


ABORT = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}
EXPIRE = {"Expiration": {"Days": 30}}


@pytest.mark.s3
@pytest.mark.parametrize(
    ("rules", "passed", "detail"),
    [
        ([], True, "nothing removes"),
        ([rule("", **ABORT)], True, "are aborted"),
        ([rule("", **EXPIRE)], False, "mine delete"),
        ([rule("pre/packs", **EXPIRE)], False, "mine delete"),
        ([rule("logs/", **EXPIRE), rule("", **ABORT)], True, "are aborted"),
        ([{**rule("", **EXPIRE), "Status": "Disabled"}], True, "nothing removes"),
    ],
    ids=["none", "abort", "expire all", "expire packs", "expire others", "disabled"],
)
def test_lifecycle_rules_are_judged(
    buckets: Any, s3_bucket: str, rules: list[object], passed: bool, detail: str
) -> None:
    if rules:
        buckets.put_bucket_lifecycle_configuration(
            Bucket=s3_bucket, LifecycleConfiguration={"Rules": rules}
        )
    runtime = hasty_runtime()
    report = probe_store(open_store(f"s3://{s3_bucket}/pre", runtime), runtime, racers=1)
    found = {check.name: check for check in report.checks}
    assert detail in found["lifecycle"].detail
    assert report.passed is passed


@pytest.mark.s3
def test_versioning_is_told(buckets: Any, s3_bucket: str) -> None:
    buckets.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    runtime = hasty_runtime()
    report = probe_store(open_store(f"s3://{s3_bucket}/pre", runtime), runtime, racers=1)
    found = {check.name: check for check in report.checks}
    assert not found["versioning"].passed
    assert "noncurrent" in found["versioning"].advice
    assert report.passed
