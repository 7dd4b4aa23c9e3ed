"""Directories of a store: made durably, flushed no more often than that takes; a lost root is not made again."""

from __future__ import annotations

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fwstore.base.errors import AlreadyExists, NotFound, Unavailable
from fwstore.format.keys import SITE_KEY
from fwstore.store.directory import DirectoryStore
from support.lineages import make_runtime
from support.power import Disk


def make_store(root: Path) -> DirectoryStore:
    store = DirectoryStore(root, make_runtime())
    store.put(SITE_KEY, [b"{}"], mode="create")
    store.put("a/b", [b"content"], mode="create")
    return store


def test_a_root_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = make_store(root)
    shutil.rmtree(root)
    for key in ("a/b", "c/d"):
        with pytest.raises(Unavailable, match="mount its file system again"):
            store.put(key, [b"lost"], mode="overwrite")
        with pytest.raises(Unavailable, match="mount its file system again"):
            store.get(key, limit_bytes=10)
    assert not root.exists()


def test_an_empty_directory_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    """What a mount point looks like while its file system is away."""
    root = tmp_path / "store"
    store = make_store(root)
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(Unavailable, match="not the directory any more"):
        store.put("a/b", [b"lost"], mode="overwrite")
    assert list(root.iterdir()) == []
    store.close()
    store.put("a/b", [b"on purpose"], mode="create")
    assert (root / "a" / "b").read_bytes() == b"on purpose"


def test_the_store_may_come_back_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = make_store(root)
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(root)
    with pytest.raises(Unavailable):
        store.get("a/b", limit_bytes=10)
    (tmp_path / "copy").rename(root)
    assert store.get("a/b", limit_bytes=10) == b"content"
    store.put("c/d", [b"more"], mode="create")
    assert (root / "c" / "d").read_bytes() == b"more"


def test_before_there_is_a_root_nothing_is_found(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "later", make_runtime())
    with pytest.raises(NotFound):
        store.get("a", limit_bytes=1)
    assert list(store.list("")) == []
    store.put("a", [b"1"], mode="create")
    assert store.get("a", limit_bytes=1) == b"1"


def test_a_root_that_another_thread_makes_meanwhile_was_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "later", make_runtime())
    really_open = os.open

    def open_too_early(path: str, flags: int, **options: Any) -> int:
        try:
            return really_open(path, flags, **options)
        except FileNotFoundError:
            monkeypatch.undo()
            store.put("a", [b"1"], mode="create")
            raise

    monkeypatch.setattr(os, "open", open_too_early)
    with pytest.raises(NotFound):
        store.get("b", limit_bytes=1)
    assert store.get("a", limit_bytes=1) == b"1"


def test_a_name_is_flushed_once_whatever_is_looked_for_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = make_store(tmp_path / "store")
    for number in range(5):
        for absent in ("a/none", "a/x/none", "none", "c/none"):
            with pytest.raises(NotFound):
                store.get(absent, limit_bytes=10)
        store.put(f"a/x/{number}", [b"content"], mode="create")
        store.put(f"a/y/{number}", [b"content"], mode="overwrite")
    root = str(tmp_path / "store")
    assert disk.flushes.count(f"{root}/a/x") == disk.flushes.count(f"{root}/a/y") == 5
    # The names of the site and of `a`; of `b`, `x` and `y`; that of the root.
    assert (disk.flushes.count(root), disk.flushes.count(f"{root}/a")) == (2, 3)
    assert disk.flushes.count(str(tmp_path)) == 1
    assert disk.wasted == []


def test_threads_that_make_the_same_directory_flush_its_name_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = make_store(tmp_path)
    disk.forget()
    with ThreadPoolExecutor(8) as threads:
        for number in range(8):
            threads.submit(store.put, f"new/below/{number}", [b"content"], mode="create")
    assert disk.flushes.count(str(tmp_path)) == 1
    assert disk.flushes.count(str(tmp_path / "new")) == 1
    assert all(disk.keeps(tmp_path, f"new/below/{number}") for number in range(8))


def test_what_another_process_made_meanwhile_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = make_store(tmp_path)
    store.put("new/below/one", [b"content"], mode="create")
    shutil.rmtree(tmp_path / "new")
    (tmp_path / "new" / "below").mkdir(parents=True)
    disk.forget()
    store.put("new/below/two", [b"content"], mode="create")
    assert disk.flushes == [str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "below")]
    assert disk.keeps(tmp_path, "new/below/two")


def test_a_directory_that_moved_into_a_new_one_is_flushed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = make_store(tmp_path)
    store.put("new/below/one", [b"content"], mode="create")
    (tmp_path / "new" / "below").rename(tmp_path / "aside")
    (tmp_path / "new").rmdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "aside").rename(tmp_path / "new" / "below")
    with pytest.raises(NotFound):
        store.get("new/below/none", limit_bytes=10)
    store.put("new/below/two", [b"content"], mode="create")
    assert disk.keeps(tmp_path, "new/below/two")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_what_is_acknowledged_survives_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, disk = random.Random(seed), Disk(monkeypatch)
    stores = [DirectoryStore(tmp_path, make_runtime()) for _ in range(2)]
    kept: set[str] = set()
    for _ in range(100):
        store, key = (
            chance.choice(stores),
            "/".join(chance.choices("abc", k=3)) + chance.choice("xy"),
        )
        step = chance.random()
        if step < 0.4:
            with suppress(AlreadyExists):
                store.put(key, [b"content"], mode=chance.choice(["create", "overwrite"]))
            kept.add(key)
            # Also when it was lost to another: whoever is told that may act on it.
            assert disk.keeps(tmp_path, key)
        elif step < 0.7:
            store.delete([key])
            kept.discard(key)
        elif step < 0.9:
            with suppress(NotFound):
                store.get(key, limit_bytes=10)
        else:
            # Another process that has not flushed yet.
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        assert all((tmp_path / key).exists() and disk.keeps(tmp_path, key) for key in kept)
