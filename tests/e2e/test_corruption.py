"""Damage anything in a store: every load gives what was saved, or says `Corrupt`; never another value.

A load is a function of the objects that it reads, so damage to an object is looked at through the reads
that touch it: which those are is recorded on the whole repository, for every object of the gallery.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

import fwstore
import fwstore.repository
from fwstore.format.record import KINDS as RECORD_KINDS
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.gallery import DONOR, RUN, STEPS, URL, Sight, hang, load, look, one_thread, state
from support.oracle import same
from support.processes import copied

SIZE_MAX = 20 * 1024
PAGE = b"<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head></html>"
KINDS = {
    "site": r"fwstore\.json",
    "lineage": r"catalog/.*@1",
    "closed": r"catalog/.*\.closed",
    "name": r"meta/_names/.*",
    "vote": r"meta/.*/_term/\d+",
    "receipt": r"meta/.*/_term/\d+\.open",
    "slot": r"meta/.*/_log/\d+/\d+",
    "summary": r"meta/.*/_log/sum/\d+",
    "hint": r"meta/.*/_log/hint",
    "condemned": r"meta/.*/_condemned/.*",
    "message": r"meta/.*/_coord/.*",
    "root": r"meta/.*/_snap/.*/root",
    "leaf": r"meta/.*/_snap/.*/leaf-\d+",
    "table": r"meta/.*/_snap/.*/packs-\d+",
    "pack": r"packs/.*",
}
# What readers do without: damage to these must not even be noticed.
UNNEEDED = ("closed", "name", "vote", "receipt", "summary", "hint", "condemned", "message")
OF_SEVERAL_SITES = {"publish", "hold"}
# What someone who reads the gallery may do, by name.
READS: Mapping[str, Callable[[fwstore.Repository], Sight]] = {
    "list": look,
    **{f"step {step}": lambda repository, step=step: load(repository, step) for step in STEPS},  # type: ignore[misc]
}


@dataclass
class Gallery:
    """The gallery, what its objects hold, and what every read gives while they are whole."""

    store: MemoryStore
    objects: dict[str, bytes]
    expected: dict[str, Sight] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)

    def keys(self, kind: str) -> list[str]:
        return [key for key in self.objects if re.fullmatch(KINDS[kind], key)]

    def outcome(self, read: str) -> str:
        """Do a read in a fresh process, as it were; say "right" or "corrupt", or fail."""
        try:
            with fwstore.open(URL) as repository:
                seen = READS[read](repository)
        except fwstore.Corrupt:
            return "corrupt"
        assert seen == self.expected[read]
        return "right"

    def allowed(self, key: str, kind: str) -> set[str]:
        """Return what may come of damage to an object."""
        if kind in UNNEEDED or not self.readers[key]:
            return {"right"}
        # Of a pack the header, the trailer and the zeros between chunks are for those without a table.
        return {"right", "corrupt"} if kind == "pack" else {"corrupt"}

    def ends_log(self, key: str) -> bool:
        """Return whether an object is the newest slot of its log: without it the log ends one earlier."""
        folder = key.rpartition("/")[0]
        return key in self.keys("slot") and key == max(
            k for k in self.objects if k.startswith(folder)
        )

    def outcomes(self, key: str, content: bytes | None) -> set[str]:
        """Do all reads that touch an object while it holds other bytes, or is gone."""
        if content is None:
            self.store.delete([key])
        else:
            self.store.put(key, [content], mode="overwrite")
        try:
            return {self.outcome(read) for read in self.readers[key] or ["list"]}
        finally:
            self.store.put(key, [self.objects[key]], mode="overwrite")


@pytest.fixture(scope="module")
def gallery() -> Iterator[Gallery]:
    """The gallery for all tests of this file; each leaves it whole."""
    with pytest.MonkeyPatch.context() as monkeypatch, one_thread(monkeypatch):
        store = hang()
        objects = {i.key: store.get(i.key, limit_bytes=SIZE_MAX) for i in store.list("")}
        made = Gallery(store, objects, readers={key: [] for key in objects})
        for name, read in READS.items():
            watched = FaultyStore(store)
            with monkeypatch.context() as patch:
                patch.setattr(fwstore.repository, "open_store", lambda *_, it=watched: it)
                with fwstore.open(URL) as repository:
                    made.expected[name] = read(repository)
            for key in {operation.key for operation in watched.operations} & set(objects):
                made.readers[key].append(name)
        yield made


def flips(stored: bytes, soak: int) -> Iterator[bytes]:
    """Yield the bytes with each of them changed once: its lowest bit, its highest, or all of it in turn."""
    for place in range(len(stored)):
        for turn in range(1 if soak == 1 else 3):
            change = (0x01, 0xFF, 0x80)[(place + turn) % 3]
            yield stored[:place] + bytes([stored[place] ^ change]) + stored[place + 1 :]


def test_the_gallery_is_small_and_holds_every_kind_of_object(gallery: Gallery) -> None:
    assert sum(map(len, gallery.objects.values())) <= SIZE_MAX
    kinds = {key: [kind for kind in KINDS if key in gallery.keys(kind)] for key in gallery.objects}
    assert all(len(found) == 1 for found in kinds.values())
    assert {kind for found in kinds.values() for kind in found} == set(KINDS)
    bodies = b"".join(gallery.objects[key] for key in gallery.keys("slot"))
    kinds_of_records = {kind for kind in RECORD_KINDS if f'"kind":"{kind}"'.encode() in bodies}
    assert kinds_of_records == RECORD_KINDS - OF_SEVERAL_SITES
    assert {read: gallery.outcome(read) for read in READS} == dict.fromkeys(READS, "right")


def test_every_object_of_a_checkpoint_is_read_by_its_load(gallery: Gallery) -> None:
    for kind in ("site", "root", "leaf", "table", "pack"):
        own = [key for key in gallery.keys(kind) if f"meta/{DONOR}" not in key]
        assert all(gallery.readers[key] for key in own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_is_noticed_or_harmless(gallery: Gallery, kind: str, soak: int) -> None:
    for key in gallery.keys(kind):
        for damaged in flips(gallery.objects[key], soak):
            assert gallery.outcomes(key, damaged) <= gallery.allowed(key, kind), key


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_noticed_or_harmless(gallery: Gallery, kind: str, soak: int) -> None:
    for key in gallery.keys(kind):
        whole = gallery.objects[key]
        step = max(1, len(whole) // (50 * soak))
        for length in (*range(0, len(whole), step), len(whole) - 1):
            assert gallery.outcomes(key, whole[:length]) <= gallery.allowed(key, kind), key


@pytest.mark.parametrize("content", [b"", PAGE, bytes(600), b"{}", None], ids=repr)
def test_what_is_not_ours_at_all_is_corrupt(gallery: Gallery, content: bytes | None) -> None:
    for kind in KINDS:
        for key in gallery.keys(kind):
            if content is None and (kind in ("site", "lineage", "closed") or gallery.ends_log(key)):
                # Their absence says something: see test_absence_is_told_apart_from_damage.
                continue
            allowed = gallery.allowed(key, kind) - ({"right"} if kind == "pack" else set())
            assert gallery.outcomes(key, content) == allowed, key


def test_absence_is_told_apart_from_damage(gallery: Gallery) -> None:
    for kind in ("site", "lineage"):
        for key in gallery.keys(kind):
            if gallery.readers[key]:
                with pytest.raises(fwstore.NotFound, match="there is no"):
                    gallery.outcomes(key, None)


@pytest.mark.slow
def test_any_object_in_place_of_any_other_is_noticed_or_harmless(gallery: Gallery) -> None:
    for kind in KINDS:
        for key in gallery.keys(kind):
            for other, content in gallery.objects.items():
                # A fork's leaf is that of its base, byte for byte.
                if content != gallery.objects[key]:
                    assert gallery.outcomes(key, content) <= gallery.allowed(key, kind), (
                        key,
                        other,
                    )


def test_bytes_behind_the_end_are_noticed_or_harmless(gallery: Gallery) -> None:
    for key, content in gallery.objects.items():
        assert gallery.outcomes(key, content + b"\n") <= {"right", "corrupt"}
        assert gallery.outcomes(key, content + content) <= {"right", "corrupt"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* does not continue step")
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_and_a_collection_go_on_from_a_damaged_store_or_say_corrupt(
    gallery: Gallery, kind: str, soak: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in gallery.keys(kind):
        for damaged in list(flips(gallery.objects[key], 1))[5 :: 101 // soak]:
            store = copied(gallery.store)
            store.put(key, [damaged], mode="overwrite")
            monkeypatch.setattr(fwstore.repository, "open_store", lambda *_, it=store: it)
            with suppress(fwstore.Corrupt):
                _save_and_load()
            with suppress(fwstore.Corrupt), fwstore.open(URL) as repository:
                repository.gc()
            monkeypatch.undo()


def _save_and_load() -> None:
    """Save step 9 as the next job; what was acknowledged must be there for the one after it."""
    with fwstore.open(URL) as repository, repository.run(RUN).writer() as writer:
        writer.save(9, state()).result()
    with fwstore.open(URL) as repository:
        try:
            found = repository.run(RUN)[9].load()
        except fwstore.Corrupt as error:
            pytest.fail(f"a save was acknowledged and cannot be loaded: {error}")
    assert same(found, state())
