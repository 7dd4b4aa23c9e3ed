"""The images of `support.powerloss`: all that is legal, nothing that is not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from support.powerloss import BLOCK, ROOT, Disk, Event, Flush, Name, Node, Note, Write, contents
from support.syscalls import image_of, materialise

FILE, FOLDER = Node(1), Node(2, folder=True)
FULL = b"x" * BLOCK


def images(*events: Event, exhaustive: int = 1000, sampled: int = 10) -> set[frozenset[object]]:
    disk = Disk()
    for event in events:
        disk.apply(event)
    found = disk.images(random.Random(1), exhaustive=exhaustive, sampled=sampled)
    return {frozenset(image.items()) for image in found}


def image(**paths: bytes | None) -> frozenset[object]:
    return frozenset((path.replace("__", "/"), content) for path, content in paths.items())


def test_a_name_may_be_lost_until_its_directory_was_flushed() -> None:
    made = Name(ROOT, "a", FOLDER)
    assert images(made) == {image(), image(a=None)}
    assert images(made, Flush(FOLDER)) == {image(), image(a=None)}
    assert images(made, Flush(ROOT)) == {image(a=None)}


def test_what_stands_in_a_lost_directory_is_lost_although_it_was_flushed() -> None:
    events: list[Event] = [
        Name(ROOT, "a", FOLDER),
        Name(FOLDER, "b", FILE),
        Flush(FOLDER),
        Flush(FILE),
    ]
    assert images(*events) == {image(), image(a=None, a__b=b"")}


def test_names_come_to_the_disk_in_any_order() -> None:
    first, second = Name(ROOT, "a", FILE), Name(ROOT, "b", FOLDER)
    assert images(first, second) == {image(), image(a=b""), image(b=None), image(a=b"", b=None)}


def test_a_rename_may_be_half_done() -> None:
    there: list[Event] = [Name(ROOT, "a", FILE), Flush(ROOT)]
    moved = [Name(ROOT, "b", FILE), Name(ROOT, "a", None)]
    both = {image(a=b""), image(b=b""), image(a=b"", b=b""), image()}
    assert images(*there, *moved) == both
    assert images(*there, *moved, Flush(ROOT)) == {image(b=b"")}


def test_a_name_may_lead_where_it_led_at_any_time_since_the_flush() -> None:
    files = [Node(number) for number in (3, 4, 5)]
    filled: list[Event] = [e for f in files for e in (Write(f, 0, b"%d" % f.number), Flush(f))]
    led = [Name(ROOT, "a", file) for file in files]
    found = images(*filled, led[0], Flush(ROOT), *led[1:])
    assert found == {image(a=b"3"), image(a=b"4"), image(a=b"5")}
    assert images(*filled, *led, Flush(ROOT)) == {image(a=b"5")}


def test_bytes_are_lost_or_torn_until_their_file_was_flushed() -> None:
    written: list[Event] = [
        Name(ROOT, "a", FILE),
        Flush(ROOT),
        Write(FILE, 0, FULL),
        Write(FILE, BLOCK, b"yy"),
    ]
    lost = {b"", FULL, FULL + b"\0\0", bytes(BLOCK) + b"yy", bytes(BLOCK + 2), FULL + b"yy"}
    assert images(*written) == {image(a=content) for content in lost}
    assert images(*written, Flush(FILE)) == {image(a=FULL + b"yy")}


def test_flushed_bytes_survive_under_later_ones() -> None:
    versions = contents(b"a" * 600, [Write(FILE, 600, b"b" * 10)], random.Random(1))
    assert versions[0] == b"a" * 600
    assert versions[-1] == b"a" * 600 + b"b" * 10
    assert set(versions[1:-1]) == {b"a" * 600 + bytes(10)}
    long = contents(b"a" * 5000, [Write(FILE, 4900, b"b" * 5000)], random.Random(1))
    assert all(version[:4900] == b"a" * 4900 for version in long)


def test_many_blocks_give_few_versions_with_both_extremes() -> None:
    whole = bytes(range(256)) * 200
    versions = contents(b"", [Write(FILE, 0, whole)], random.Random(1))
    assert versions[0] == b""
    assert versions[-1] == whole
    assert 8 <= len(versions) == len(set(versions)) <= 12


def test_a_sample_has_the_extremes_and_only_legal_images() -> None:
    made = [Name(ROOT, f"n{number}", Node(number)) for number in range(10)]
    every = images(*made, exhaustive=1024)
    assert len(every) == 1024
    drawn = images(*made, exhaustive=1023, sampled=40)
    assert drawn < every
    assert {frozenset(), frozenset((f"n{number}", b"") for number in range(10))} <= drawn
    assert len(drawn) > 30


def test_what_was_noted_is_remembered_in_order() -> None:
    disk = Disk()
    events: Sequence[Event] = (Note("a"), Flush(ROOT), Note("b"))
    for event in events:
        disk.apply(event)
    assert disk.notes == ["a", "b"]


def test_an_image_becomes_the_directory_that_it_describes(tmp_path: Path) -> None:
    wanted = {"a": None, "a/b": b"content", "c": b""}
    materialise(wanted, tmp_path / "disk")
    assert image_of(tmp_path / "disk") == wanted
