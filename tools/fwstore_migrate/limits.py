"""Bounds on what a foreign file may ask for, in one place.

Invariant: every allocation made for a foreign file is bounded by one of these or by the bytes that
the file really has.
"""

from __future__ import annotations

HEADER_BYTES_MAX = 100_000_000
INDEX_BYTES_MAX = 100_000_000
PICKLE_BYTES_MAX = 256 << 20
PICKLE_VALUES_MAX = 100_000_000
TREE_VALUES_MAX = 10_000_000
# Of these, what references to shared containers may unfold to: so many, and so many per byte of the pickle.
SHARED_VALUES_MAX = 100_000
VALUES_PER_BYTE_MAX = 16
DIRECTORY_BYTES_MAX = 256 << 20
PLAIN_BYTES_MAX = 1 << 30
DIMENSIONS_MAX = 64
DEPTH_MAX = 64
COPY_BYTES = 8 << 20
