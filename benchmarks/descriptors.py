"""What a hundred thousand ranks would bring to a save, without their bytes.

Every rank of an HSDP and tensor-parallel job holds one shard of every tensor; the replicas of a shard divide its
chunks by bytes, as `plan_owned` does. Layouts, grids, tables and messages come from the code that saves use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.fragments import COPIES, MODELS, World, layout_of
from fwstore.content.contribution import Contribution, encode_contribution
from fwstore.format.dtypes import itemsize
from fwstore.format.packtable import PackInfo
from fwstore.format.paths import encode_path
from fwstore.format.root import LineageRef
from fwstore.format.rows import FragmentTable, RunTable, merge_runs
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box
from fwstore.plan.grid import Grid, grid_of_layout

_DTYPES = {2: "bfloat16", 4: "float32"}
_NAMES = {2: ("weight",), 4: ("exp_avg", "exp_avg_sq", "master")}
_ENVELOPE_BYTES = 12
_FOOTER_BYTES_PER_CHUNK = 48


@dataclass(frozen=True, eq=False)
class _Form:
    """Chunks of one tensor in the order of its cells; `boxes` are the parts of cells, by position."""

    cell: npt.NDArray[np.uint64]
    size_bytes: npt.NDArray[np.int64]
    boxes: dict[int, tuple[list[int], list[int]]]


@dataclass(frozen=True, eq=False)
class _Cut(_Form):
    """Chunks of many tensors, one after another."""

    tensor: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Job:
    """A model, saved by FSDP x TP ranks and their replicas.

    Attributes:
        model: Its name in `benchmarks.fragments`.
        times: How many times as many tensors it has as there.
        world: Degrees of FSDP and tensor parallelism.
        replicas: How often every shard is held.
    """

    model: str
    times: float
    world: World
    replicas: int

    @property
    def ranks(self) -> int:
        """All processes."""
        return self.world.fsdp * self.world.tensor * self.replicas

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The dictionary of the snapshot."""
        found = []
        for number, weight in enumerate(MODELS[self.model]):
            for size, _ in COPIES:
                grid = grid_of_layout(weight.shape, size, layout_of(weight, self.world))
                found += [
                    TensorInfo(
                        ("model", f"{number}", layer, name), _DTYPES[size], weight.shape, grid.cells
                    )
                    for layer in range(round(weight.count * self.times))
                    for name in _NAMES[size]
                ]
        return tuple(sorted(found, key=lambda info: encode_path(info.path)))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.size_bytes for info in self.tensors)

    def messages(self, lineage: LineageRef, term: int) -> Iterator[bytes]:
        """Yield the contribution of every rank, as the leader receives it."""
        shards = self.world.fsdp * self.world.tensor
        nothing = Contribution(
            rank=0, tensors=self.tensors, runs=RunTable.of(), fragments=FragmentTable.of()
        )
        dictionaries = _fields(encode_contribution(nothing))[4]
        for shard in range(shards):
            cut = self._cut(shard)
            ends = np.cumsum(cut.size_bytes)
            part = (
                (2 * ends - cut.size_bytes) * self.replicas // max(1, 2 * int(cut.size_bytes.sum()))
            )
            borders = np.searchsorted(part, np.arange(self.replicas + 1))
            for replica in range(self.replicas):
                rows = slice(int(borders[replica]), int(borders[replica + 1]))
                rank = replica * shards + shard
                brought = _contribution(rank, cut, rows, lineage, term)
                yield _with_dictionaries(encode_contribution(brought), dictionaries)

    @cached_property
    def _forms(self) -> tuple[list[TensorInfo], npt.NDArray[np.int64]]:
        """Return a tensor of every form, and the form of every tensor: layers are alike."""
        keys: dict[object, int] = {}
        examples, numbers = [], []
        for info in self.tensors:
            key = (info.path[1], info.dtype)
            if key not in keys:
                keys[key] = len(keys)
                examples.append(info)
            numbers.append(keys[key])
        return examples, np.array(numbers, np.int64)

    def _cut(self, shard: int) -> _Cut:
        """Return the chunks of one shard of every tensor."""
        examples, form_of = self._forms
        forms = [self._cut_one(info, shard) for info in examples]
        lengths = np.array([len(form.cell) for form in forms], np.int64)
        starts, counts = (np.cumsum(lengths) - lengths)[form_of], lengths[form_of]
        firsts = np.cumsum(counts) - counts
        row = np.repeat(starts - firsts, counts) + np.arange(int(counts.sum()))
        boxes = {
            int(first) + here: box
            for number, form in enumerate(forms)
            if form.boxes
            for first in firsts[form_of == number]
            for here, box in form.boxes.items()
        }
        return _Cut(
            np.concatenate([form.cell for form in forms])[row],
            np.concatenate([form.size_bytes for form in forms])[row],
            dict(sorted(boxes.items())),
            np.repeat(np.arange(len(form_of), dtype=np.uint32), counts),
        )

    def _cut_one(self, info: TensorInfo, shard: int) -> _Form:
        weight = MODELS[self.model][int(info.path[1])]
        layout = layout_of(weight, self.world)
        grid = Grid(info.shape, info.cells)
        boxes = layout.boxes(weight.shape, shard)
        if weight.outer is None and shard >= self.world.fsdp:
            # All tensor-parallel ranks hold it: the first of them bring it.
            boxes = ()
        cuts = [grid.cut(box) for box in boxes] or [grid.cut(Box.whole((0,) * len(grid.shape)))]
        cells = np.concatenate([cut.cells for cut in cuts])
        offsets, sizes = (
            np.concatenate([getattr(cut, name) for cut in cuts]) for name in ("offsets", "sizes")
        )
        parts = np.flatnonzero(~np.concatenate([cut.whole for cut in cuts])).tolist()
        origins, _ = grid.cell_boxes(cells)
        relative = offsets - origins
        return _Form(
            cells,
            np.prod(sizes, axis=1, dtype=np.int64) * itemsize(info.dtype),
            {row: (relative[row].tolist(), sizes[row].tolist()) for row in parts},
        )


