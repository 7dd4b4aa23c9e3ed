"""What only directories do: the order of flushes, refusals of file systems, foreign files, links."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fwstore.base.errors import (
    AlreadyExists,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from fwstore.sched.runtime import Runtime
from fwstore.store import posix
from fwstore.store.base import Mode, ReadInto
from fwstore.store.directory import DirectoryStore

MODES: tuple[Mode, ...] = ("create", "overwrite")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path, runtime: Runtime) -> DirectoryStore:
    return DirectoryStore(root, runtime)


def keys(store: DirectoryStore) -> list[str]:
    return [info.key for info in store.list("")]


def temporary(store: DirectoryStore) -> list[str]:
    folder = Path(store.url, ".tmp")
    return [path.name for path in folder.iterdir()] if folder.exists() else []


class Journal:
    """Writes down the system calls that decide what survives a power loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.events: list[str] = []
        self._root = root
        self._fsync, self._link, self._replace, self._mkdir = (
            os.fsync,
            os.link,
            os.replace,
            os.mkdir,
        )
        monkeypatch.setattr(os, "fsync", self._on_fsync)
        monkeypatch.setattr(os, "link", self._on_link)
        monkeypatch.setattr(os, "replace", self._on_replace)
        monkeypatch.setattr(os, "mkdir", self._on_mkdir)

    def _name(self, descriptor: int) -> str:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.name == ".tmp":
            return "file"
        return os.path.relpath(path, self._root)

    def _on_fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.events.append(f"flush {self._name(descriptor)}")

    def _on_link(self, source: str, name: str, **folders: Any) -> None:
        self._link(source, name, **folders)
        self.events.append(f"name {name}")

    def _on_replace(self, source: str, name: str, **folders: Any) -> None:
        self._replace(source, name, **folders)
        self.events.append(f"name {name}")

    def _on_mkdir(self, path: Any, *args: Any, **folders: Any) -> None:
        self._mkdir(path, *args, **folders)
        self.events.append(f"make {Path(path).name}")


@pytest.mark.parametrize("mode", ["create", "overwrite", "upload"])
def test_the_order_of_flushes(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def write(key: str) -> None:
        if mode == "upload":
            upload = store.upload(key)
            upload.write([b"x"])
            upload.commit()
        else:
            store.put(key, [b"x"], mode="create" if mode == "create" else "overwrite")

    journal = Journal(monkeypatch, root)
    write("a/b/one")
    after_temporary = journal.events[journal.events.index("flush file") :]
    assert after_temporary == [
        "flush file",
        "make a",
        "flush .",
        "make b",
        "flush a",
        "name one",
        "flush a/b",
    ]
    assert journal.events[:2] == ["make root", "flush .."]
    journal.events.clear()
    write("a/b/two")
    assert journal.events == ["flush file", "name two", "flush a/b"]


def test_a_directory_of_another_process_is_flushed_before_it_is_relied_on(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").mkdir(parents=True)
    journal = Journal(monkeypatch, root)
    store.put("a/one", [b"x"], mode="create")
    assert journal.events[-4:] == ["flush file", "flush .", "name one", "flush a"]


def test_a_loser_flushes_what_it_lost_to(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a/one", [b"x"], mode="create")
    journal = Journal(monkeypatch, root)
    with pytest.raises(AlreadyExists):
        store.put("a/one", [b"y"], mode="create")
    assert journal.events == ["flush file", "flush a"]


def refuse(number: int) -> Callable[..., Any]:
    def call(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, LimitExceeded),
        (errno.EDQUOT, LimitExceeded),
        (errno.EFBIG, LimitExceeded),
        (errno.EMFILE, LimitExceeded),
        (errno.EROFS, PermissionDenied),
        (errno.EACCES, PermissionDenied),
        (errno.EIO, Unavailable),
        (errno.ESTALE, Unavailable),
        (errno.ENOTCONN, Unavailable),
        (errno.EXDEV, Unsupported),
        (errno.ENAMETOOLONG, InvalidInput),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.__name__,
)
@pytest.mark.parametrize("call", ["writev", "fsync", "link", "open"])
def test_every_refusal_has_its_error_and_leaves_nothing(
    store: DirectoryStore,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    expected: type[FwstoreError],
) -> None:
    store.put("warm/key", [b"x"], mode="create")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(number))
        with pytest.raises(expected) as caught:
            store.put("warm/other", [b"x"], mode="create")
    assert "warm" in str(caught.value) or ".tmp" in str(caught.value)
    assert keys(store) == ["warm/key"]
    assert temporary(store) == []
    store.put("warm/other", [b"x"], mode="create")


def test_a_failed_flush_of_an_upload_leaves_nothing(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = store.upload("a/big")
    upload.write([b"x" * 100])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EIO))
        with pytest.raises(Unavailable):
            upload.commit()
    assert (keys(store), temporary(store)) == ([], [])


