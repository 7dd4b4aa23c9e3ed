"""The background half of a save of one rank: hash, look up, encode, append to packs.

Invariant: `write_chunks` returns only after every pack that it names is durable, and every row that it returns
stands for bytes whose content hash was computed here; when it raises, no upload is left open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from fwstore.base.errors import FwstoreError
from fwstore.base.units import MIB
from fwstore.codec.hashing import ContentHash
from fwstore.codec.registry import Codec
from fwstore.content.lane import Lane, Shared, Tally, add_tallies, collect_rows
from fwstore.content.packing import PackNaming
from fwstore.content.places import Places, no_places
from fwstore.content.sources import Feed, SourceBatch
from fwstore.format.packtable import PackInfo
from fwstore.format.paths import encode_path
from fwstore.format.tensor import TensorInfo
from fwstore.sched import Budget, Runtime
from fwstore.store.base import Store

_LANE_BYTES = 128 * MIB
# Less is written before a process would have started.
_BESIDE_BYTES = 64 * MIB
# A part that is filled, and some that are on their way.
_PARTS_PER_LANE = 4


def _go_on() -> None:
    """Never abandon a write."""


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """What to write and how.

    Attributes:
        batches: The chunks, in the order of tensors and cells.
        total_bytes: Raw bytes of all batches, to choose how many lanes work.
        tensors: The tensor list that `ChunkSource.tensor` indexes, in any order.
        naming: Makes the keys of the packs.
        content_hash: Names the chunks.
        codecs: Codec by tensor index; tensors that are absent are stored raw.
        known: Chunks that the store holds already.
        check: Called between groups of batches; raises to abandon the save.
    """

    batches: Iterable[SourceBatch]
    total_bytes: int
    tensors: Sequence[TensorInfo]
    naming: PackNaming
    content_hash: ContentHash = field(default_factory=ContentHash)
    codecs: Mapping[int, Codec] = field(default_factory=dict)
    known: Places = field(default_factory=no_places)
    check: Callable[[], None] = _go_on


@dataclass(frozen=True, slots=True)
class Written:
    """What a write put into the store, all of it durable.

    Attributes:
        places: One row per chunk in the order of the batches.
        packs: The packs that were written.
        tally: Counts.
    """

    places: Places
    packs: tuple[PackInfo, ...]
    tally: Tally


def write_chunks(store: Store, runtime: Runtime, request: WriteRequest) -> Written:
    """Write what is new of some chunks into packs.

    Raises:
        FwstoreError: What `check`, the batches or the store raised first; the uploads were aborted.
    """
    order = sorted(
        range(len(request.tensors)), key=lambda number: encode_path(request.tensors[number].path)
    )
    hasher = runtime.hasher if request.total_bytes >= _BESIDE_BYTES else None
    shared = Shared(
        store=store,
        runtime=runtime,
        naming=request.naming,
        dictionary=[request.tensors[number] for number in order],
        position=np.argsort(order).tolist(),
        content_hash=request.content_hash,
        codecs=request.codecs,
        known=request.known,
        feed=Feed(
            request.batches,
            request.check,
            beside=lambda: hasher is not None and hasher.wanted,
        ),
        budget=Budget(runtime.limits.inflight_bytes),
        hasher=hasher,
    )
    lanes = [Lane(shared) for _ in range(_lane_count(store, runtime, request.total_bytes))]
    error = _run_all(lanes, runtime)
    if error is not None:
        _discard(store, [key for lane in lanes for key in lane.keys])
        raise error
    packs = tuple(pack for lane in lanes for pack in lane.packs)
    return Written(collect_rows(lanes, shared), packs, add_tallies([lane.tally for lane in lanes]))


def _lane_count(store: Store, runtime: Runtime, total_bytes: int) -> int:
    useful = min(runtime.scheduler.workers, -(-total_bytes // _LANE_BYTES))
    if store.capabilities.remote:
        # The parts of all lanes share a memory, and every lane begins packs, which are requests.
        limits = runtime.limits
        useful = min(useful, limits.inflight_bytes // (_PARTS_PER_LANE * limits.part_bytes))
    return max(1, useful)


def _run_all(lanes: Sequence[Lane], runtime: Runtime) -> BaseException | None:
    """Run the lanes, the first one here, and return the error that stopped them."""
    # Lanes have threads of their own: they are busy for the whole save, and the workers must stay free
    # for the staging of the next one.
    errors: list[BaseException] = []

    def run(lane: Lane) -> None:
        try:
            lane.run()
        except BaseException as error:  # noqa: BLE001 - the first one is raised by `write_chunks`
            errors.append(error)

    futures = [runtime.scheduler.spawn("lane", run, lane) for lane in lanes[1:]]
    run(lanes[0])
    for future in futures:
        future.result()
    return errors[0] if errors else None


def _discard(store: Store, keys: Sequence[str]) -> None:
    """Free what a failed write had completed; no record names it."""
    with suppress(FwstoreError):
        # A writer without the permission to delete leaves it to garbage collection.
        store.delete(keys)
