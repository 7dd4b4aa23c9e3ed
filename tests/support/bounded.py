"""What parsing may cost: the marks for hostile input."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

_MEMORY_BYTES = 64 << 20
_SECONDS = 5.0


@contextmanager
def bounded(input_bytes: int) -> Iterator[None]:
    """Fail when a block takes more than 5 s of this thread or 64 MiB and twice its input."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        yield
        seconds, (_, peak) = time.thread_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds <= _SECONDS, f"{seconds:.1f} s"
    assert peak <= _MEMORY_BYTES + 2 * input_bytes, f"{peak >> 20} MiB for {input_bytes} bytes"
