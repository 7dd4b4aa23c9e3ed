"""What a disk may hold after the power failed: every legal image, computed from the calls that were made.

Invariant: an image keeps whatever was flushed before the cut. Of the rest any part may be missing: a name in a
directory until the directory was flushed, each in any order; bytes of a file until the file was flushed, block by
block, with the length of the file behind or ahead of its blocks. That is weaker than any file system in use.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

BLOCK = 512
_BLOCKS_EXHAUSTIVE = 3


@dataclass(frozen=True)
class Node:
    """A file or a directory, whatever names it has."""

    number: int
    folder: bool = False


ROOT = Node(0, folder=True)


@dataclass(frozen=True)
class Name:
    """A name in a directory now leads to a node, or nowhere."""

    folder: Node
    name: str
    node: Node | None


@dataclass(frozen=True)
class Write:
    """Bytes of a file."""

    node: Node
    offset: int
    content: bytes


@dataclass(frozen=True)
class Flush:
    """What a file or a directory holds is durable."""

    node: Node


@dataclass(frozen=True)
class Note:
    """Something was acknowledged to a caller."""

    what: object


Event = Name | Write | Flush | Note
# Paths below the root; the content of files, None for directories.
Image = Mapping[str, bytes | None]
# A name, or the bytes of a file.
_Place = tuple[Node, str] | Node


@dataclass
class Disk:
    """What is durable, and what a power loss may take, after some events."""

    durable: dict[_Place, Node | bytes | None] = field(default_factory=dict)
    pending: dict[_Place, list[Node | Write | None]] = field(default_factory=dict)
    notes: list[object] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        """Go on by one event."""
        if isinstance(event, Note):
            self.notes.append(event.what)
        elif isinstance(event, Name):
            self._add((event.folder, event.name), event.node)
        elif isinstance(event, Write):
            self._add(event.node, event)
        else:
            self._flush(event.node)

    def _add(self, place: _Place, change: Node | Write | None) -> None:
        # What is pending goes to the end: the newest changes are the last.
        self.pending[place] = [*self.pending.pop(place, []), change]

    def _flush(self, node: Node) -> None:
        for place in [place for place in self.pending if _belongs(place, node)]:
            self.durable[place] = self._options(place, random.Random(0))[-1]
            del self.pending[place]

    def _options(self, place: _Place, chance: random.Random) -> Sequence[Node | bytes | None]:
        """Return what a place may hold after a power loss: first without all changes, last with all."""
        changes = self.pending[place]
        before = self.durable.get(place)
        if isinstance(place, Node):
            assert not isinstance(before, Node)
            return contents(before or b"", [w for w in changes if isinstance(w, Write)], chance)
        names = [before, *(c for c in changes if not isinstance(c, Write))]
        return [names[0], *dict.fromkeys(names[1:-1]), names[-1]]

    def images(self, chance: random.Random, *, exhaustive: int, sampled: int) -> Iterator[Image]:
        """Yield legal images, each once: all of them if there are few, else the extremes and a sample.

        Args:
            chance: Draws the sample.
            exhaustive: How many combinations are few.
            sampled: How many are drawn otherwise.
        """
        options = {place: self._options(place, chance) for place in self.pending}
        count = prod(len(choices) for choices in options.values())
        if count <= exhaustive:
            drawn: Iterable[tuple[int, ...]] = itertools.product(
                *(range(len(choices)) for choices in options.values())
            )
        else:
            lengths = [len(choices) for choices in options.values()]
            drawn = [
                *itertools.islice(_extremes(lengths), sampled - sampled // 2),
                *itertools.islice(_any(lengths, chance), sampled // 2),
            ]
        seen = set()
        for picks in drawn:
            chosen = {
                place: choices[pick]
                for (place, choices), pick in zip(options.items(), picks, strict=True)
            }
            image = _image({**self.durable, **chosen})
            key = frozenset(image.items())
            if key not in seen:
                seen.add(key)
                yield image

    def image(self) -> Image:
        """Return the disk as it is while the power is on."""
        chance = random.Random(0)
        return _image({**self.durable, **{p: self._options(p, chance)[-1] for p in self.pending}})


def contents(before: bytes, writes: Sequence[Write], chance: random.Random) -> list[bytes]:
    """Return what a file may hold whose writes were not flushed: first none of them, last all."""
    after = bytearray(before)
    dirty: set[int] = set()
    for write in writes:
        end = write.offset + len(write.content)
        after.extend(bytes(max(0, end - len(after))))
        after[write.offset : end] = write.content
        dirty |= set(range(write.offset // BLOCK, -(-end // BLOCK)))
    old = before.ljust(len(after), b"\0")
    blocks = sorted(dirty)
    versions = [before]
    for lost in _lost_blocks(blocks, chance):
        mixed = bytearray(after)
        for block in lost:
            mixed[block * BLOCK : (block + 1) * BLOCK] = old[block * BLOCK : (block + 1) * BLOCK]
        versions.append(bytes(mixed))
    # The length may have come to the disk later than the first blocks.
    ends = [block * BLOCK for block in blocks if block * BLOCK > len(before)]
    versions += [bytes(after[:end]) for end in _few(ends)]
    return [*dict.fromkeys(v for v in versions if v != after), bytes(after)]


def _few(ends: list[int]) -> list[int]:
    """Return the first, the middle and the last of many."""
    return ends if len(ends) <= 3 else [ends[0], ends[len(ends) // 2], ends[-1]]


def _lost_blocks(blocks: list[int], chance: random.Random) -> Iterator[Sequence[int]]:
    """Yield which blocks did not reach the disk: all choices for a small file."""
    if len(blocks) <= _BLOCKS_EXHAUSTIVE:
        for count in range(1, len(blocks) + 1):
            yield from itertools.combinations(blocks, count)
        return
    yield from (blocks, blocks[:1], blocks[-1:], blocks[1:], blocks[: len(blocks) // 2])
    yield [block for block in blocks if chance.random() < 0.5]


def _extremes(lengths: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield choices: no change came through, all did, then all but one and one alone."""
    none, whole = [0] * len(lengths), [length - 1 for length in lengths]
    yield from (tuple(none), tuple(whole))
    # The newest changes first: the older ones had their turn at earlier cuts.
    for at in reversed(range(len(lengths))):
        yield (*whole[:at], 0, *whole[at + 1 :])
        yield (*none[:at], whole[at], *none[at + 1 :])


