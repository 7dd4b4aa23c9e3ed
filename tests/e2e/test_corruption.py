"""Damage anything in a store: whoever uses it gets what was saved, or `Corrupt`; never another value.

A load is a function of the objects that it reads, so damage to an object is looked at through the reads
that touch it: which those are is recorded on the whole repository, for every object of the gallery.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

import fwstore
from fwstore.format.record import KINDS as RECORD_KINDS
from support.corruption import (
    ACTS,
    KINDS,
    READS,
    SIZE_MAX,
    UNNEEDED,
    WAYS,
    Gallery,
    Outcome,
    tabulate,
)
from support.figures import Figures
from support.gallery import DONOR, hang, one_thread

PAGE = b"<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head></html>"
OF_SEVERAL_SITES = {"publish", "hold"}
# Each act is tried on every byte and length by `make soak`, else on one in so many.
EVERY = {"load": 31, "inspect": 11, "verify": 31, "gc": 31, "resume": 61, "import": 61}


@pytest.fixture(scope="module")
def gallery() -> Iterator[Gallery]:
    """The gallery for all tests of this file; each leaves it whole."""
    with pytest.MonkeyPatch.context() as monkeypatch, one_thread(monkeypatch):
        yield Gallery(hang())


def allowed(gallery: Gallery, key: str) -> set[Outcome]:
    """Return what may come of damage to an object for those who load."""
    kind = next(kind for kind in KINDS if key in gallery.keys(kind))
    if kind in UNNEEDED or not gallery.loads(key):
        return {"harmless"}
    # Of a pack the header, the trailer and the zeros between chunks are for those without a table.
    return {"harmless", "detected"} if kind == "pack" else {"detected"}


def ends_log(gallery: Gallery, key: str) -> bool:
    """Return whether an object is the newest slot of its log: without it the log ends one earlier."""
    folder = key.rpartition("/")[0]
    return key in gallery.keys("slot") and key == max(
        k for k in gallery.objects if k.startswith(folder)
    )


def test_the_gallery_is_small_and_holds_every_kind_of_object(gallery: Gallery) -> None:
    assert sum(map(len, gallery.objects.values())) <= SIZE_MAX
    kinds = {key: [kind for kind in KINDS if key in gallery.keys(kind)] for key in gallery.objects}
    assert all(len(found) == 1 for found in kinds.values())
    assert {kind for found in kinds.values() for kind in found} == set(KINDS)
    bodies = b"".join(gallery.objects[key] for key in gallery.keys("slot"))
    kinds_of_records = {kind for kind in RECORD_KINDS if f'"kind":"{kind}"'.encode() in bodies}
    assert kinds_of_records == RECORD_KINDS - OF_SEVERAL_SITES
    assert {read: gallery.read(read) for read in READS} == dict.fromkeys(READS, "harmless")


def test_every_object_of_a_checkpoint_is_read_by_its_load(gallery: Gallery) -> None:
    for kind in ("site", "root", "leaf", "table", "pack"):
        own = [key for key in gallery.keys(kind) if f"meta/{DONOR}" not in key]
        assert all(gallery.loads(key) for key in own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_is_noticed_or_harmless(gallery: Gallery, kind: str) -> None:
    for damage in WAYS["flip"](gallery, kind):
        assert gallery.readings(damage) <= allowed(gallery, *damage), damage.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_noticed_or_harmless(gallery: Gallery, kind: str, soak: int) -> None:
    for damage in islice(WAYS["cut"](gallery, kind), 0, None, 7 if soak == 1 else 1):
        assert gallery.readings(damage) <= allowed(gallery, *damage), damage.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* does not continue step")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", ACTS)
def test_whatever_is_done_with_a_damaged_store_nothing_comes_out_wrong(
    gallery: Gallery, act: str, way: str, soak: int, figures: Figures
) -> None:
    counts: Counter[str] = Counter()
    for kind in KINDS:
        found = tabulate(gallery, kind, way, act, EVERY[act] if soak == 1 else 1)
        assert not found["wrong"], kind
        counts.update({f"{kind}: {outcome}": count for outcome, count in found.items()})
    figures.note(f"damage: {act}", counts)


@pytest.mark.parametrize("content", [b"", PAGE, bytes(600), b"{}", None], ids=repr)
def test_what_is_not_ours_at_all_is_corrupt(gallery: Gallery, content: bytes | None) -> None:
    for kind in KINDS:
        for key in gallery.keys(kind):
            if content is None and (
                kind in ("site", "lineage", "closed") or ends_log(gallery, key)
            ):
                # Their absence says something: see test_absence_is_told_apart_from_damage.
                continue
            expected = allowed(gallery, key) - ({"harmless"} if kind == "pack" else set())
            assert gallery.readings({key: content}) == expected, key


def test_absence_is_told_apart_from_damage(gallery: Gallery) -> None:
    for kind in ("site", "lineage"):
        for key in gallery.keys(kind):
            if gallery.loads(key):
                with pytest.raises(fwstore.NotFound, match="there is no"):
                    gallery.readings({key: None})


@pytest.mark.slow
def test_any_object_in_place_of_any_other_is_noticed_or_harmless(gallery: Gallery) -> None:
    for key, other in itertools.permutations(gallery.objects, 2):
        # A fork's leaf is that of its base, byte for byte.
        if gallery.objects[key] != gallery.objects[other]:
            found = gallery.readings({key: gallery.objects[other]})
            assert found <= allowed(gallery, key), (key, other)


def test_bytes_behind_the_end_are_noticed_or_harmless(gallery: Gallery) -> None:
    for key, content in gallery.objects.items():
        for longer in (content + b"\n", content + content):
            assert "wrong" not in gallery.readings({key: longer})
