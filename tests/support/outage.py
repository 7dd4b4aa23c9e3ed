"""Takes the power from a machine at any moment and lets tests look at every disk that this may leave.

with machine_on(path) as machine:
    store = machine.process(); ...; machine.recorder.note(what was acknowledged)
assert sweep(folder, machine.recorder.events, check) > 100
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fwstore.base.errors import FwstoreError
from fwstore.store.directory import DirectoryStore
from support.lineages import make_runtime
from support.powerloss import Event, Image, cuts
from support.syscalls import Recorder, image_of, materialise, recording

# Not the root of the disk: the names of the directories above a store have to be durable too.
_PLACE = Path("new", "store")
_TEMPORARY = f"{_PLACE}/.tmp/"
_seeds = itertools.count(1000)

Check = Callable[[DirectoryStore, Sequence[object]], object]


@dataclass(frozen=True)
class Machine:
    """A machine whose only disk holds a store."""

    disk: Path
    recorder: Recorder

    def process(self) -> DirectoryStore:
        """The store of a process that has just begun."""
        return process_on(self.disk)


def process_on(disk: Path) -> DirectoryStore:
    """Return the store of a disk as a process sees it that has just begun."""
    return DirectoryStore(disk / _PLACE, make_runtime(next(_seeds)))


@contextmanager
def machine_on(disk: Path) -> Iterator[Machine]:
    """Run processes on a new disk and record what they ask of the system."""
    disk.mkdir()
    with recording(disk) as recorder:
        yield Machine(disk, recorder)
    *_, last = cuts(recorder.events)
    # Nothing was missed: without a loss the disk is what it is.
    assert last.image() == image_of(disk)


@dataclass(frozen=True)
class Remains:
    """What a power loss left.

    Attributes:
        calls: How many events there were before.
        image: The disk.
        notes: What had been acknowledged.
    """

    calls: int
    image: Image
    notes: Sequence[object]

    def look(self, folder: Path, check: Check) -> None:
        """Let new processes work on the disk. The power does not fail again, so they need not wait for it."""
        disk = folder / "left"
        materialise(self.image, disk)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            check(process_on(disk), self.notes)
        shutil.rmtree(disk)


def remains(
    events: Sequence[Event], *, begin: int = 0, exhaustive: int, sampled: int
) -> Iterator[Remains]:
    """Yield what a power loss may leave, each disk once for what had been acknowledged by then.

    Args:
        events: What happened.
        begin: How many of the events come before the power may fail.
        exhaustive: Up to how many combinations of losses all are looked at.
        sampled: How many are, of more.
    """
    seen = set()
    for calls, disk in enumerate(cuts(events)):
        if calls < begin:
            continue
        notes = tuple(disk.notes)
        for image in disk.images(random.Random(calls), exhaustive=exhaustive, sampled=sampled):
            # Nobody reads temporary files, so what they hold makes no difference.
            read = {path: path.startswith(_TEMPORARY) or image[path] for path in image}
            key = frozenset(read.items()), len(notes)
            if key not in seen:
                seen.add(key)
                yield Remains(calls, image, notes)


def sweep(folder: Path, left: Iterable[Remains], check: Check) -> int:
    """Check all that a power loss may leave; return how many disks that were."""
    count = 0
    for found in left:
        count += 1
        try:
            found.look(folder, check)
        except (AssertionError, FwstoreError) as error:
            raise AssertionError(
                f"after {found.calls} calls: {sorted(found.image)}, {found.notes}"
            ) from error
    return count
