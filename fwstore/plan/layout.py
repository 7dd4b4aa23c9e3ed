"""How the ranks of a mesh divide a tensor.

Invariant: for every mesh, shape and rank, `Layout.boxes` are the elements that torch's DTensor puts on
that rank, uneven, empty and strided shards included; the boxes of ranks that are no replicas of each
other never overlap, and together all ranks hold everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from fwstore.base.errors import InvalidInput
from fwstore.plan.box import Box

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Split:
    """A mesh dimension that divides a dimension of the tensor.

    Attributes:
        dim: The dimension of the tensor.
        factor: Pieces into which the dimension is cut before each is divided over the mesh dimension; the
            `split_factor` of torch's `_StridedShard`. 1 is a plain shard.
        outer: The split of a tensor or expert parallelism, which becomes the blocks of the grid.
    """

    dim: int
    factor: int = 1
    outer: bool = False


Placement = Split | None
"""None: the mesh dimension holds replicas."""


@dataclass(frozen=True)
class Layout:
    """A mesh of ranks and what each of its dimensions does to a tensor.

    Share one instance, or at least one `ranks`, among the tensors that have it: a mesh may be large.

    Attributes:
        mesh: Extent of the mesh in every dimension.
        placements: One for every dimension of the mesh, applied in order.
        ranks: The ranks of the mesh in C order of their coordinates, each once.
    """

    mesh: tuple[int, ...]
    placements: tuple[Placement, ...]
    ranks: tuple[int, ...]
    _coordinates: dict[int, tuple[int, ...] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if len(self.mesh) != len(self.placements) or math.prod(self.mesh) != len(self.ranks):
            raise InvalidInput(
                f"a mesh of {self.mesh} needs {len(self.mesh)} placements and {math.prod(self.mesh)} "
                f"ranks; it got {len(self.placements)} and {len(self.ranks)}"
            )
        for split in self.placements:
            if split is not None and (split.dim < 0 or split.factor < 1):
                raise InvalidInput(f"{split} is no split: dim and factor must be positive")

    @staticmethod
    def replicated(ranks: tuple[int, ...]) -> Layout:
        """Return the layout of a tensor that each of some ranks holds whole."""
        return Layout((len(ranks),), (None,), tuple(ranks))

    def boxes(self, shape: tuple[int, ...], rank: int) -> tuple[Box, ...]:
        """Return what a rank holds, in C order of the tensor; nothing when it is not in the mesh."""
        return tuple(
            Box(tuple(low for low, _ in part), tuple(high - low for low, high in part))
            for part in product(*self._intervals(shape, rank))
        )

    def local_boxes(self, shape: tuple[int, ...], rank: int) -> tuple[Box, ...]:
        """Return where the rank's local tensor has each of `boxes`, in the same order."""
        local = [list(_packed(axis)) for axis in self._intervals(shape, rank)]
        return tuple(
            Box(tuple(low for low, _ in part), tuple(high - low for low, high in part))
            for part in product(*local)
        )

    def replicas(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that hold exactly what a rank of the mesh holds, itself included, ascending."""
        coordinate = self._coordinate(rank)
        if coordinate is None:
            return ()
        numbers = [0]
        for size, placement, here in zip(self.mesh, self.placements, coordinate, strict=True):
            there = range(size) if placement is None else (here,)
            numbers = [number * size + one for number in numbers for one in there]
        return tuple(sorted(self.ranks[number] for number in numbers))

    def splits(self, dim: int) -> tuple[tuple[int, Split], ...]:
        """Return the extents and splits of the mesh dimensions that divide a dimension of the tensor."""
        return tuple(
            (size, split)
            for size, split in zip(self.mesh, self.placements, strict=True)
            if split is not None and split.dim == dim
        )

    def _intervals(self, shape: tuple[int, ...], rank: int) -> list[tuple[Interval, ...]]:
        coordinate = self._coordinate(rank)
        if coordinate is None:
            return [()]
        cuts: list[tuple[tuple[int, int, int], ...]] = [()] * len(shape)
        for size, split, here in zip(self.mesh, self.placements, coordinate, strict=True):
            if split is not None:
                if split.dim >= len(shape):
                    raise InvalidInput(f"{split} divides a dimension that shape {shape} lacks")
                cuts[split.dim] = (*cuts[split.dim], (size, here, split.factor))
        return [held_intervals(size, cut) for size, cut in zip(shape, cuts, strict=True)]

    def _coordinate(self, rank: int) -> tuple[int, ...] | None:
        if rank not in self._coordinates:
            self._coordinates[rank] = self._find(rank)
        return self._coordinates[rank]

    def _find(self, rank: int) -> tuple[int, ...] | None:
        try:
            number = self.ranks.index(rank)
        except ValueError:
            return None
        coordinate: list[int] = []
        for size in reversed(self.mesh):
            number, here = divmod(number, size)
            coordinate.append(here)
        return tuple(reversed(coordinate))


@lru_cache(maxsize=1 << 16)
def held_intervals(size: int, cuts: tuple[tuple[int, int, int], ...]) -> tuple[Interval, ...]:
    """Return the index ranges of a dimension that are left after some cuts, ascending and not touching.

    Args:
        size: Extent of the dimension.
        cuts: In order, (extent of the mesh dimension, coordinate in it, factor) of every split.
    """
    held: tuple[Interval, ...] = ((0, size),) if size else ()
    for count, here, factor in cuts:
        total = sum(high - low for low, high in held)
        positions = _strided(total, count, here, factor)
        held = tuple(_join(piece for span in positions for piece in _select(held, span)))
    return held


def _strided(total: int, count: int, here: int, factor: int) -> Iterator[Interval]:
    """Yield the positions of one coordinate: its chunk of each of `factor` chunks, as torch.chunk cuts."""
    outer = -(-total // factor)
    for number in range(factor):
        first = min(number * outer, total)
        length = min(outer, total - first)
        inner = -(-length // count)
        low, high = min(here * inner, length), min((here + 1) * inner, length)
        if low < high:
            yield first + low, first + high


def _select(held: tuple[Interval, ...], span: Interval) -> Iterator[Interval]:
    """Yield the indices at some positions of ranges that are laid end to end."""
    position = 0
    for low, high in held:
        first, last = max(span[0] - position, 0), min(span[1] - position, high - low)
        if first < last:
            yield low + first, low + last
        position += high - low


def _join(pieces: Iterator[Interval]) -> Iterator[Interval]:
    current: Interval | None = None
    for low, high in pieces:
        if current is not None and current[1] == low:
            current = (current[0], high)
            continue
        if current is not None:
            yield current
        current = (low, high)
    if current is not None:
        yield current


def _packed(intervals: tuple[Interval, ...]) -> Iterator[Interval]:
    position = 0
    for low, high in intervals:
        yield position, position + high - low
        position += high - low
