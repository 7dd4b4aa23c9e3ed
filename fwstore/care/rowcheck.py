"""Whether the rows of a leaf agree with the packs that they name and with the tensors that they are of.

Invariant: what is refused here was written so: damage never gets past the digests.
"""

from __future__ import annotations

import numpy as np

from fwstore.base.errors import Corrupt
from fwstore.format.leaf import Leaf
from fwstore.format.paths import display_path
from fwstore.format.rows import I64
from fwstore.plan.coverage import check_coverage
from fwstore.plan.grid import Grid


def check_rows(leaf: Leaf, chunks: I64) -> None:
    """Check that rows name chunks that packs have, and hold every element once.

    Args:
        leaf: Tensors with all their rows.
        chunks: How many chunks each pack of the snapshot has.

    Raises:
        Corrupt: Some do not; the tensor is named.
    """
    ends = [
        (leaf.runs.tensor, leaf.runs.pack, leaf.runs.first_chunk + leaf.runs.count),
        (leaf.fragments.tensor, leaf.fragments.pack, leaf.fragments.chunk.astype(np.int64) + 1),
    ]

    def name(number: int) -> str:
        return f"tensor {display_path(leaf.tensors[number - leaf.first_tensor].path)}"

    for tensor, pack, end in ends:
        beyond = pack >= len(chunks)
        beyond |= end > chunks[np.where(beyond, 0, pack)] if len(chunks) else beyond
        if bool(beyond.any()):
            row = int(np.argmax(beyond))
            raise Corrupt(
                f"{name(int(tensor[row]))} lies in chunk {int(end[row]) - 1} of pack {pack[row]}, which "
                "is not there"
            )
    # Tied and empty tensors have no chunks of their own.
    grids = [
        None if info.alias is not None or 0 in info.shape else Grid(info.shape, info.cells)
        for info in leaf.tensors
    ]
    check_coverage(grids, leaf.runs, leaf.fragments, first_tensor=leaf.first_tensor, name=name)
