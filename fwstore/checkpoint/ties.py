"""Which saved tensor fills memory that stands under several names of the destination.

Invariant: memory is filled once; two saved tensors that both belong there must have the same content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.describe import chunk_table
from fwstore.content.manifest import Manifest
from fwstore.format.paths import TensorPath, display_path
from fwstore.format.tensor import TensorInfo


def fill_once(
    pairs: Mapping[TensorPath, TensorPath],
    first_of: Mapping[TensorPath, TensorPath],
    saved: Mapping[TensorPath, TensorInfo],
    are_equal: Callable[[TensorPath, TensorPath], bool],
) -> dict[TensorPath, TensorPath]:
    """Return by the first name of all memory to be filled the saved tensor that fills it.

    Args:
        pairs: For every name of the destination the saved tensor of that name.
        first_of: For every name of the destination the first one of the same memory.
        saved: What is known of the saved tensors.
        are_equal: Says whether two saved tensors have the same content.

    Raises:
        InvalidInput: Tensors that share memory in the destination differ in the checkpoint.
    """
    chosen: dict[TensorPath, tuple[TensorPath, TensorPath]] = {}
    for target, path in pairs.items():
        source = saved[path].alias or path
        other, before = chosen.setdefault(first_of[target], (target, source))
        if before != source and not are_equal(before, source):
            raise InvalidInput(
                f"{display_path(other)} and {display_path(target)} share memory in the destination, but "
                "differ in the checkpoint: give them memory of their own"
            )
    return {first: source for first, (_, source) in chosen.items()}


def same_content(access: Access, manifest: Manifest, one: TensorPath, other: TensorPath) -> bool:
    """Return whether two tensors of a snapshot consist of the same chunks."""
    tables = [chunk_table(access, manifest, path) for path in (one, other)]
    return all(
        np.array_equal(getattr(tables[0], column), getattr(tables[1], column))
        for column in ("offsets", "sizes", "ids")
    )
