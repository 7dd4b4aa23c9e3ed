"""One rank's part of a save: from live tensors to durable packs and a contribution.

Invariant: `prepare` and `copy_late` are all that reads the caller's tensors (unless the save is blocking); `write` is
all that touches the store; none of them makes anything visible.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fwstore.base.config import POSITION_BYTES_MAX
from fwstore.base.errors import Corrupt, InternalError, NotFound
from fwstore.checkpoint.catalogue import Agreement, Catalogue, make_catalogue
from fwstore.checkpoint.codecs import CodecPolicy
from fwstore.checkpoint.grids import Grids, inherited_grids
from fwstore.checkpoint.handle import SaveStatistics
from fwstore.checkpoint.known import Known, carry_over, known_from
from fwstore.checkpoint.part import Part, encode_part
from fwstore.checkpoint.reserved import (
    STATE_PATH,
    annotation_path,
    bytes_shard,
    rank_path,
    refuse_reserved,
)
from fwstore.checkpoint.saveplan import PlannedSegment, SavePlan, make_plan, structure_of
from fwstore.checkpoint.segments import Segment
from fwstore.checkpoint.session import SaveRequest, Session, finite_metrics
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.checkpoint.sources import batches_of
from fwstore.checkpoint.stage import StagedSegment, go_on, pin_of, stage, unchanged_chunks
from fwstore.checkpoint.states import INLINE_STATE_BYTES_MAX
from fwstore.checkpoint.tree import flatten, tensor_slots
from fwstore.checkpoint.versions import Versions
from fwstore.content.contribution import contribution_of, encode_contribution
from fwstore.content.manifest import Manifest
from fwstore.content.places import Places, concat_places
from fwstore.content.write import WriteRequest, Written, write_chunks
from fwstore.format.dtypes import itemsize
from fwstore.format.paths import TensorPath
from fwstore.format.state import encode_state
from fwstore.sched import BufferPool, collection_paused

_Live = tuple[PlannedSegment, Piece]
_Source = tuple[PlannedSegment, Piece | StagedSegment]


@dataclass(eq=False)
class Prepared:
    """What a rank will write: staged or live bytes, and chunks that need not be written.

    Attributes:
        plan: The chunks of the state.
        known: Where they lay before.
        reuse: True for every chunk of the plan that did not change.
        steady: Numbers of the tensors that are compared with what lay there before.
        late: Segments of the state that `copy_late` will compare and copy, and the caller's memory.
        versions: Those of the tensors that `copy_late` will copy, at the call.
        sources: The other segments of the state that are written, and their bytes.
        extra: The plan of the reserved tensors.
        extra_sources: Their segments and bytes.
        inline_state: The plain state when it fits the root.
        position: The stored data position.
        metrics: Finite numbers by name.
        live: The sources are the caller's own memory, which must not change until they are written.
        places: Where all chunks of the plan lie, once written.
        fresh: Term and save of the packs written for it.
    """

    plan: SavePlan
    known: Known
    reuse: np.ndarray[Any, np.dtype[np.bool_]]
    steady: frozenset[int]
    extra: SavePlan
    extra_sources: list[_Source]
    versions: Versions
    late: list[_Live] = field(default_factory=list)
    sources: list[_Source] = field(default_factory=list)
    inline_state: bytes | None = None
    position: bytes | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    live: bool = False
    places: Places | None = field(default=None, repr=False)
    fresh: tuple[int, int] = (0, 0)

    def release(self) -> None:
        """Give all staging memory back; a second call does nothing."""
        for _, source in self.sources:
            if isinstance(source, StagedSegment):
                source.release()


class SaveEngine:
    """Prepares and writes the saves of one rank; remembers where its chunks lie."""

    def __init__(
        self,
        session: Session,
        pool: BufferPool,
        parent: Manifest | None,
        bases: Sequence[Manifest] = (),
    ) -> None:
        self.session = session
        self.agreement = Agreement(session.coordinator, session.access.runtime)
        self._pool = pool
        self._parent = parent
        self._bases = list(bases)
        self._grids: Grids | None = None
        self._plan: SavePlan | None = None
        self._known: tuple[SavePlan, Known] | None = None
        self._steady: frozenset[int] = frozenset()
        self._codecs = CodecPolicy(session.codec, session.access.runtime)

    def close(self) -> None:
        """Return staging memory to the system."""
        self._pool.trim()

    def warm_up(self, state: Any) -> None:
        """Touch in the background the memory into which such a state will be copied."""
        adapters = self.session.access.adapters
        _, tensors = flatten(state, adapters)
        shards = [adapters.describe(path, value) for path, value in tensors.items()]
        size = sum(_share_bytes(shard, self.session.world_size) for shard in shards)
        runtime = self.session.access.runtime
        limit = runtime.limits.staging_bytes
        if not 0 < limit < size:
            touched = self._pool.prefault(size, runtime.scheduler)
            if (pin := pin_of(piece for shard in shards for piece in shard.pieces)) is not None:
                self._pool.pin(pin, runtime.scheduler, after=touched)

    def prepare(self, request: SaveRequest, statistics: SaveStatistics) -> Prepared | None:
        """Read the caller's tensors, but for those that may be copied late: stage what changed, note what did not.

        Returns:
            None when another rank skipped the save.

        Raises:
            UnsupportedValue: A value in the state cannot be stored.
            LimitExceeded: The position is larger than a root may hold.
            Conflict: The ranks disagree on which tensors there are; the next save settles it.
        """
        # Whatever can be refused is refused before bytes are staged, so that a refused save keeps no memory.
        position = None
        if request.position is not None:
            position = encode_state(
                request.position, limit_bytes=POSITION_BYTES_MAX, name="position"
            )
        metrics = finite_metrics(request.metrics)
        described, extra = self._describe(request)
        catalogue = self.agreement.settle(described, request.save)
        if catalogue is None:
            return None
        plan = self._plan_of(catalogue)
        known = self._known_of(plan)
        reserved = make_catalogue(extra.shards, {})
        extra_plan = make_plan(reserved, {}, self.session.rank, None)
        prepared = Prepared(
            plan,
            known,
            np.zeros(plan.chunks, np.bool_),
            self._steady,
            extra_plan,
            list(extra_plan.live(reserved)),
            extra.late,
            inline_state=extra.inline_state,
            position=position,
            metrics=metrics,
        )
        self._read(prepared, list(plan.live(catalogue)), request, statistics)
        return prepared

    def copy_late(
        self, prepared: Prepared, statistics: SaveStatistics, check: Callable[[], None]
    ) -> None:
        """Read the tensors that `prepare` left; once this returns or raises, nothing reads them any more.

        Args:
            prepared: What `prepare` returned.
            statistics: Receives the figures of this rank.
            check: Called while tensors are read and after the last byte; raises to abandon the save.
        """
        late, prepared.late = prepared.late, []
        sources = self._choose(prepared, late, statistics, check)
        prepared.sources = sorted((*prepared.sources, *sources), key=_place)
        prepared.versions.check()
        check()

    def write(
        self,
        request: SaveRequest,
        prepared: Prepared,
        statistics: SaveStatistics,
        check: Callable[[], None],
    ) -> bytes:
        """Write the chunks of a prepared save into packs; return the part for the leader.

        Args:
            request: The save.
            prepared: What `prepare` returned.
            statistics: Receives the figures of this rank.
            check: Called between groups of chunks; raises to abandon the save.
        """
        access, session = self.session.access, self.session
        offset = len(prepared.plan.tensors)
        pending = batches_of(prepared.plan, prepared.sources, prepared.known)
        extra = batches_of(prepared.extra, prepared.extra_sources, None, offset)
        started = access.runtime.clock.monotonic()
        total = sum(planned.segment.size_bytes for planned, _ in prepared.sources)
        written = write_chunks(
            access.store,
            access.runtime,
            WriteRequest(
                batches=itertools.chain(pending, extra),
                total_bytes=total + prepared.extra.size_bytes,
                tensors=(*prepared.plan.tensors, *prepared.extra.tensors),
                naming=session.naming(request.save),
                content_hash=access.content_hash,
                codecs=self._codecs.codecs(prepared.plan, prepared.sources, request.save),
                known=prepared.known.places,
                check=check,
            ),
        )
        elapsed = access.runtime.clock.monotonic() - started
        self._codecs.learn(written.tally.bytes_stored, elapsed)
        statistics.rank_bytes_written = sum(pack.size for pack in written.packs)
        return self._part(request, prepared, written)

    def learn(self, prepared: Prepared) -> None:
        """Remember where the chunks of a save lie; its record counts."""
        if prepared.places is None:
            raise InternalError("a save was committed before it was written")
        self._known = (prepared.plan, Known.all_of(prepared.places))
        self._steady = _steady_tensors(prepared.plan, prepared.places, prepared.fresh)
        self._bases = []

    def forget(self) -> None:
        """Trust nothing about earlier chunks: the next save writes everything."""
        self._known = None
        self._steady = frozenset()
        self._bases = []

    @collection_paused()
    def _describe(self, request: SaveRequest) -> tuple[Catalogue, _Extra]:
        skeleton, tensors = flatten(request.state, self.session.access.adapters)
        refuse_reserved(tensors)
        aliases = {p: slot.alias for p, slot in tensor_slots(skeleton) if slot.alias is not None}
        adapters = self.session.access.adapters
        shards = {path: adapters.describe(path, value) for path, value in tensors.items()}
        late = Versions(request.late(tensors), adapters)
        extra = self._extra(request, skeleton, late)
        return make_catalogue(shards, aliases, self.session.world_size), extra

    def _extra(self, request: SaveRequest, skeleton: Any, late: Versions) -> _Extra:
        shards: dict[TensorPath, Shard] = {}
        inline = None
        if self.session.rank == 0:
            state = encode_state(skeleton)
            if len(state) <= INLINE_STATE_BYTES_MAX:
                inline = state
            else:
                shards[STATE_PATH] = bytes_shard(state)
            for name, content in request.annotations.items():
                shards[annotation_path(name)] = bytes_shard(content)
        if request.per_rank is not None:
            encoded = encode_state(request.per_rank, name="per_rank")
            shards[rank_path(self.session.rank)] = bytes_shard(encoded)
        return _Extra(shards, inline, late)

    @collection_paused()
    def _plan_of(self, catalogue: Catalogue) -> SavePlan:
        if self._grids is None:
            self._grids = {} if self._parent is None else inherited_grids(self._parent, catalogue)
            self._parent = None
        structure = structure_of(catalogue)
        if self._plan is None or self._plan.structure != structure:
            self._plan = make_plan(catalogue, self._grids, self.session.rank, structure)
            self._grids = {**self._grids, **{info.path: info for info in self._plan.tensors}}
        return self._plan

    def _known_of(self, plan: SavePlan) -> Known:
        # The thread of an earlier save may forget what is known at any time.
        remembered = self._known
        if remembered is None:
            if not self._bases:
                return Known.nothing(plan)
            return self._known_from_bases(plan)
        before, known = remembered
        return known if before is plan else carry_over(known, before, plan)

    def _known_from_bases(self, plan: SavePlan) -> Known:
        try:
            return known_from(self._bases, self.session.access.footers, plan)
        except (Corrupt, NotFound):
            # A damaged or vanished base costs its bytes once more; it must not keep the run from going on.
            self._bases = []
            return Known.nothing(plan)

    @collection_paused()
    def _read(
        self,
        prepared: Prepared,
        live: list[_Live],
        request: SaveRequest,
        statistics: SaveStatistics,
    ) -> None:
        """Read what cannot wait; what is too large to be staged is not read here, but written as it lies there."""
        # Whether a copy is too large is known only after the comparison, and then the caller must wait for it.
        late = prepared.versions.paths
        if late and not self._exceeds_staging(live):
            paths = prepared.plan.paths
            numbers = {number for number, path in enumerate(paths) if path in late}
            prepared.late = [pair for pair in live if _tensor(pair) in numbers]
            live = [pair for pair in live if _tensor(pair) not in numbers]
        prepared.sources = self._choose(prepared, live, statistics, blocking=request.blocking)

    def _choose(
        self,
        prepared: Prepared,
        live: Sequence[_Live],
        statistics: SaveStatistics,
        check: Callable[[], None] = go_on,
        *,
        blocking: bool = False,
    ) -> list[_Source]:
        """Note which chunks did not change; return the others with their copied bytes, or live ones."""
        changed: list[_Live] = []
        same = self._compare(prepared, live, check)
        for number, (planned, piece) in enumerate(live):
            mask = same.get(number)
            if mask is None:
                changed.append((planned, piece))
                continue
            prepared.reuse[planned.rows] = mask
            changed += [(part, piece) for part in planned.without(mask)]
        if blocking or self._exceeds_staging(changed):
            prepared.live = True
            return list(changed)
        moving = [source for source in changed if not _is_stable(source)]
        copies = stage(_work(moving), self._pool, self.session.access.runtime, check)
        statistics.rank_bytes_staged += _size(moving)
        staged = [(planned, copy) for (planned, _), copy in zip(moving, copies, strict=True)]
        return sorted((*staged, *filter(_is_stable, changed)), key=_place)

    def _exceeds_staging(self, live: Sequence[_Live]) -> bool:
        limit = self.session.access.runtime.limits.staging_bytes
        return 0 < limit < _size(live)

    def _compare(
        self, prepared: Prepared, live: Sequence[_Live], check: Callable[[], None]
    ) -> dict[int, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Return by position which chunks did not change, for the tensors that were steady last time."""
        digests = {}
        for number, (planned, _) in enumerate(live if prepared.steady else ()):
            if planned.segment.chunks.tensor in prepared.steady:
                found = prepared.known.digests(planned.rows)
                if found is not None:
                    digests[number] = found
        if not digests:
            return {}
        return unchanged_chunks(_work(live), digests, self.session.access.runtime, check)

    def _part(self, request: SaveRequest, prepared: Prepared, written: Written) -> bytes:
        offset = len(prepared.plan.tensors)
        of_state = written.places.tensor < offset
        prepared.places = _merge(prepared, written.places.take(np.flatnonzero(of_state)))
        prepared.fresh = (self.session.term, request.save)
        main = contribution_of(
            self.session.rank,
            prepared.plan.tensors,
            prepared.places,
            bytes_written=sum(pack.size for pack in written.packs),
            bytes_reused=max(0, prepared.plan.size_bytes - written.tally.bytes_written_raw),
        )
        others = written.places.take(np.flatnonzero(~of_state))
        extra = contribution_of(
            self.session.rank,
            prepared.extra.tensors,
            replace(others, tensor=others.tensor - np.uint32(offset)),
            bytes_written=0,
            bytes_reused=0,
        )
        messages = (encode_contribution(main), encode_contribution(extra))
        return encode_part(Part(request.step, messages, self.session.site))


