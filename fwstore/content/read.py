"""Verified reads of many tensors at once, straight into the memory that receives them.

Invariant: when `read` returns, every wanted byte was compared with the digest of its chunk after it
arrived in this process; when it raises, the destinations hold no promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import Corrupt, NotFound, Unavailable
from fwstore.content.chunks import ChunkReader, plan_tensor
from fwstore.content.flat import (
    FlatRequest,
    FlatRun,
    edges,
    plan_flat_requests,
    plan_flat_runs,
    unfit_wants,
)
from fwstore.content.footers import FooterCache, Pack
from fwstore.content.manifest import Manifest, TensorRows
from fwstore.content.verified import Origin
from fwstore.content.wants import Destination, Request
from fwstore.format.footer import Chunks
from fwstore.format.paths import TensorPath
from fwstore.plan.box import Box
from fwstore.sched import Budget, BufferPool, collection_paused

_first_chunk = attrgetter("first")
# Bytes are hashed while they are still in the cache of the core that read them.
_LOCAL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ReadStatistics:
    """What a read did.

    Attributes:
        packs: Packs that were read.
        requests: Requests for chunks, first attempts only.
        chunks: Chunks that were read.
        bytes_read: Bytes of those requests.
        bytes_wanted: Raw bytes of the chunks.
    """

    packs: int
    requests: int
    chunks: int
    bytes_read: int
    bytes_wanted: int


class _Unit(NamedTuple):
    """One piece of one tensor, and where the cells of the tensor lie."""

    path: TensorPath
    rows: TensorRows
    piece: Destination


class _PackRuns(NamedTuple):
    """The runs of one pack, by first chunk."""

    pack: Pack
    footer: Chunks
    runs: list[FlatRun]


@dataclass(frozen=True, slots=True)
class _Edge:
    """What is left of a piece beside its whole cells."""

    box: Box
    array: npt.NDArray[Any]


class ContentReader:
    """Reads tensors from an origin: by runs of chunks where memory and pack agree, else chunk by chunk.

    Args:
        origin: Where packs are.
        footers: Footers of the same origin.
        pool: Gives the memory for what cannot be read in place.
    """

    def __init__(self, origin: Origin, footers: FooterCache, pool: BufferPool) -> None:
        self._origin = origin
        self._footers = footers
        self._budget = Budget(origin.runtime.limits.read_bytes)
        self._chunks = ChunkReader(origin, footers, pool, self._budget)

    def read(
        self, manifest: Manifest, wanted: Iterable[tuple[TensorPath, Sequence[Destination]]]
    ) -> ReadStatistics:
        """Fill pieces of some tensors of a snapshot.

        Raises:
            NoSuchTensor: The snapshot has no such tensor.
            NotFound: A pack is gone; the log of the snapshot says whether it expired.
            InvalidInput: A piece does not lie in its tensor or has elements of another size.
            Corrupt: A chunk is damaged and no store has it whole; tensor, chunk, pack and store are named.
            Unavailable: A store does not answer.
        """
        with collection_paused():
            asked = list(wanted)
            rows = manifest.rows_of([path for path, _ in asked])
            units = [
                _Unit(path, own, piece)
                for (path, pieces), own in zip(asked, rows, strict=True)
                for piece in pieces
            ]
            packs = self._fit(manifest, self._plan_runs(units))
        fit = {run.want for _, _, here in packs for run in here}
        rest = [
            plan_tensor(unit.path, unit.rows, pieces)
            for number, unit in enumerate(units)
            if (pieces := _edges_of(unit) if number in fit else [unit.piece])
        ]
        requests, failed = self._read_runs(packs)
        others = self._chunks.read(manifest, rest)
        damaged = [units[number] for number in sorted(failed)]
        # Whatever is wrong with a run is told, or found elsewhere, chunk by chunk.
        self._chunks.read(manifest, [plan_tensor(u.path, u.rows, [u.piece]) for u in damaged])
        return _statistics([*requests, *others])

    def _plan_runs(self, units: Sequence[_Unit]) -> list[FlatRun]:
        """Return the runs of those pieces that can be read by runs."""
        remote = self._origin.stores[0].capabilities.remote
        return plan_flat_runs(
            (number, unit.rows, unit.piece)
            for number, unit in enumerate(units)
            # The edges of a piece are requests of their own, which a remote store does not forgive.
            if not (remote and edges(unit.rows, unit.piece.box))
        )

    def _fit(self, manifest: Manifest, runs: Sequence[FlatRun]) -> list[_PackRuns]:
        """Return the runs of pieces whose chunks are plain and wanted once, by pack and first chunk."""
        packs = self._by_pack(manifest, runs)
        unfit = {want for _, footer, here in packs for want in unfit_wants(here, footer)}
        if not unfit:
            return packs
        return self._by_pack(manifest, [run for run in runs if run.want not in unfit])

    def _by_pack(self, manifest: Manifest, runs: Iterable[FlatRun]) -> list[_PackRuns]:
        grouped: dict[int, list[FlatRun]] = {}
        for run in runs:
            grouped.setdefault(run.pack, []).append(run)
        packs = manifest.packs(grouped)
        footers = self._footers.get_many([packs[number] for number in grouped])
        return [
            _PackRuns(packs[number], footer, sorted(here, key=_first_chunk))
            for (number, here), footer in zip(grouped.items(), footers, strict=True)
        ]

    def _read_runs(self, packs: Iterable[_PackRuns]) -> tuple[list[FlatRequest], set[int]]:
        """Fill the memory of runs; return the requests and the numbers of the units with a bad chunk."""
        runtime = self._origin.runtime
        remote = self._origin.stores[0].capabilities.remote
        request_bytes = runtime.limits.read_request_bytes
        requests: list[FlatRequest] = []

        def plan() -> Iterator[FlatRequest]:
            # Drawn while other threads read already.
            for pack, footer, here in packs:
                for request in plan_flat_requests(
                    pack,
                    footer,
                    here,
                    gap_bytes=runtime.limits.read_gap_bytes,
                    request_bytes=request_bytes if remote else min(request_bytes, _LOCAL_BYTES),
                ):
                    requests.append(request)
                    yield request

        good = runtime.scheduler.map(self._run_reserved if remote else self._run, plan())
        bad = [request for request, fine in zip(requests, good, strict=True) if not fine]
        return requests, {want for request in bad for want in request.wants}

    def _run(self, request: FlatRequest) -> bool:
        # What a file system reads in place is delivered when it has come, so no budget is asked.
        try:
            return request.read(self._origin.stores[0])
        except (Corrupt, NotFound, Unavailable):
            return False

    def _run_reserved(self, request: FlatRequest) -> bool:
        with self._budget.reserve(request.length):
            return self._run(request)


def _edges_of(unit: _Unit) -> list[_Edge]:
    """Return the parts of a piece that its runs of whole cells leave out."""
    array, box = unit.piece.array, unit.piece.box
    return [
        _Edge(part, array[part.relative_to(box).slices()])
        for part in edges(unit.rows, box)
        if isinstance(array, np.ndarray)
    ]


def _statistics(requests: Sequence[FlatRequest | Request]) -> ReadStatistics:
    return ReadStatistics(
        packs=len({request.key for request in requests}),
        requests=len(requests),
        chunks=sum(request.chunk_count for request in requests),
        bytes_read=sum(request.length for request in requests),
        bytes_wanted=sum(request.raw_bytes for request in requests),
    )
