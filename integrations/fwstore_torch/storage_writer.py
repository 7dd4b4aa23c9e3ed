"""Saves of torch.distributed.checkpoint into a fwstore repository.

Invariant: a checkpoint becomes visible, or replaces the one of the same id, by the one commit record that
`finish` writes; before it, readers see what they saw, and a save that breaks off leaves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, SerializationFormat
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

import fwstore
from fwstore import (
    AlreadyExists,
    Box,
    FwstoreError,
    InvalidInput,
    Piece,
    Repository,
    SaveTicket,
    Shard,
    TensorSlot,
    UnsupportedValue,
)
from fwstore_torch import dcp_metadata
from fwstore_torch.dcp_assignment import Assignment, Contribution, contributions, take_assignment
from fwstore_torch.dcp_bytes import OPAQUE, PlainValues
from fwstore_torch.dcp_location import CheckpointId, Location, is_location, locate
from fwstore_torch.dcp_metadata import Notes, ObjectPath, Span, is_whole, object_path, piece_path
from fwstore_torch.failures import tell
from fwstore_torch.tensors import adapter

_TUNING = frozenset(
    {
        "single_file_per_rank",
        "sync_files",
        "thread_count",
        "per_thread_copy_ahead",
        "cache_staged_state_dict",
    }
)


class StorageWriter(storage.StorageWriter):
    """Stands in for `torch.distributed.checkpoint.FileSystemWriter`.

    Args:
        path: Where to save: a directory, a URL, or either followed by ``#run`` or ``#run@step``. A
            ``checkpoint_id`` given to `save` takes its place.
        overwrite: Replace a checkpoint of the same id; else refuse.
        repository: A directory or URL below which all ids lie; they then share a repository, so that
            what did not change between them is stored once: ``.../llama/step-100`` is step 100 of the
            run ``llama``.
        options: Of the store, as for `fwstore.open`.
        **tuning: Arguments of FileSystemWriter that only tune its files; they have no effect. Those
            that change what is stored may only be given as they are by default.

    Raises:
        InvalidInput: The path cannot be stored to.
        TypeError: An argument of FileSystemWriter changes what is stored and is not supported.
    """

    def __init__(
        self,
        path: CheckpointId | None = None,
        *,
        overwrite: bool = True,
        repository: CheckpointId | None = None,
        options: Mapping[str, object] | None = None,
        **tuning: Any,
    ) -> None:
        super().__init__()
        _check_tuning(tuning)
        self._overwrite = overwrite
        self._repository = repository
        self._options = options
        self._location: Location | None = None
        self._rank = 0
        self._collective = True
        self._ticket: SaveTicket | None = None
        self.reset(path)

    def reset(self, checkpoint_id: CheckpointId | None = None) -> None:
        """Begin a new save, of another id if one is given."""
        if checkpoint_id:
            self._location = locate(checkpoint_id, self._repository)
        self.save_id = os.urandom(16).hex()

    def set_up_storage_writer(
        self,
        is_coordinator: bool,  # noqa: ARG002, FBT001 - DCP's signature
        *args: Any,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Learn which rank this is and whether the ranks plan together."""
        self._rank = kwargs.get("rank") or 0
        self._collective = kwargs.get("use_collectives", True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Take the ticket of the save and send it to every rank with its plan.

        Raises:
            AlreadyExists: There is a checkpoint of this id, which must not be replaced.
        """
        target = self._target()
        with self._open(target) as repository:
            run = repository.run(target.run)
            try:
                self._ticket = run.begin_save(target.step, replace=self._overwrite)
            except AlreadyExists as error:
                raise AlreadyExists(
                    f"Checkpoint already exists at {target.shown} and overwrite=False: {error.message}"
                ) from error
            if self._ticket.replaces:
                _free_replaced(repository, target)
        alone = len(plans) == 1
        first = 0 if self._collective else self._rank
        assignments = [
            Assignment(target.url, target.run, first + number, self._ticket, alone)
            for number in range(len(plans))
        ]
        for assignment in assignments:
            if assignment.rank == self._rank:
                assignment.announce()
        return [
            replace(plan, storage_data=assignment)
            for plan, assignment in zip(plans, assignments, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what this rank holds; its contribution travels with its first result."""
        target = self._target()
        assignment = take_assignment(target.url, target.run, self._rank) or plan.storage_data
        if not isinstance(assignment, Assignment):
            raise InvalidInput(
                "the plan has no ticket: it did not pass through prepare_global_plan"
            )
        results: list[WriteResult] = []
        if plan.items:
            collected = _Collected(plan, alone=assignment.alone)
            results = [collected.add(item, planner.resolve_data(item)) for item in plan.items]
            with self._open(target) as repository:
                part = repository.run(target.run).write_part(
                    assignment.ticket, collected.shards(), rank=self._rank
                )
            results[0] = replace(results[0], storage_data=collected.contribution(part))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint."""
        target, ticket = self._target(), self._ticket
        if ticket is None:
            raise InvalidInput("finish was called before prepare_global_plan")
        self._ticket = None
        brought = contributions(results)
        state, notes = _describe(metadata, brought, self.save_id)
        with self._open(target) as repository:
            repository.run(target.run).commit_save(
                ticket,
                [contribution.part for contribution in brought],
                state,
                annotations={dcp_metadata.ANNOTATION: notes.encode()},
            )
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_meta = self.storage_meta()
        metadata.storage_data = {
            result.index: object_path(result.index.fqn, metadata.planner_data)
            for of_rank in results
            for result in of_rank
        }

    def storage_meta(self) -> StorageMeta:
        """Return the id of the checkpoint and of this save."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self.save_id)

    @property
    def checkpoint_id(self) -> str | Path:
        """The id that the next save goes to."""
        return self._here().shown

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: CheckpointId) -> bool:
        """Return whether an id is a directory or a URL that fwstore has a store for."""
        return is_location(checkpoint_id)

    def _here(self) -> Location:
        if self._location is None:
            raise InvalidInput("give a path to StorageWriter or a checkpoint_id to save")
        return self._location

    def _open(self, target: Location) -> Repository:
        return fwstore.open(target.url, options=self._options)

    def _target(self) -> Location:
        return self._here() if self._collective else self._here().of_rank(self._rank)


