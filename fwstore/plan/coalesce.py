"""Fewer, larger reads: a request costs a round trip, a few unwanted bytes cost next to nothing.

Invariant: every range lies whole in exactly one request; no request spans a gap between ranges that is
larger than allowed, nor grows past the allowed size unless a single range is larger than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Request:
    """One read that serves some ranges.

    Attributes:
        offset: First byte.
        length: Number of bytes.
        indices: Which ranges lie in it, by offset.
    """

    offset: int
    length: int
    indices: tuple[int, ...]


def plan_coalesce(
    ranges: Sequence[tuple[int, int]] | NDArray[np.int64], *, gap_bytes: int, request_bytes: int
) -> list[Request]:
    """Return the reads that fetch some ranges of an object, by offset.

    Args:
        ranges: (offset, length) of every range, in any order; they may overlap.
        gap_bytes: Unwanted bytes that may be read between two neighbours to save a request.
        request_bytes: Requests are not made larger than this by joining ranges.

    Raises:
        InvalidInput: A range is negative or ends past 2^63.
    """
    table = np.asarray(ranges, np.int64).reshape(-1, 2)
    if bool((table < 0).any()) or bool((table[:, 0] > np.iinfo(np.int64).max - table[:, 1]).any()):
        raise InvalidInput("a range to read is negative or ends past 2^63")
    order = np.lexsort((table[:, 1], table[:, 0]))
    starts = table[order, 0]
    ends = starts + table[order, 1]
    reached = np.maximum.accumulate(ends)
    apart = np.flatnonzero(starts[1:] > reached[:-1] + gap_bytes) + 1
    edges = [0, *apart.tolist(), len(order)] if len(order) else [0]
    # As lists: a step on a number of numpy costs ten times one on a number of Python.
    indices, offsets, stops = order.tolist(), starts.tolist(), ends.tolist()
    grown = reached.tolist()
    requests: list[Request] = []
    for first, last in pairwise(edges):
        begin = first
        while begin < last:
            offset = offsets[begin]
            # What is reached grows with the index, so what still fits is a prefix; one range always fits.
            stop = max(begin + 1, bisect_right(grown, offset + request_bytes, begin, last))
            length = max(stops[begin:stop]) - offset
            requests.append(Request(offset, length, tuple(indices[begin:stop])))
            begin = stop
    return requests
