"""Who writes what: every rank computes its own part of a save, without asking anybody.

Invariant: over all ranks, the plans give every chunk to exactly one rank. They do because the ranks that
hold the same boxes hold the same list of tensors in the same order, and cut the same running sum of
bytes at the same places; no plan depends on tensors that a replica does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fwstore.base.errors import InvalidInput
from fwstore.format.rows import Boxes, starts_of
from fwstore.plan.box import Box
from fwstore.plan.grid import I64, U64, Cut, Grid
from fwstore.plan.layout import Layout

U32 = NDArray[np.uint32]
Mask = NDArray[np.bool_]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one rank holds of a tensor.

    Attributes:
        number: The tensor; ascending numbers are the same order of tensors on every rank.
        itemsize: Bytes of one element.
        grid: The tensor's grid.
        layout: How the ranks divide it; None: no other rank holds any of these elements.
        boxes: What this rank holds, without overlap.
    """

    number: int
    itemsize: int
    grid: Grid
    layout: Layout | None
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Owned:
    """The chunks that one rank writes, sorted by tensor and cell.

    Attributes:
        tensor: Number of the tensor of every chunk.
        cell: Its cell.
        size_bytes: Its raw bytes.
        whole: True where the chunk is all of its cell, False where it is a fragment.
        boxes: Where it lies in the tensor.
    """

    tensor: U32
    cell: U64
    size_bytes: I64
    whole: Mask
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def total_bytes(self) -> int:
        """Raw bytes of all chunks."""
        return int(self.size_bytes.sum())

    @property
    def fragment_bytes(self) -> int:
        """Raw bytes of the fragments."""
        return int(self.size_bytes[~self.whole].sum())

    def runs(self) -> Runs:
        """Return the whole cells as runs of consecutive cells."""
        tensor, cell = self.tensor[self.whole], self.cell[self.whole]
        same = (tensor[1:] == tensor[:-1]) & (cell[1:] == cell[:-1] + np.uint64(1))
        firsts = np.flatnonzero(np.concatenate([np.ones(min(1, len(cell)), np.bool_), ~same]))
        counts = np.diff(np.append(firsts, len(cell))).astype(np.uint64)
        return Runs(tensor[firsts], cell[firsts], counts)

    def fragments(self) -> Fragments:
        """Return the fragments."""
        rows = np.flatnonzero(~self.whole)
        return Fragments(self.tensor[rows], self.cell[rows], self.boxes.take(rows))

    def by_tensor(self) -> Iterator[tuple[int, Cut]]:
        """Yield the number of every tensor that has chunks, and its chunks."""
        numbers, firsts = np.unique(self.tensor, return_index=True)
        rows = [*firsts.tolist(), len(self.tensor)]
        starts = self.boxes.starts[rows].tolist()
        for index, number in enumerate(numbers.tolist()):
            here = slice(rows[index], rows[index + 1])
            boxes = slice(starts[index], starts[index + 1])
            shape = (here.stop - here.start, -1)
            yield (
                number,
                Cut(
                    self.cell[here],
                    self.boxes.offsets[boxes].reshape(shape),
                    self.boxes.sizes[boxes].reshape(shape),
                    self.whole[here],
                ),
            )


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Rows of consecutive whole cells."""

    tensor: U32
    first_cell: U64
    count: U64


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """Parts of cells, with their boxes in the tensor."""

    tensor: U32
    cell: U64
    boxes: Boxes


def plan_owned(holdings: Sequence[Holding], rank: int) -> Owned:
    """Return what a rank writes of the tensors that it holds.

    The replicas of a box share its chunks by bytes: over all tensors that the same set of ranks holds, in
    order, each of n ranks takes the chunks whose middle lies in its nth part of the running sum.

    Args:
        holdings: Everything that the rank holds.
        rank: The rank.

    Raises:
        InvalidInput: A tensor is given twice, or a rank outside a layout holds some of it.
    """
    holdings = sorted(holdings, key=lambda holding: holding.number)
    _check_numbers(holdings)
    forms, form_of = _forms(holdings)
    counts = np.array([len(form.cells) for form in forms], np.int64)
    chunks_of = counts[form_of]
    starts = starts_of(chunks_of)
    row = np.repeat(starts_of(counts)[form_of] - starts[:-1], chunks_of) + np.arange(starts[-1])
    size_bytes = _concatenated([form.size_bytes for form in forms], np.int64)[row]
    kept = np.flatnonzero(_share(holdings, rank, chunks_of, size_bytes))
    row = row[kept]
    numbers = np.array([holding.number for holding in holdings], np.uint32)
    return Owned(
        tensor=np.repeat(numbers, chunks_of)[kept],
        cell=_concatenated([form.cells for form in forms], np.uint64)[row],
        size_bytes=size_bytes[kept],
        whole=_concatenated([form.whole for form in forms], np.bool_)[row],
        boxes=_boxes(forms).take(row),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """The chunks that tensors of one shape, grid and boxes have in common."""

    cells: U64
    offsets: I64
    sizes: I64
    whole: Mask
    size_bytes: I64


def _forms(holdings: Sequence[Holding]) -> tuple[list[_Form], I64]:
    """Return the distinct forms of the tensors and the form of each: a model has few, repeated often."""
    numbers: dict[object, int] = {}
    forms: list[_Form] = []
    form_of = np.empty(len(holdings), np.int64)
    for position, holding in enumerate(holdings):
        grid = holding.grid
        key = (holding.itemsize, grid.shape, grid.cells, holding.boxes)
        number = numbers.setdefault(key, len(forms))
        if number == len(forms):
            forms.append(_form(holding))
        form_of[position] = number
    return forms, form_of


def _form(holding: Holding) -> _Form:
    cuts = [holding.grid.cut(box) for box in holding.boxes]
    nothing = np.empty((0, len(holding.grid.shape)), np.int64)
    cells = _concatenated([cut.cells for cut in cuts], np.uint64)
    order = np.argsort(cells, kind="stable")
    sizes = np.concatenate([nothing, *(cut.sizes for cut in cuts)])[order]
    return _Form(
        cells=cells[order],
        offsets=np.concatenate([nothing, *(cut.offsets for cut in cuts)])[order],
        sizes=sizes,
        whole=_concatenated([cut.whole for cut in cuts], np.bool_)[order],
        size_bytes=np.prod(sizes, axis=1, dtype=np.int64) * holding.itemsize,
    )


def _boxes(forms: Sequence[_Form]) -> Boxes:
    ranks = [np.full(len(form.cells), form.sizes.shape[1], np.int64) for form in forms]
    return Boxes(
        starts_of(_concatenated(ranks, np.int64)),
        _concatenated([form.offsets.reshape(-1) for form in forms], np.int64),
        _concatenated([form.sizes.reshape(-1) for form in forms], np.int64),
    )


def _share(holdings: Sequence[Holding], rank: int, chunks_of: I64, size_bytes: I64) -> Mask:
    """Return which chunks the rank takes of those that it holds."""
    kept = np.ones(len(size_bytes), np.bool_)
    groups, group_of = _replica_groups(holdings, rank)
    group_of_chunk = np.repeat(group_of, chunks_of)
    for number, ranks in enumerate(groups):
        if len(ranks) > 1:
            rows = np.flatnonzero(group_of_chunk == number)
            kept[rows] = _part(size_bytes[rows], ranks.index(rank), len(ranks))
    return kept


def _part(size_bytes: I64, part: int, parts: int) -> Mask:
    """Return which of some chunks belong to one of several equal parts."""
    ends = np.cumsum(size_bytes)
    total = int(ends[-1]) if len(ends) else 0
    middles = 2 * ends - size_bytes
    low, high = 2 * total * part // parts, 2 * total * (part + 1) // parts
    mine: Mask = (middles >= low) & (middles < high)
    return mine


def _replica_groups(
    holdings: Sequence[Holding], rank: int
) -> tuple[list[tuple[int, ...]], NDArray[np.int64]]:
    """Return the sets of ranks that share tensors with a rank, and the set of every tensor."""
    numbers: dict[tuple[int, ...], int] = {(): 0}
    known: dict[object, int] = {}
    seen: dict[int, int] = {}
    group_of = np.zeros(len(holdings), np.int64)
    for position, holding in enumerate(holdings):
        layout = holding.layout
        if layout is None:
            continue
        # A list of ranks is long and shared by many layouts: its identity stands for it here, and
        # the ranks of a group, which all of them compute alike, name the group.
        group = seen.get(id(layout))
        if group is None:
            key = (id(layout.ranks), layout.mesh, layout.placements)
            if key not in known:
                known[key] = numbers.setdefault(layout.replicas(rank), len(numbers))
            seen[id(layout)] = group = known[key]
        group_of[position] = group
        if group == 0 and holding.boxes:
            raise InvalidInput(
                f"rank {rank} holds a part of tensor {holding.number} but is not in its layout"
            )
    return list(numbers), group_of


def _check_numbers(holdings: Sequence[Holding]) -> None:
    for before, after in pairwise(holdings):
        if before.number == after.number:
            raise InvalidInput(f"tensor {after.number} is given twice")


def _concatenated(arrays: Sequence[NDArray[Kind]], dtype: type[Kind]) -> NDArray[Kind]:
    return np.concatenate([np.empty(0, dtype), *arrays])