def _check_tuning(tuning: Mapping[str, Any]) -> None:
    for name, value in tuning.items():
        plain = (name == "_extensions" and not value) or (
            name == "serialization_format" and value == SerializationFormat.TORCH_SAVE
        )
        if name not in _TUNING and not plain:
            raise TypeError(f"StorageWriter does not support the argument {name}={value!r}")


def _free_replaced(repository: Repository, target: Location) -> None:
    """Free what earlier saves replaced; what this one replaces stays for its readers until the next."""
    try:
        repository.gc(run=target.run)
    except FwstoreError as error:
        tell(f"what earlier saves of {target.shown} replaced was not freed: {error}")


class _Collected:
    """What the items of one plan come to: shards by path, and plain values by name."""

    def __init__(self, plan: SavePlan, *, alone: bool) -> None:
        self._names = plan.planner_data
        self._partial = _partial_names(plan.items) if alone else frozenset[str]()
        self._pieces: dict[ObjectPath, list[Piece]] = {}
        self._kinds: dict[ObjectPath, tuple[str, tuple[int, ...]]] = {}
        self._plain: dict[str, Any] = {}
        self._opaque: list[str] = []
        self._values = PlainValues()

    def add(self, item: WriteItem, value: Any) -> WriteResult:
        """Take what the planner gave for an item."""
        if item.type == WriteItemType.BYTE_IO:
            raw = value.getvalue()
            self._add_bytes(item.index.fqn, raw)
            return WriteResult(item.index, len(raw), None)
        self._add_tensor(item, value)
        return WriteResult(item.index, value.numel() * value.element_size(), None)

    def shards(self) -> dict[ObjectPath, Shard]:
        """Return the tensors that this rank writes."""
        return {
            path: Shard(dtype, shape, tuple(self._pieces[path]))
            for path, (dtype, shape) in self._kinds.items()
        }

    def contribution(self, part: bytes) -> Contribution:
        """Return what the coordinator must know, given what was written."""
        return Contribution(part, self._plain, tuple(self._opaque))

    def _add_bytes(self, name: str, raw: bytes) -> None:
        value = self._values.of(raw)
        if value is not OPAQUE:
            self._plain[name] = value
            return
        self._opaque.append(name)
        array = np.frombuffer(raw, np.uint8)
        box = Box.whole(array.shape)
        self._place(object_path(name, self._names), "uint8", array.shape, [Piece(box, array)])

    def _add_tensor(self, item: WriteItem, value: torch.Tensor) -> None:
        name, (offsets, sizes) = item.index.fqn, _span(item)
        path, box = object_path(name, self._names), Box(offsets, sizes)
        shape = tuple(item.tensor_data.size) if item.tensor_data else tuple(value.shape)
        if name in self._partial:
            path, box, shape = piece_path(path, offsets), Box.whole(sizes), sizes
        try:
            shard = adapter.describe(value.detach())
        except UnsupportedValue as error:
            raise UnsupportedValue(f"{name}: {error.message}") from error
        pieces = [Piece(box, piece.array) for piece in shard.pieces if box.volume]
        self._place(path, shard.dtype, shape, pieces)

    def _place(
        self, path: ObjectPath, dtype: str, shape: tuple[int, ...], pieces: list[Piece]
    ) -> None:
        self._kinds[path] = dtype, shape
        self._pieces.setdefault(path, []).extend(pieces)