def test_a_full_disk_stops_an_upload_which_then_leaves_nothing(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = store.upload("a/big")
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", refuse(errno.ENOSPC))
        with pytest.raises(LimitExceeded, match="full"):
            upload.write([b"x" * 100])
    upload.abort()
    assert (keys(store), temporary(store)) == ([], [])


def test_short_writes_and_reads_go_on(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writev, preadv = os.writev, os.preadv
    monkeypatch.setattr(os, "writev", lambda fd, views: writev(fd, [views[0][:3]]))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:3]], at))
    content = [b"0123456", b"", b"789", b"abcdefghijklm"]
    store.put("a", content, mode="create")
    assert store.get("a", limit_bytes=100) == b"".join(content)
    pieces = [bytearray(5), bytearray(1), bytearray(8)]
    store.read_into("a", [ReadInto(2, [memoryview(piece) for piece in pieces])])
    assert b"".join(pieces) == b"".join(content)[2:16]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_links_an_exclusive_rename_creates(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refuse(number))
    store.put("a/one", [b"1"], mode="create")
    with pytest.raises(AlreadyExists):
        store.put("a/one", [b"2"], mode="create")
    assert store.get("a/one", limit_bytes=1) == b"1"
    assert temporary(store) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, None])
def test_without_any_atomic_create_the_store_refuses(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def renameat2(*args: object) -> int:
        ctypes.set_errno(number or 0)
        return -1

    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(posix, "_renameat2", renameat2 if number else None)
    with pytest.raises(Unsupported, match="another file system"):
        store.put("a/one", [b"1"], mode="create")
    assert (keys(store), temporary(store)) == ([], [])
    store.put("a/one", [b"1"], mode="overwrite")


def test_a_link_repeated_by_the_network_is_ours(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeat(*args: Any, **folders: Any) -> None:
        link(*args, **folders)
        link(*args, **folders)

    monkeypatch.setattr(os, "link", repeat)
    store.put("a/one", [b"1"], mode="create")
    assert store.get("a/one", limit_bytes=1) == b"1"


def test_a_file_system_that_cannot_flush_directories_is_taken_at_its_word(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(errno.EINVAL, "no")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    store.put("a/one", [b"1"], mode="create")
    assert keys(store) == ["a/one"]


def test_links_lead_nowhere(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    store.put("real/one", [b"1"], mode="create")
    (root / "door").symlink_to(outside)
    (root / "real" / "file").symlink_to(outside / "secret")
    for key in ("door/secret", "real/file"):
        with pytest.raises(NotFound):
            store.get(key, limit_bytes=10)
        with pytest.raises(NotFound):
            store.head(key)
    for mode in MODES:
        with pytest.raises(InvalidInput, match="symbolic link"):
            store.put("door/new", [b"x"], mode=mode)
    with pytest.raises(AlreadyExists):
        store.put("real/file", [b"x"], mode="create")
    store.delete(["door/secret"])
    store.put("real/file", [b"x"], mode="overwrite")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "s"
    assert keys(store) == ["real/file", "real/one"]
    assert list(store.list("door/")) == []


def test_the_root_may_be_a_link(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    DirectoryStore(tmp_path / "link", runtime).put("a", [b"1"], mode="create")
    assert (tmp_path / "real" / "a").read_bytes() == b"1"


def test_a_root_that_leads_nowhere_is_no_empty_store(tmp_path: Path, runtime: Runtime) -> None:
    """A link to a file system that is not mounted is no store that nothing was written to yet."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "mount" / "store")
    store = DirectoryStore(link, runtime)
    asks: list[Callable[[], object]] = [
        lambda: store.get("key", limit_bytes=1),
        lambda: store.head("key"),
        lambda: list(store.list("")),
        lambda: store.put("key", [b"x"], mode="create"),
        lambda: store.delete(["key"]),
    ]
    for ask in asks:
        with pytest.raises(Unavailable, match="leads nowhere"):
            ask()
    (tmp_path / "mount" / "store").mkdir(parents=True)
    store.put("key", [b"x"], mode="create")
    assert (tmp_path / "mount" / "store" / "key").read_bytes() == b"x"


@pytest.mark.parametrize("mode", MODES)
def test_an_object_is_no_prefix_of_another(store: DirectoryStore, mode: Mode) -> None:
    store.put("a/b", [b"1"], mode="create")
    with pytest.raises(InvalidInput, match="object"):
        store.put("a/b/c", [b"1"], mode=mode)
    with pytest.raises(InvalidInput, match="prefix"):
        store.put("a", [b"1"], mode=mode)
    assert keys(store) == ["a/b"]
    assert temporary(store) == []


def test_foreign_files_are_not_objects(store: DirectoryStore, root: Path) -> None:
    store.put("a/one", [b"1"], mode="create")
    (root / "a" / ".nfs0001").write_text("x")
    (root / ".snapshot").mkdir()
    (root / ".snapshot" / "old").write_text("x")
    (root / "empty").mkdir()
    (root / "a" / "bad\\name").write_text("x")
    os.mkfifo(root / "a" / "pipe")
    assert keys(store) == ["a/one"]
    with pytest.raises(NotFound):
        store.get("a/pipe", limit_bytes=1)
    with pytest.raises(NotFound):
        store.get("empty", limit_bytes=1)


def test_directories_that_vanish_come_again(store: DirectoryStore, root: Path) -> None:
    store.put("a/b/one", [b"1"], mode="create")
    store.get("a/b/one", limit_bytes=1)
    (root / "a" / "b" / "one").unlink()
    (root / "a" / "b").rmdir()
    (root / "a").rmdir()
    (root / ".tmp").rmdir()
    with pytest.raises(NotFound):
        store.get("a/b/one", limit_bytes=1)
    store.put("a/b/two", [b"2"], mode="create")
    assert store.get("a/b/two", limit_bytes=1) == b"2"
    other = DirectoryStore(root, hasty())
    other.delete(["a/b/two"])
    other.put("a/b/three", [b"3"], mode="create")
    assert store.get("a/b/three", limit_bytes=1) == b"3"
    assert keys(store) == ["a/b/three"]


def hasty() -> Runtime:
    from support.hasty import hasty_runtime

    return hasty_runtime()


def test_delete_prunes_what_it_empties(store: DirectoryStore, root: Path) -> None:
    for key in ("a/b/c/one", "a/two", "d/e/three"):
        store.put(key, [b""], mode="create")
    store.delete(["a/b/c/one", "d/e/three"])
    assert sorted(path.name for path in root.iterdir()) == [".tmp", "a"]
    assert [path.name for path in (root / "a").iterdir()] == ["two"]


@pytest.mark.slow
def test_creates_survive_the_pruning_of_their_directory(store: DirectoryStore, root: Path) -> None:
    stop = threading.Event()

    def prune() -> None:
        pruner = DirectoryStore(root, hasty())
        number = 0
        while not stop.is_set():
            pruner.put(f"a/b/x{number}", [b""], mode="overwrite")
            pruner.delete([f"a/b/x{number}"])
            number += 1

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        for number in range(150):
            store.put(f"a/b/{number}", [b"1"], mode="create")
            assert store.get(f"a/b/{number}", limit_bytes=1) == b"1"
            store.delete([f"a/b/{number}"])
    finally:
        stop.set()
        thread.join()
    assert keys(store) == []


def test_what_dead_writers_left_is_cleaned(store: DirectoryStore, root: Path) -> None:
    living = store.upload("a/big")
    living.write([b"1"])
    for number in range(3):
        dead = root / ".tmp" / f"host-1-{number}"
        dead.write_text("x")
        os.utime(dead, (1e9, 1e9))
    found = store.find_temporary(before=1.5e9)
    assert sorted(one.key for one in found) == [f".tmp/host-1-{number}" for number in range(3)]
    assert store.clean_temporary(older_than_s=3600) == found
    assert store.find_temporary(before=1.5e9) == []
    living.commit()
    assert keys(store) == ["a/big"]
    late = store.upload("a/late")
    late.write([b"1"])
    assert store.clean_temporary(older_than_s=-3600)
    with pytest.raises(Unavailable):
        late.commit()
    assert keys(store) == ["a/big"]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.slow
def test_descriptors_do_not_leak(store: DirectoryStore) -> None:
    def many() -> None:
        for number in range(140):
            key = f"d{number}/one"
            store.put(key, [b"1"], mode="overwrite")
            store.get(key, limit_bytes=1)
        list(store.list("", limit=3))
        store.upload("u/one").abort()

    many()
    store.close()
    before = open_descriptors()
    many()
    store.close()
    assert open_descriptors() == before


def test_reading_needs_no_right_to_write(tmp_path: Path, runtime: Runtime) -> None:
    store = DirectoryStore(tmp_path / "absent", runtime)
    with pytest.raises(NotFound):
        store.get("a", limit_bytes=1)
    assert list(store.list("a/")) == []
    store.delete(["a"])
    assert not (tmp_path / "absent").exists()


@pytest.fixture
def writers(root: Path) -> Iterator[list[int]]:
    processes: list[int] = []
    yield processes
    for process in processes:
        os.kill(process, 9)
        os.waitpid(process, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_killed_writer_leaves_only_whole_objects(
    store: DirectoryStore, writers: list[int]
) -> None:
    ready, tell = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            for number in range(1_000_000):
                store.put(f"k/{number % 7}", [bytes([number % 256]) * 50_000], mode="overwrite")
                os.write(tell, b"." if number > 20 else b"")
        finally:
            os._exit(1)
    writers.append(process)
    os.read(ready, 1)
    writers.clear()
    os.kill(process, 9)
    os.waitpid(process, 0)
    os.close(ready)
    os.close(tell)
    for info in store.list(""):
        content = store.get(info.key, limit_bytes=100_000)
        assert content == content[:1] * 50_000
    assert len(temporary(store)) <= 1
