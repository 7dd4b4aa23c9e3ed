"""The power fails at any moment: whatever the disk may then hold, a directory store keeps what it acknowledged.

What is asked of the system is recorded, and the real code goes on from every image that is legal at any moment
(`support.powerloss`): a key holds what was acknowledged last, or what was begun since, whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fwstore.base.errors import AlreadyExists, Unavailable
from fwstore.store import directory
from fwstore.store.base import Mode
from fwstore.store.directory import DirectoryStore
from support.figures import Figures
from support.outage import Machine, machine_on, remains, sweep

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Begun:
    """From now on a key may hold this; None: nothing."""

    key: str
    content: bytes | None


@dataclass(frozen=True)
class Done:
    """A key holds this, as somebody was told."""

    key: str
    content: bytes | None


def put(
    machine: Machine, store: DirectoryStore, key: str, content: bytes, mode: Mode = "create"
) -> None:
    machine.recorder.note(Begun(key, content))
    store.put(key, [content], mode=mode)
    machine.recorder.note(Done(key, content))


def delete(machine: Machine, store: DirectoryStore, *keys: str) -> None:
    for key in keys:
        machine.recorder.note(Begun(key, None))
    store.delete(keys)
    for key in keys:
        machine.recorder.note(Done(key, None))


def create(machine: Machine) -> None:
    store = machine.process()
    put(machine, store, "a/b/one", b"1" * 700)
    put(machine, store, "a/two", b"2")
    put(machine, store, "a/b/three", b"")


def overwrite(machine: Machine) -> None:
    store = machine.process()
    for content in (b"1" * 600, b"2" * 1100, b"3"):
        put(machine, store, "a/one", content, "overwrite")


def upload(machine: Machine) -> None:
    store = machine.process()
    for key in ("packs/one", "packs/two"):
        machine.recorder.note(Begun(key, b"1" * 600))
        begun, abandoned = store.upload(key), store.upload("packs/never")
        for piece in (b"1" * 400, b"1" * 200):
            begun.write([piece])
            abandoned.write([piece])
        begun.commit()
        machine.recorder.note(Done(key, b"1" * 600))
        abandoned.abort()


def create_without_links(machine: Machine) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", refuse)
        create(machine)


def empty_a_directory(machine: Machine) -> None:
    """A directory becomes empty and goes, and is made anew by whoever knew the old one."""
    store, other = machine.process(), machine.process()
    put(machine, store, "a/b/one", b"1")
    delete(machine, other, "a/b/one")
    put(machine, store, "a/b/two", b"2")
    delete(machine, store, "a/b/two", "a/b/never")
    put(machine, other, "a/b/one", b"3")


def lose_a_race(machine: Machine) -> None:
    """A process links and does not flush; another is told that the key is taken, and acts on it."""
    winner, loser = machine.process(), machine.process()
    put(machine, winner, "a/first", b"0")
    with no_flush(), pytest.raises(Unavailable):
        put(machine, winner, "a/key", b"winner")
    with pytest.raises(AlreadyExists):
        loser.put("a/key", [b"loser"], mode="create")
    machine.recorder.note(Done("a/key", b"winner"))


def rely_on_another(machine: Machine) -> None:
    """A process finds directories that another one made and has not flushed."""
    first, second = machine.process(), machine.process()
    with no_flush(), pytest.raises(Unavailable):
        put(machine, first, "a/b/one", b"1")
    put(machine, second, "a/b/two", b"2")
    put(machine, first, "a/three", b"3")


@contextmanager
def no_flush() -> Iterator[None]:
    """Let the system refuse to flush the directory of a key."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "flush_folder", refuse)
        yield


SCRIPTS = (
    create,
    overwrite,
    upload,
    create_without_links,
    empty_a_directory,
    lose_a_race,
    rely_on_another,
)


def check(store: DirectoryStore, notes: Sequence[object]) -> None:
    """Hold a store after a power loss against what it had said, and use it."""
    possible: dict[str, set[bytes | None]] = {}
    for note in notes:
        if isinstance(note, Begun):
            possible.setdefault(note.key, {None}).add(note.content)
        elif isinstance(note, Done):
            possible[note.key] = {note.content}
    found = {info.key: store.get(info.key, limit_bytes=info.size) for info in store.list("")}
    for key in found.keys() | possible.keys():
        assert found.get(key) in possible.get(key, {None}), key
    for key in possible:
        with suppress(AlreadyExists):
            store.put(key, [b"next"], mode="create")
        assert store.get(key, limit_bytes=2000) == found.get(key, b"next")
    store.clean_temporary(older_than_s=86_400)
    store.delete(sorted(possible))
    assert [path for path in Path(store.url).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_store_keeps_what_it_acknowledged(
    tmp_path: Path, script: Callable[[Machine], None], soak: int, figures: Figures
) -> None:
    with machine_on(tmp_path / "disk") as machine:
        script(machine)
    left = remains(machine.recorder.events, exhaustive=100 * soak, sampled=20 * soak)
    disks = sweep(tmp_path, left, check)
    assert disks > 30
    figures.note("power loss", {"disks": disks, "moments": len(machine.recorder.events) + 1})
