"""Byte strings that travel with a snapshot as tensors of their own.

Invariant: their paths begin with a key that no user's state may use, so they never meet the user's tensors
and are left out of every listing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fwstore.base.config import PLAIN_STATE_BYTES_MAX
from fwstore.base.errors import InvalidInput, LimitExceeded
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.content.manifest import Manifest
from fwstore.format.paths import TensorPath, display_path
from fwstore.plan.box import Box

RESERVED = "@fwstore"
STATE_PATH: TensorPath = (RESERVED, "state")


def rank_path(rank: int) -> TensorPath:
    """Return the path of the plain value of one rank."""
    return (RESERVED, "rank", rank)


def annotation_path(name: str) -> TensorPath:
    """Return the path of a named byte string."""
    return (RESERVED, "annotation", name)


def is_reserved(path: TensorPath) -> bool:
    """Return whether a path belongs to fwstore."""
    return path[0] == RESERVED


def refuse_reserved(tensors: Mapping[TensorPath, Any]) -> None:
    """Refuse a state that uses the reserved key.

    Raises:
        InvalidInput: Some path begins with it.
    """
    for path in tensors:
        if is_reserved(path):
            raise InvalidInput(
                f"{display_path(path)}: the top-level key {RESERVED!r} belongs to fwstore"
            )


def bytes_shard(stored: bytes) -> Shard:
    """Return a byte string as a tensor that this rank alone holds."""
    if len(stored) > PLAIN_STATE_BYTES_MAX:
        raise LimitExceeded(
            f"a plain value of {len(stored)} bytes is larger than {PLAIN_STATE_BYTES_MAX}; store arrays as tensors"
        )
    array = np.frombuffer(stored, np.uint8)
    box = Box.whole(array.shape)
    return Shard("uint8", array.shape, (Piece(box, array),), layout=None)


def read_bytes(access: Access, manifest: Manifest, path: TensorPath) -> bytes:
    """Return a byte string that was saved as a tensor.

    Raises:
        NoSuchTensor: The snapshot has none of that path.
    """
    info = manifest.tensor(path)
    target = np.empty(info.shape, np.uint8)
    piece = Piece(Box.whole(info.shape), target)
    access.reader.read(manifest, [(path, [piece])])
    return target.tobytes()
