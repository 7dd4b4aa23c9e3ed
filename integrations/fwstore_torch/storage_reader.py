"""Loads of torch.distributed.checkpoint from a fwstore repository, whichever door saved it.

Invariant: all ranks of one load read the same snapshot, and a tensor is handed to the planner only after
its bytes were verified.
"""

from __future__ import annotations

import io
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

import fwstore
from fwstore import Box, Checkpoint, Conflict, ForeignValue, InvalidInput, Repository, TensorSlot
from fwstore_torch.dcp_bytes import to_bytes
from fwstore_torch.dcp_location import CheckpointId, Location, is_location, locate
from fwstore_torch.dcp_metadata import (
    Names,
    Notes,
    ObjectPath,
    make_metadata,
    piece_path,
    read_names,
)
from fwstore_torch.tensors import NAMES, adapter

BATCH_BYTES = 512 << 20
"""Tensors of about this size are in flight between the store and the planner."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _View:
    """A snapshot that is being read.

    Attributes:
        repository: Where it is; closed after the load.
        checkpoint: The snapshot.
        notes: What DCP's door stored with it.
        names: DCP's names of its values.
        shared_id: Its id when all ranks must read it; None when each rank has its own.
    """

    repository: Repository
    checkpoint: Checkpoint
    notes: Notes
    names: Names
    shared_id: str | None


@dataclass(frozen=True)
class _Delivery:
    """A part of a tensor on its way to the planner."""

    request: ReadItem
    target: torch.Tensor
    landing: torch.Tensor | None


class StorageReader(storage.StorageReader):
    """Stands in for `torch.distributed.checkpoint.FileSystemReader`.

    Args:
        path: Where to load from: a directory, a URL, or either followed by ``#run`` or ``#run@step``. A
            ``checkpoint_id`` given to `load` takes its place.
        repository: A directory or URL below which all ids lie, as for `StorageWriter`.
        options: Of the store, as for `fwstore.open`.
        _extension_registry: Of FileSystemReader; has no effect, because nothing is stored through
            its extensions.

    Raises:
        InvalidInput: The path cannot be loaded from.
    """

    def __init__(
        self,
        path: CheckpointId | None = None,
        *,
        repository: CheckpointId | None = None,
        options: Mapping[str, object] | None = None,
        _extension_registry: object = None,
    ) -> None:
        super().__init__()
        self._repository = repository
        self._options = options
        self._location: Location | None = None
        self._view: _View | None = None
        self.reset(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_view": None}

    def reset(self, checkpoint_id: CheckpointId | None = None) -> None:
        """Begin a new load, of another id if one is given."""
        if checkpoint_id:
            self._location = locate(checkpoint_id, self._repository)
        self.load_id = os.urandom(16).hex()
        self._close()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - DCP's signature
        """Return the metadata of the checkpoint.

        Args:
            *args: Not used.
            **kwargs: With ``rank``, the checkpoint that this rank saved without collectives is meant.

        Raises:
            NotFound: There is no such checkpoint.
        """
        location, rank = self._here(), kwargs.get("rank")
        self._close()
        self._view = view = _open(location, rank, self._options)
        meta = StorageMeta(self.checkpoint_id, save_id=view.notes.save_id, load_id=self.load_id)
        return make_metadata(view.checkpoint, view.notes, view.names, meta)

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001 - DCP's signature
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Nothing to set up: `read_metadata` opened the checkpoint."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Note in the plan which snapshot this rank reads."""
        return replace(plan, storage_data=self._opened().shared_id)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Check that all ranks read the same snapshot.

        Raises:
            Conflict: The checkpoint was replaced while the ranks opened it.
        """
        if len({plan.storage_data for plan in plans}) > 1:
            raise Conflict(
                f"{self.checkpoint_id} was saved again while the ranks opened it; load it once more"
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for; tensors on the CPU are read in place."""
        view = self._opened()
        plain = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        for item in plain:
            planner.load_bytes(item, io.BytesIO(_read_bytes(view, item.storage_index.fqn)))
        tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        tensors.sort(key=lambda item: _position(view, item))
        for batch in _batches(tensors):
            _read_tensors(view, batch, planner)
        self._close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @property
    def checkpoint_id(self) -> str | Path:
        """The id that the next load reads."""
        return self._here().shown

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: CheckpointId) -> bool:
        """Return whether an id is a directory or a URL that fwstore has a store for."""
        return is_location(checkpoint_id)

    def _here(self) -> Location:
        if self._location is None:
            raise InvalidInput("give a path to StorageReader or a checkpoint_id to load")
        return self._location

    def _opened(self) -> _View:
        if self._view is None:
            raise InvalidInput("read_metadata must be called before the plan is made and read")
        return self._view

    def _close(self) -> None:
        if self._view is not None:
            self._view.repository.close()
            self._view = None


