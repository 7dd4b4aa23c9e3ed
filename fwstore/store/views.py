"""Caller's buffers as flat bytes, without a copy.

Invariant: the views alias the caller's memory, in order, and none is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from typing_extensions import Buffer

from fwstore.base.errors import InvalidInput


def flat_views(buffers: Sequence[Buffer]) -> list[memoryview]:
    """Return one-dimensional byte views of buffers, leaving out empty ones.

    Raises:
        InvalidInput: A buffer is not contiguous.
    """
    views = [memoryview(buffer) for buffer in buffers]
    try:
        return [view if _is_flat(view) else view.cast("B") for view in views if view.nbytes]
    except TypeError as error:
        raise InvalidInput(f"a buffer is not plain contiguous memory: {error}") from error


def total_bytes(views: Iterable[memoryview]) -> int:
    """Return how many bytes the views hold together."""
    return sum(view.nbytes for view in views)


def skip_bytes(views: list[memoryview], count: int) -> list[memoryview]:
    """Return the views without their first `count` bytes."""
    for index, view in enumerate(views):
        if count < view.nbytes:
            return [view[count:], *islice(views, index + 1, None)] if count else views[index:]
        count -= view.nbytes
    return []


def _is_flat(view: memoryview) -> bool:
    return view.format == "B" and view.ndim == 1 and view.contiguous


def copy_into(views: Iterable[memoryview], source: Buffer) -> None:
    """Fill the views from the beginning of `source`, letting other threads run meanwhile."""
    content = np.frombuffer(memoryview(source), np.uint8)
    position = 0
    for view in views:
        np.copyto(np.frombuffer(view, np.uint8), content[position : position + view.nbytes])
        position += view.nbytes