def _span(item: WriteItem) -> Span:
    if item.tensor_data is None:
        raise InvalidInput(f"{item.index.fqn}: the planner gave no shape for this tensor")
    chunk = item.tensor_data.chunk
    return tuple(chunk.offsets), tuple(chunk.sizes)


def _partial_names(items: list[WriteItem]) -> frozenset[str]:
    """Return the tensors that these items do not fill."""
    sizes: dict[str, tuple[int, ...]] = {}
    spans: dict[str, list[tuple[int, ...]]] = {}
    for item in items:
        if item.tensor_data is not None:
            sizes[item.index.fqn] = tuple(item.tensor_data.size)
            spans.setdefault(item.index.fqn, []).append(_span(item)[1])
    return frozenset(name for name, size in sizes.items() if not is_whole(size, spans[name]))


def _describe(
    metadata: Metadata, brought: list[Contribution], save_id: str
) -> tuple[dict[str, Any], Notes]:
    """Return the state that the native door shows, and the notes that DCP's door needs."""
    opaque = frozenset(name for contribution in brought for name in contribution.opaque)
    plain = {name: value for contribution in brought for name, value in contribution.plain.items()}
    entries = metadata.state_dict_metadata
    pieces = dict(_pieces(metadata))
    paths = {name: object_path(name, metadata.planner_data) for name in entries}
    values: dict[ObjectPath, Any] = {}
    for name, entry in entries.items():
        if name in pieces:
            slots = (piece_path(paths[name], offsets) for offsets, _ in pieces[name][1])
            values |= dict.fromkeys(slots, TensorSlot("torch"))
        elif isinstance(entry, BytesStorageMetadata):
            if name not in opaque and name not in plain:
                raise InvalidInput(f"{name} is in the metadata, but no rank wrote it")
            values[paths[name]] = TensorSlot("numpy") if name in opaque else plain[name]
        else:
            values[paths[name]] = TensorSlot("torch")
    state = dcp_metadata.build_state(values)
    common = Notes(save_id=save_id, opaque=opaque, pieces=pieces)
    if dcp_metadata.is_derived(state, paths, metadata.planner_data):
        return state, common
    return state, replace(common, derived=False, planner_data=metadata.planner_data, paths=paths)


def _pieces(metadata: Metadata) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[Span, ...]]]]:
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            spans = tuple((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks)
            if not is_whole(entry.size, [sizes for _, sizes in spans]):
                yield name, (tuple(entry.size), spans)
