"""Addresses and the stores they open."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwstore.base.errors import InvalidInput
from fwstore.sched.runtime import Runtime
from fwstore.store.address import open_store
from fwstore.store.directory import DirectoryStore
from fwstore.store.memory import MemoryStore
from fwstore.store.object import ObjectStore

KEYS = {"access_key_id": "AKIATEST", "secret_access_key": "some-secret"}


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "FILE://{}"])
def test_a_path_is_a_directory(form: str, tmp_path: Path, runtime: Runtime) -> None:
    store = open_store(form.format(tmp_path / "a"), runtime)
    assert isinstance(store, DirectoryStore)
    assert store.url == str(tmp_path / "a")
    assert store.capabilities.kind == "directory"


def test_a_relative_path_is_fixed_when_opened(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("a/b", runtime).url == str(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/a", runtime).url == str(tmp_path / "a")


def test_a_file_url_is_unquoted(tmp_path: Path, runtime: Runtime) -> None:
    assert open_store(f"file://{tmp_path}/a%20b", runtime).url == str(tmp_path / "a b")


def test_memory_stores_are_shared_by_name(runtime: Runtime) -> None:
    first, second = (open_store("memory://shared-by-name", runtime) for _ in range(2))
    assert isinstance(first, MemoryStore)
    first.put("a", [b"1"], mode="create")
    assert second.get("a", limit_bytes=1) == b"1"
    assert list(open_store("memory://other", runtime).list("")) == []
    private = open_store("memory://", runtime)
    private.put("a", [b"1"], mode="create")
    assert list(open_store("memory://", runtime).list("")) == []


@pytest.mark.parametrize(
    ("url", "canonical", "kind"),
    [
        ("s3://bucket", "s3://bucket", "s3"),
        ("s3://bucket/", "s3://bucket", "s3"),
        ("s3://bucket/a/b/", "s3://bucket/a/b", "s3"),
        ("S3://bucket/a", "s3://bucket/a", "s3"),
        (
            "s3://bucket/a?region=eu-west-1&endpoint=https%3A%2F%2Fhost%3A9000",
            "s3://bucket/a?endpoint=https://host:9000&region=eu-west-1",
            "s3",
        ),
    ],
)
def test_a_bucket_is_an_object_store(url: str, canonical: str, kind: str, runtime: Runtime) -> None:
    store = open_store(url, runtime, KEYS)
    assert isinstance(store, ObjectStore)
    assert store.url == canonical
    assert open_store(store.url, runtime, KEYS).url == canonical
    assert store.capabilities.kind == kind
    assert store.capabilities.remote
    store.close()


def test_other_clouds_are_object_stores(runtime: Runtime) -> None:
    azure = open_store("az://container/a", runtime, {"account_name": "me", "account_key": "a2V5"})
    assert (azure.url, azure.capabilities.kind) == ("az://container/a", "azure")
    google = open_store("gs://bucket/a", runtime, {"skip_signature": True})
    assert (google.url, google.capabilities.kind) == ("gs://bucket/a", "gcs")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a\0b",
        "s3://bucket/a\0b",
        "ftp://host/a",
        "http://host/a",
        "s3:/bucket/a",
        "s3://",
        "s3:///prefix",
        "s3://bucket//a",
        "s3://bucket/../a",
        "s3://bucket/a#b",
        "s3://bucket/a?versionId=3",
        "s3://bucket/" + "x/" * 101 + "x",
        "file://host/a",
        "file://",
    ],
)
def test_what_is_no_address_is_refused(url: str, runtime: Runtime) -> None:
    with pytest.raises(InvalidInput):
        open_store(url, runtime)


def test_options_are_for_object_stores(tmp_path: Path, runtime: Runtime) -> None:
    for url in (str(tmp_path), "memory://x"):
        with pytest.raises(InvalidInput, match="region"):
            open_store(url, runtime, {"region": "x"})