def _any(lengths: list[int], chance: random.Random) -> Iterator[tuple[int, ...]]:
    """Yield random choices, some with most changes, some with few."""
    while True:
        share = chance.random()
        yield tuple(
            length - 1 if chance.random() < share else chance.randrange(length)
            for length in lengths
        )


def _belongs(place: _Place, node: Node) -> bool:
    return place == node if isinstance(place, Node) else place[0] == node


def _image(held: Mapping[_Place, Node | bytes | None]) -> Image:
    """Return what can be reached from the root."""
    names: dict[Node, dict[str, Node]] = {}
    for place, target in held.items():
        if not isinstance(place, Node) and isinstance(target, Node):
            names.setdefault(place[0], {})[place[1]] = target
    image: dict[str, bytes | None] = {}
    left = [("", ROOT)]
    while left:
        above, folder = left.pop()
        for name, node in names.get(folder, {}).items():
            path = above + name
            if node.folder:
                image[path] = None
                left.append((path + "/", node))
            else:
                content = held.get(node, b"")
                assert isinstance(content, bytes)
                image[path] = content
    return image


def cuts(events: Sequence[Event]) -> Iterator[Disk]:
    """Yield the disk before the first event and after each; one object that goes on."""
    disk = Disk()
    yield disk
    for event in events:
        disk.apply(event)
        yield disk