def _open(location: Location, rank: int | None, options: Mapping[str, object] | None) -> _View:
    location = location if rank is None else location.of_rank(rank)
    repository = fwstore.open(location.url, options=options)
    try:
        run = repository.run(location.run)
        checkpoint = run.latest() if location.step is None else run[location.step]
        notes = Notes.of(checkpoint)
        names = read_names(checkpoint, notes)
        return _View(repository, checkpoint, notes, names, checkpoint.id if rank is None else None)
    except BaseException:
        repository.close()
        raise


def _place(view: _View, item: ReadItem) -> tuple[ObjectPath, Box]:
    """Return which stored tensor a request reads, and which box of it."""
    name = item.storage_index.fqn
    path, offsets = view.names.leaves[name].path, tuple(item.storage_offsets)
    if name in view.notes.pieces:
        return piece_path(path, item.storage_index.offset or ()), Box(offsets, tuple(item.lengths))
    return path, Box(offsets, tuple(item.lengths))


def _position(view: _View, item: ReadItem) -> tuple[str, tuple[int, ...]]:
    path, box = _place(view, item)
    return str(path), box.offsets


def _batches(items: list[ReadItem]) -> Iterator[list[ReadItem]]:
    """Cut the requests where about `BATCH_BYTES` are full, at 8 bytes an element."""
    batch: list[ReadItem] = []
    room = BATCH_BYTES
    for item in items:
        batch.append(item)
        room -= 8 * math.prod(item.lengths)
        if room <= 0:
            yield batch
            batch, room = [], BATCH_BYTES
    if batch:
        yield batch


def _read_tensors(view: _View, items: Iterable[ReadItem], planner: LoadPlanner) -> None:
    wanted: dict[ObjectPath, list[tuple[Box, Array]]] = {}
    deliveries = []
    for item in items:
        path, box = _place(view, item)
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != box.sizes:
            raise InvalidInput(
                f"{item.storage_index.fqn}: the planner gave a tensor of shape {tuple(target.shape)} "
                f"to read a box of {box.sizes} into"
            )
        dtype = view.checkpoint.tensors[path].dtype
        landing, array = _landing(target, dtype)
        wanted.setdefault(path, []).append((box, array))
        deliveries.append(_Delivery(item, target, landing))
    view.checkpoint.read_into(wanted)
    for delivery in deliveries:
        if delivery.landing is not None:
            delivery.target.copy_(delivery.landing)
        planner.commit_tensor(delivery.request, delivery.target)


def _landing(target: torch.Tensor, dtype: str) -> tuple[torch.Tensor | None, Array]:
    """Return where to read to: the target's own memory, else a tensor to copy from."""
    if target.device.type == "cpu" and NAMES.get(target.dtype) == dtype:
        try:
            return None, _memory(target)
        except InvalidInput:
            pass  # its elements share memory, which only copy_ can sort out
    landing = adapter.allocate(dtype, tuple(target.shape))
    return landing, _memory(landing)


def _memory(tensor: torch.Tensor) -> Array:
    array = adapter.describe(tensor, writable=True).pieces[0].array
    if not isinstance(array, np.ndarray):
        raise InvalidInput(f"a tensor on {tensor.device} has no memory that numpy can address")
    return array


def _read_bytes(view: _View, name: str) -> bytes:
    leaf = view.names.leaves[name]
    if name in view.notes.opaque:
        return _read_whole(view.checkpoint, leaf.path).numpy().tobytes()
    return to_bytes(_fill(view.checkpoint, leaf.value, leaf.path))


def _fill(checkpoint: Checkpoint, value: Any, path: tuple[Any, ...]) -> Any:
    """Return a plain value with its tensors: those below a tuple are one value to DCP."""
    kind = type(value)
    if kind is TensorSlot:
        return _read_whole(checkpoint, path)
    if kind is ForeignValue:
        return adapter.revive(value)
    if kind in (list, tuple):
        return kind(_fill(checkpoint, each, (*path, number)) for number, each in enumerate(value))
    if kind in (dict, OrderedDict):
        return kind((key, _fill(checkpoint, each, (*path, key))) for key, each in value.items())
    return value


def _read_whole(checkpoint: Checkpoint, path: ObjectPath) -> torch.Tensor:
    tensor = checkpoint.tensors[path]
    landing: torch.Tensor = adapter.allocate(tensor.dtype, tensor.shape)
    checkpoint.read_into({path: [(Box.whole(tensor.shape), _memory(landing))]})
    return landing
