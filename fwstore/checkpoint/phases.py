"""Saving in three phases, for orchestrators that bring their own messages: begin, write parts, commit.

Invariant: a ticket is plain data; whoever holds it may write parts, and only a commit under its term counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fwstore.base.errors import AlreadyExists, Fenced, InvalidInput
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.catalogue import make_catalogue
from fwstore.checkpoint.coordinator import LocalCoordinator
from fwstore.checkpoint.jobs import home_of
from fwstore.checkpoint.known import Known, known_from
from fwstore.checkpoint.leader import Committer, Draft
from fwstore.checkpoint.outposts import Outposts
from fwstore.checkpoint.part import HOME, Part, Parts, encode_part, parse_part
from fwstore.checkpoint.reserved import STATE_PATH, annotation_path, bytes_shard, refuse_reserved
from fwstore.checkpoint.saveplan import make_plan
from fwstore.checkpoint.session import Session, finite_metrics
from fwstore.checkpoint.shard import Shard
from fwstore.checkpoint.sources import batches_of
from fwstore.checkpoint.states import INLINE_STATE_BYTES_MAX
from fwstore.content.contribution import (
    Contribution,
    contribution_of,
    encode_contribution,
)
from fwstore.content.manifest import Manifest
from fwstore.content.packing import PackNaming
from fwstore.content.write import WriteRequest, write_chunks
from fwstore.format.paths import TensorPath
from fwstore.format.record import AnyBody, Expire
from fwstore.format.state import encode_state
from fwstore.format.summary import SnapshotEntry
from fwstore.log.fold import Fold
from fwstore.log.history import history
from fwstore.log.term import Term

_ONLY_SAVE = 1


@dataclass(frozen=True, kw_only=True)
class SaveTicket:
    """The right to write the parts of one checkpoint; may be pickled and sent to other processes.

    Attributes:
        name: Name of the run.
        generation: Generation of the name.
        lineage: Uuid of the run.
        home: Uuid of the site whose log takes its commit.
        term: The term that was won for this save.
        step: The step to be saved.
        base: Id of the checkpoint that it continues, or None.
        replaces: Ids of checkpoints of the same step that it supersedes.
    """

    name: str
    generation: int
    lineage: str
    home: str
    term: int
    step: int
    base: str | None
    replaces: tuple[str, ...]


def make_ticket(access: Access, term: Term, step: int | None, *, replace: bool) -> SaveTicket:
    """Return the ticket of a term.

    Raises:
        AlreadyExists: The step is on offer and must not be replaced.
    """
    entries = history(term.log.refresh())
    chosen = (max((e.step for e in entries), default=-1) + 1) if step is None else step
    same = tuple(entry.id for entry in entries if entry.step == chosen)
    if same and not replace:
        raise AlreadyExists(f"step {chosen} of {access.keys.name} exists and is not to be replaced")
    return SaveTicket(
        name=access.keys.name,
        generation=access.keys.generation,
        lineage=access.lineage,
        home=home_of(term),
        term=term.number,
        step=chosen,
        base=None if term.base is None else term.base.id,
        replaces=same,
    )


def write_part(
    access: Access,
    ticket: SaveTicket,
    tensors: Mapping[TensorPath, Shard],
    rank: int,
    base: Manifest | None,
    site: str,
) -> bytes:
    """Write the pieces that one rank brings, straight from live memory; return its part.

    Pieces without a layout are taken as exclusive: no other rank brings the same elements.
    """
    refuse_reserved(tensors)
    naming = PackNaming(lineage=access.ref, term=ticket.term, save=_ONLY_SAVE, rank=rank)
    brought = encode_contribution(_write(access, naming, tensors, base))
    return encode_part(Part(ticket.step, (brought,), site))


def _write(
    access: Access, naming: PackNaming, tensors: Mapping[TensorPath, Shard], base: Manifest | None
) -> Contribution:
    catalogue = make_catalogue(tensors, {})
    grids = {} if base is None else {info.path: info for info in base.tensors()}
    plan = make_plan(catalogue, grids, naming.rank, None)
    known = Known.nothing(plan) if base is None else known_from([base], access.footers, plan)
    written = write_chunks(
        access.store,
        access.runtime,
        WriteRequest(
            batches=batches_of(plan, list(plan.live(catalogue)), known),
            total_bytes=plan.size_bytes,
            tensors=plan.tensors,
            naming=naming,
            content_hash=access.content_hash,
            known=known.places,
        ),
    )
    return contribution_of(
        naming.rank,
        plan.tensors,
        written.places,
        bytes_written=sum(pack.size for pack in written.packs),
        bytes_reused=max(0, plan.size_bytes - written.tally.bytes_written_raw),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Beside:
    """What a checkpoint has beside its tensors.

    Attributes:
        state: The plain state, with `TensorSlot` where tensors stand.
        metrics: Numbers by name.
        annotations: Named byte strings.
    """

    state: Any
    metrics: Mapping[str, float]
    annotations: Mapping[str, bytes]


def commit_save(
    access: Access,
    ticket: SaveTicket,
    parts: Sequence[bytes],
    beside: Beside,
    outposts: Outposts | None,
) -> SnapshotEntry:
    """Write the manifest of a save and append its record, then give up what it replaces.

    Raises:
        Fenced: A newer job owns the run.
        InvalidInput: Parts contradict each other.
    """
    term = _term_of(access, ticket)
    session = Session(access=access, coordinator=LocalCoordinator(), term=ticket.term)
    encoded = encode_state(beside.state)
    reserved = {
        annotation_path(name): bytes_shard(content) for name, content in beside.annotations.items()
    }
    inline = encoded if len(encoded) <= INLINE_STATE_BYTES_MAX else None
    if inline is None:
        reserved[STATE_PATH] = bytes_shard(encoded)
    extra = _write(access, session.naming(_ONLY_SAVE), reserved, None)
    gathered = Parts()
    for part in parts:
        gathered.add(parse_part(part))
    brought = gathered.finish()
    brought[HOME].append(extra)
    draft = Draft(
        save=_ONLY_SAVE, step=ticket.step, state=inline, metrics=finite_metrics(beside.metrics)
    )
    entry = Committer(session, term, outposts=outposts).commit(draft, brought).entry
    _expire(term, ticket.replaces)
    return entry


def _term_of(access: Access, ticket: SaveTicket) -> Term:
    fold = access.log.refresh()
    if fold.fence > ticket.term:
        raise Fenced(
            f"a newer save of {access.keys.name} has begun; the ticket of term {ticket.term} is void"
        )
    if ticket.term not in fold.opens:
        raise InvalidInput(
            f"the ticket of term {ticket.term} does not belong to {access.keys.label}"
        )
    base = None if ticket.base is None else fold.entries.get(ticket.base)
    return Term(ticket.term, base, access.log, [access.log])


def _expire(term: Term, snapshots: Sequence[str]) -> None:
    def make(fold: Fold) -> AnyBody | None:
        gone = tuple(s for s in snapshots if s in fold.entries and s not in fold.expired)
        return Expire(gone, "replaced by a newer save of the same step") if gone else None

    if snapshots:
        term.log.append(make)
