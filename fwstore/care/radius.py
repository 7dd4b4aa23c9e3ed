"""How far damage reaches: which tensors of a snapshot lie in damaged packs or chunks.

Invariant: a tensor is named exactly when a load of all of it would meet the damage, tied tensors included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fwstore.format.leaf import Leaf
from fwstore.format.paths import TensorPath, display_path

Selection = Mapping[int, Sequence[int] | None]
"""Damaged chunks by the number of their pack in the snapshot; None for all of its chunks."""


def tensors_hit(leaves: Iterable[Leaf], selections: Sequence[Selection]) -> list[list[str]]:
    """Return the names of the tensors that each of several selections hits, in stored order.

    Args:
        leaves: The leaves of the snapshot that could be read.
        selections: What is damaged.
    """
    by_pack: dict[int, list[tuple[int, npt.NDArray[np.int64] | None]]] = {}
    for index, selection in enumerate(selections):
        for pack, chunks in selection.items():
            selected = None if chunks is None else np.array(chunks, np.int64)
            by_pack.setdefault(pack, []).append((index, selected))
    packs = np.array(sorted(by_pack), np.int64)
    hits: list[dict[TensorPath, None]] = [{} for _ in selections]
    ties: dict[TensorPath, list[TensorPath]] = {}
    for leaf in leaves:
        for info in leaf.tensors:
            if info.alias is not None:
                ties.setdefault(info.alias, []).append(info.path)
        for tensor, pack, first, count in _rows_in(leaf, packs):
            for index, damaged in by_pack[pack]:
                if damaged is None or _meet(damaged, first, count):
                    hits[index][leaf.tensors[tensor].path] = None
    return [
        [display_path(path) for hit in found for path in (hit, *ties.get(hit, ()))]
        for found in hits
    ]


def _rows_in(leaf: Leaf, packs: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """Yield tensor, pack, first chunk and count of the rows of a leaf that lie in some packs."""
    runs, parts = leaf.runs, leaf.fragments
    for row in np.flatnonzero(np.isin(runs.pack, packs)).tolist():
        tensor = int(runs.tensor[row]) - leaf.first_tensor
        yield tensor, int(runs.pack[row]), int(runs.first_chunk[row]), int(runs.count[row])
    for row in np.flatnonzero(np.isin(parts.pack, packs)).tolist():
        yield (
            int(parts.tensor[row]) - leaf.first_tensor,
            int(parts.pack[row]),
            int(parts.chunk[row]),
            1,
        )


def _meet(chunks: npt.NDArray[np.int64], first: int, count: int) -> bool:
    low, high = np.searchsorted(chunks, [first, first + count])
    return bool(low < high)
