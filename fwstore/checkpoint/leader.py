"""Rank 0's part of a save: from contributions to the commit record.

Invariant: packs, then leaves and pack tables, then the root, then the record; a record is appended only for
a snapshot whose coverage was checked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fwstore.base.config import VERSION
from fwstore.base.errors import Conflict, Corrupt, FwstoreError, InvalidInput
from fwstore.checkpoint.coordinator import wait_for
from fwstore.checkpoint.endings import Endings
from fwstore.checkpoint.messages import outcome_key, part_key, vote_key
from fwstore.checkpoint.outcome import (
    SKIPPED,
    Committed,
    committed_message,
    failure_message,
    read_part,
)
from fwstore.checkpoint.outposts import Outposts, packs_elsewhere
from fwstore.checkpoint.part import BySite, Parts, parse_part
from fwstore.checkpoint.session import SaveRequest, Session
from fwstore.content.build import BuiltSnapshot, build_snapshot, write_manifest
from fwstore.content.contribution import Contribution
from fwstore.content.lineages import keys_of
from fwstore.format.groups import group_ranges
from fwstore.format.keys import SnapshotId
from fwstore.format.record import Commit, Foreign, Held, ObjectRef
from fwstore.format.root import Root, SnapshotRef
from fwstore.format.summary import SnapshotEntry
from fwstore.log.term import Term

_TOKEN_BYTES = 8

AfterCommit = Callable[[SnapshotEntry], int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Draft:
    """What a snapshot is to say beside its tensors.

    Attributes:
        save: Number of the save in the term.
        step: The step of the user.
        state: The plain state, when it fits the root.
        position: The stored data position.
        metrics: Finite numbers by name.
    """

    save: int
    step: int
    state: bytes | None = None
    position: bytes | None = None
    metrics: dict[str, float]


class Committer:
    """Writes manifests and commit records for one term.

    Args:
        session: The job on rank 0.
        term: Its right to write.
        referenced: Contributions of snapshots taken over by reference.
        foreign: The pins that keep packs of other lineages, beside those that the base of the term has.
        outposts: The other sites at which ranks write.
    """

    def __init__(
        self,
        session: Session,
        term: Term,
        referenced: Sequence[Contribution] = (),
        foreign: Sequence[Foreign] = (),
        outposts: Outposts | None = None,
    ) -> None:
        self._session = session
        self._term = term
        self._outposts = outposts
        self._referenced = tuple(referenced)
        # Chunks found in the base may lie in packs that the base has borrowed.
        inherited = () if term.base is None else term.base.foreign
        pins = dict.fromkeys([*inherited, *foreign])
        self._foreign: dict[str, list[Foreign]] = {pin.lineage: [] for pin in pins}
        for pin in pins:
            self._foreign[pin.lineage].append(pin)
        self.parent: SnapshotEntry | None = term.base

    def commit(self, draft: Draft, brought: BySite) -> Committed:
        """Write the manifest of a snapshot, have held what is at other sites, and append its record.

        Raises:
            InvalidInput: Ranks disagree on a tensor, leave a part of one out or bring one twice.
            Fenced: A newer job owns the run.
            Conflict: It refers to bytes that were condemned meanwhile.
        """
        access = self._session.access
        built = self._build(draft, [part for parts in brought.values() for part in parts])
        write_manifest(access.store, access.runtime, built)
        held = self._hold(built.root, brought)
        entry = self._term.commit(self._record(draft, built, held), _own_packs(built))
        self.parent = entry
        return Committed(entry, built.root.totals)

    def _build(self, draft: Draft, contributions: Sequence[Contribution]) -> BuiltSnapshot:
        brought = [*contributions, *self._referenced]
        try:
            return build_snapshot(self._root(draft), brought, self._session.access.content_hash)
        except Corrupt as error:
            raise InvalidInput(
                f"the ranks and references do not bring every element exactly once: {error.message}"
            ) from error

    def _hold(self, root: Root, brought: BySite) -> tuple[Held, ...]:
        packs = packs_elsewhere(root.lineage, brought)
        if not packs:
            return ()
        if self._outposts is None:
            raise InvalidInput(
                f"ranks wrote at another site than rank 0 ({self._session.access.store.url}), which knows no other: "
                "open the repository by a topology on every rank"
            )
        return self._outposts.hold(root.snapshot, root.term, root.save, packs)

    def _root(self, draft: Draft) -> Root:
        access = self._session.access
        token = access.runtime.ids.token(_TOKEN_BYTES)
        parent = None if self.parent is None else SnapshotRef(access.ref, self.parent.id)
        return Root(
            lineage=access.ref,
            snapshot=str(SnapshotId(draft.step, self._term.number, draft.save, token)),
            step=draft.step,
            term=self._term.number,
            save=draft.save,
            parent=parent,
            wall_time=access.runtime.clock.wall(),
            state=draft.state,
            position=draft.position,
            metrics=draft.metrics,
            software={"fwstore": VERSION, "python": sys.version.split()[0]},
        )

    def _record(self, draft: Draft, built: BuiltSnapshot, held: tuple[Held, ...]) -> Commit:
        access, root = self._session.access, built.root
        used = {lineage.uuid for lineage in built.lineages} - {access.lineage}
        groups = built.groups(access.ref) | {(self._term.number, draft.save)}
        return Commit(
            snapshot=root.snapshot,
            step=draft.step,
            save=draft.save,
            parent=None if self.parent is None else self.parent.id,
            root=ObjectRef(built.root_digest.hex(), len(built.root_object.content)),
            tables=tuple(ObjectRef(t.digest.hex(), t.size) for t in root.pack_tables),
            groups=group_ranges(groups),
            foreign=tuple(pin for uuid in sorted(used) for pin in self._foreign.get(uuid, [])),
            bytes_logical=root.totals.bytes_logical,
            bytes_written=root.totals.bytes_written,
            metrics=draft.metrics,
            position=None
            if draft.position is None
            else access.content_hash.digest(draft.position).hex(),
            holds=held,
        )


class Leader:
    """Gathers the contributions of all ranks, commits, and tells everybody.

    Args:
        session: The job on rank 0.
        committer: Writes manifests and records.
        after_commit: Called after every commit, in the background thread of the save; returns bytes freed.

    Attributes:
        endings: Forgets the messages of saves that have ended.
    """

    def __init__(self, session: Session, committer: Committer, after_commit: AfterCommit) -> None:
        self._session = session
        self._committer = committer
        self.after_commit = after_commit
        self.endings = Endings(session.coordinator)

    def commit(
        self, request: SaveRequest, draft: Draft, own: bytes, *, voted: bool
    ) -> Committed | None:
        """Bring a save to its end on all ranks; None when some rank skipped it.

        Args:
            request: The save.
            draft: What the snapshot says beside its tensors.
            own: The contribution of rank 0.
            voted: Rank 0 took part in an agreement on the holders of tensors in this save.

        Raises:
            FwstoreError: What made the save fail; every rank gets the same.
        """
        parts = None
        try:
            parts = self._gather(request, own, voted=voted)
            committed = None
            if parts is not None:
                committed = self._committer.commit(draft, parts.finish())
        except BaseException as error:
            self._answer(request.save, failure_message(error))
            raise
        else:
            self._answer(
                request.save, SKIPPED if committed is None else committed_message(committed)
            )
            return committed
        finally:
            if parts is not None:
                self.endings.contributed(request.save, agreed=voted)

    def _gather(self, request: SaveRequest, own: bytes, *, voted: bool) -> Parts | None:
        """Return what all ranks brought, or None when one skipped the save; it is parsed while more arrives."""
        runtime = self._session.access.runtime
        deadline = runtime.clock.monotonic() + runtime.limits.commit_timeout_s
        parts = Parts()
        steps: list[int] = []
        for rank in range(self._session.world_size):
            stored: bytes | None = own
            if rank:
                message = self._wait(request, rank, deadline, voted=voted)
                stored = read_part(message, rank)
            if stored is None:
                return None
            part = parse_part(stored)
            steps.append(part.step)
            parts.add(part)
        _check_steps(steps, request)
        return parts

    def _wait(self, request: SaveRequest, rank: int, deadline: float, *, voted: bool) -> bytes:
        """Return the part of a rank."""
        # A vote is of interest only while rank 0 took no part in the agreement that it asks for.
        keys = (part_key(request.save, rank), vote_key(request.save, rank))
        key, message = wait_for(
            self._session.coordinator,
            keys[:1] if voted else keys,
            self._session.access.runtime,
            deadline=deadline,
            sender=rank,
        )
        if key == keys[1]:
            raise Conflict(
                f"rank {rank} has other tensors than before, rank 0 has not; the next save settles it"
            )
        return message

    def _answer(self, save: int, outcome: bytes) -> None:
        """Tell all ranks how a save ended."""
        # What was committed stays so, and what failed has its own error, also when the channel fails.
        with suppress(FwstoreError):
            self._session.coordinator.put(outcome_key(save), outcome)


def _own_packs(built: BuiltSnapshot) -> list[str]:
    """Return the keys of the packs of the snapshot's own lineage."""
    lineages = [keys_of(lineage) for lineage in built.lineages]
    own = built.lineages.index(built.root.lineage)
    return [pack.key(lineages) for pack in built.packs if pack.lineage == own]


def _check_steps(steps: Sequence[int], request: SaveRequest) -> None:
    others = {rank: step for rank, step in enumerate(steps) if step != request.step}
    if others:
        rank, step = next(iter(others.items()))
        raise InvalidInput(
            f"ranks disagree on the step: rank 0 saves step {request.step}, rank {rank} step {step} "
            f"({len(others)} ranks differ); every rank must call save with the same steps"
        )