@dataclass(frozen=True)
class _Extra:
    shards: dict[TensorPath, Shard]
    inline_state: bytes | None
    late: Versions


def _tensor(source: _Live) -> int:
    return source[0].segment.chunks.tensor


def _is_stable(source: _Live) -> bool:
    return bool(getattr(source[1].array, "stable", False))


def _place(source: _Source) -> int:
    return source[0].first


def _size(live: Sequence[_Live]) -> int:
    return sum(planned.segment.size_bytes for planned, _ in live)


def _work(live: Sequence[_Live]) -> list[tuple[Segment, Piece]]:
    return [(planned.segment, piece) for planned, piece in live]


def _share_bytes(shard: Shard, world_size: int) -> int:
    """Return about how many bytes of a tensor a rank brings: replicas are divided among their holders."""
    held = sum(piece.box.volume for piece in shard.pieces) * itemsize(shard.dtype)
    if shard.layout is None:
        return held // world_size
    mesh = zip(shard.layout.mesh, shard.layout.placements, strict=True)
    return held // math.prod(size for size, split in mesh if split is None)


def _merge(prepared: Prepared, new: Places) -> Places:
    """Return the places of all chunks in the order of the plan."""
    reused = np.flatnonzero(prepared.reuse)
    changed = np.flatnonzero(~prepared.reuse)
    kept = prepared.known.places.take(prepared.known.row[reused])
    order = np.argsort(np.concatenate([reused, changed]), kind="stable")
    merged = concat_places([kept, new]).take(order)
    return replace(merged, tensor=prepared.plan.tensor_of_chunk)


def _steady_tensors(plan: SavePlan, places: Places, fresh: tuple[int, int]) -> frozenset[int]:
    """Return the tensors of a plan that had a chunk which the save did not write."""
    old = np.array([(pack.term, pack.save) != fresh for pack in places.packs], np.bool_)
    positions = set(np.unique(places.tensor[old[places.pack]]).tolist()) if len(places) else set()
    return frozenset(number for number, at in enumerate(plan.numbers) if at in positions)
