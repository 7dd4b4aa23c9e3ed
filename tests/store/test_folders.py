"""The root of a directory store: made once, and not made again when it is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fwstore.base.errors import NotFound, Unavailable
from fwstore.format.keys import SITE_KEY
from fwstore.store.directory import DirectoryStore
from support.lineages import make_runtime


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