def _rows(cut: _Cut, rows: slice) -> tuple[RunTable, FragmentTable]:
    """Return the rows of some chunks that lie in one pack in their order."""
    chunk = np.arange(rows.stop - rows.start, dtype=np.uint32)
    parts = [row - rows.start for row in cut.boxes if rows.start <= row < rows.stop]
    tensor, cell = cut.tensor[rows], cut.cell[rows]
    whole = np.delete(chunk, parts)
    runs = RunTable(
        tensor[whole],
        cell[whole],
        np.ones(len(whole), np.uint64),
        np.zeros(len(whole), np.uint32),
        whole,
    )
    fragments = FragmentTable.of(
        [(int(tensor[row]), int(cell[row]), 0, row) for row in parts],
        [cut.boxes[row + rows.start] for row in parts],
    )
    return merge_runs(runs), fragments


def _contribution(
    rank: int, cut: _Cut, rows: slice, lineage: LineageRef, term: int
) -> Contribution:
    """Return what a rank brings that wrote some chunks of its shard into one pack."""
    chunks, size_bytes = rows.stop - rows.start, int(cut.size_bytes[rows].sum())
    footer = 400 + _FOOTER_BYTES_PER_CHUNK * chunks
    noise = np.random.default_rng(rank).bytes(40)
    pack = PackInfo(
        lineage=0,
        spread=rank % 256,
        term=term,
        save=1,
        rank=rank,
        number=0,
        token=noise[:8].hex(),
        size=128 + 64 * chunks + size_bytes + footer,
        footer_length=footer,
        footer_digest=noise[8:],
        chunks=chunks,
    )
    runs, fragments = _rows(cut, rows)
    return Contribution(
        rank=rank,
        tensors=(),
        lineages=(lineage,) if chunks else (),
        packs=(pack,) if chunks else (),
        runs=runs,
        fragments=fragments,
        bytes_written=pack.size if chunks else 0,
    )


def _fields(stored: bytes) -> list[object]:
    found: list[object] = msgspec.msgpack.decode(stored[_ENVELOPE_BYTES:])
    return found


def _with_dictionaries(stored: bytes, dictionaries: object) -> bytes:
    """Return a message with the dictionary that all ranks share, which is encoded only once here."""
    fields = _fields(stored)
    fields[4] = dictionaries
    return stored[:_ENVELOPE_BYTES] + msgspec.msgpack.encode(fields)
