"""Which requests to send to an object store: pure.

Invariant: the planned ranges cover every buffer once, in order, and none is larger than asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fwstore.store.base import ReadInto
from fwstore.store.views import flat_views, total_bytes

_RANGES_MAX = 64


@dataclass(frozen=True, slots=True)
class Range:
    """One contiguous range of an object and the non-empty buffers that receive it."""

    offset: int
    length: int
    views: tuple[memoryview, ...]


def plan_batches(reads: Iterable[ReadInto], request_bytes: int) -> list[list[Range]]:
    """Return ranges in batches, each to be asked for together.

    A batch holds at most `request_bytes`, and no two ranges of a batch are pieces of one larger read:
    the client library would join them again.
    """
    batches: list[list[Range]] = []
    room = 0
    for read in reads:
        for piece in _split(read.offset, flat_views(read.buffers), request_bytes):
            if piece.length > room or len(batches[-1]) >= _RANGES_MAX:
                batches.append([])
                room = request_bytes
            batches[-1].append(piece)
            room -= piece.length
    return batches


def start_before(prefix: str, start_after: str) -> str:
    """Return a text after which a listing finds every key that begins with `prefix`.

    Object stores list by folder or by text; obstore only by folder. Starting just before the prefix
    spares the keys of the folder that come earlier.
    """
    last = prefix[-1:]
    if not "1" <= last <= "z":
        return start_after
    return max(start_after, prefix[:-1] + chr(ord(last) - 1) + "~")


def _split(offset: int, views: Sequence[memoryview], limit: int) -> Iterator[Range]:
    taken: list[memoryview] = []
    room = limit
    for view in views:
        rest = view
        while rest.nbytes > room:
            taken.append(rest[:room])
            rest = rest[room:]
            yield _range(offset, taken)
            offset += limit
            taken, room = [], limit
        taken.append(rest)
        room -= rest.nbytes
    if taken:
        yield _range(offset, taken)


def _range(offset: int, views: list[memoryview]) -> Range:
    kept = tuple(view for view in views if view.nbytes)
    return Range(offset, total_bytes(kept), kept)
