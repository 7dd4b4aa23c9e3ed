"""Memory that another process can be shown.

Invariant: a view of memory made here tells which file it is and where in it the view begins; the pages go back to the
system when this process maps them no more, also while another one still does. A fork copies none of it: the child sees
the same bytes and leaves them alone, since pools forget their memory at a fork.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np

from fwstore.sched.buffers import map_anonymous


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file that is memory.

    Attributes:
        number: It alone has it in this process, for ever.
        descriptor: Open while the memory is mapped.
    """

    number: int
    descriptor: int


@dataclass(frozen=True, slots=True)
class SharedPlace:
    """Where some bytes lie in memory that can be shown to another process.

    Attributes:
        file: The file that is the memory.
        offset: First byte in it.
    """

    file: SharedFile
    offset: int


class _Pages(mmap.mmap):
    """A mapping of a whole file."""

    file: SharedFile
    start: int


_numbers = itertools.count()


def map_shared(size_bytes: int) -> memoryview:
    """Return fresh page-aligned memory that `find_shared` knows; other memory where the system has none to share."""
    try:
        descriptor = os.memfd_create("fwstore", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return map_anonymous(size_bytes)
    try:
        os.ftruncate(descriptor, size_bytes)
        pages = _Pages(descriptor, size_bytes, flags=mmap.MAP_SHARED)
    except BaseException:
        os.close(descriptor)
        raise
    view = memoryview(pages)
    pages.file, pages.start = SharedFile(next(_numbers), descriptor), _address(view)
    weakref.finalize(pages, _free, descriptor, os.getpid()).atexit = False
    return view


def find_shared(view: memoryview) -> SharedPlace | None:
    """Return where contiguous bytes lie in shared memory; None when they do not."""
    pages = view.obj
    if not isinstance(pages, _Pages) or not view.nbytes:
        return None
    return SharedPlace(pages.file, _address(view) - pages.start)


def _free(descriptor: int, owner: int) -> None:
    # Whoever was shown the memory may map it for longer. A forked child must not take it from its parent, however.
    if os.getpid() == owner:
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
