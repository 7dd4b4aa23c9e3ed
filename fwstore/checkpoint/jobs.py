"""Begins a writing job: wins the term on rank 0, tells the other ranks, builds every rank's writer.

Invariant: every rank sees the vote of the leader's term in its own view of the store before it writes, so a
directory that is not shared between hosts is found out before a byte is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from fwstore.base.errors import Corrupt, InvalidInput, NotFound
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.coordinator import Coordinator, wait_for
from fwstore.checkpoint.engine import SaveEngine
from fwstore.checkpoint.leader import AfterCommit, Committer, Leader
from fwstore.checkpoint.messages import part_key
from fwstore.checkpoint.outcome import failure_message, read_part
from fwstore.checkpoint.outposts import Outposts
from fwstore.checkpoint.references import Reference, contribution_of_reference
from fwstore.checkpoint.session import CodecChoice, Session
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.checkpoint.writer import Writer
from fwstore.content.manifest import Manifest
from fwstore.format.record import Foreign
from fwstore.format.summary import SnapshotEntry
from fwstore.format.vote import VOTE_BYTES_MAX, encode_vote, parse_vote
from fwstore.log.tail import get_parsed
from fwstore.log.term import Term
from fwstore.sched import BufferPool, Runtime
from fwstore.store.base import Store

_LOOKS, _LOOK_S = 4, 0.5
_JOB_KEY = "job"
_SEEN = b"P"
_FIRST_SAVE = 1


class JobAnnouncement(msgspec.Struct, frozen=True):
    """What rank 0 tells the others.

    Attributes:
        name: Of the lineage.
        generation: Of the name.
        lineage: Uuid.
        home: Uuid of the site of rank 0.
        term: The term.
        base: What it continues.
        lends: Whether the base lends packs at home.
        vote: The vote that they must see.
    """

    name: str
    generation: int
    lineage: str
    home: str
    term: int
    base: SnapshotEntry | None
    lends: bool
    vote: bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class JobSettings:
    """What a writer was asked for.

    Attributes:
        codec: How chunks are encoded.
        bases: Manifests of other snapshots to look for known chunks in.
        lends: Whether the base may lend chunks: its packs are in this store and stay.
        references: Snapshots whose tensors are taken over by reference.
        foreign: Pins that keep packs of other lineages.
        outposts: The other sites at which ranks may write.
        after_commit: Called on rank 0 after every commit; returns bytes freed.
    """

    codec: CodecChoice = "raw"
    bases: Sequence[Manifest] = ()
    lends: bool = True
    references: Sequence[Reference] = ()
    foreign: Sequence[Foreign] = ()
    outposts: Outposts | None = None
    after_commit: AfterCommit = field(default=lambda _: 0)


def announce_term(
    coordinator: Coordinator, store: Store, take: Callable[[], Term]
) -> tuple[Term, JobAnnouncement]:
    """Win the term on rank 0 and tell the others; a failure reaches them too.

    Raises:
        InvalidInput: Another writer met at this coordinator before; its ranks might be taken for ours.
    """
    if coordinator.world_size > 1 and coordinator.poll(_JOB_KEY) is not None:
        raise InvalidInput(
            "another writer has met at this coordinator before, and a rank may have heard that one: every writer "
            "needs a coordinator of its own"
        )
    try:
        term = take()
        vote = _read_vote(store, term.keys.vote(term.number)) or b""
    except BaseException as error:
        coordinator.put(_JOB_KEY, failure_message(error))
        raise
    found = JobAnnouncement(
        name=term.keys.name,
        generation=term.keys.generation,
        lineage=term.lineage,
        home=home_of(term),
        term=term.number,
        base=term.base,
        lends=term.lends,
        vote=vote,
    )
    coordinator.put(_JOB_KEY, _SEEN + msgspec.msgpack.encode(found))
    return term, found


def await_announcement(coordinator: Coordinator, runtime: Runtime) -> JobAnnouncement:
    """Wait for what rank 0 announces.

    Raises:
        FwstoreError: What kept rank 0 from taking the term.
    """
    deadline = runtime.clock.monotonic() + runtime.limits.commit_timeout_s
    _, message = wait_for(coordinator, (_JOB_KEY,), runtime, deadline=deadline)
    return msgspec.msgpack.decode(read_part(message, 0) or b"", type=JobAnnouncement)


def home_of(term: Term) -> str:
    """Return the uuid of the site at which a term was opened."""
    return term.log.fold.opens[term.number].home


def check_shared(
    access: Access, home: Store, announced: JobAnnouncement, coordinator: Coordinator
) -> None:
    """Make sure that this rank sees what rank 0 wrote; where it does not, the first save ends for all.

    Args:
        access: The lineage at the site of this rank.
        home: The store of the home of the job, as this rank has it.
        announced: What rank 0 told.
        coordinator: How the ranks talk.

    Raises:
        InvalidInput: The store of this rank is not the one of rank 0.
    """
    key = access.keys.vote(announced.term)
    if not _sees(home, access.runtime, key, announced.vote):
        error = InvalidInput(
            f"{home.url} is not shared by all ranks: {key}, which rank 0 wrote, is not there on rank "
            f"{coordinator.rank}; use a directory on a shared file system, or an object store"
        )
        tell_failure(coordinator, error)
        raise error


def tell_failure(coordinator: Coordinator, error: BaseException) -> None:
    """Let the first save end for all, because this rank cannot take part."""
    coordinator.put(part_key(_FIRST_SAVE, coordinator.rank), failure_message(error))


def _sees(store: Store, runtime: Runtime, key: str, vote: bytes) -> bool:
    """Return whether a vote is there: an answer that is a little older than the vote is not one of another store."""
    for look in range(_LOOKS):
        if look:
            runtime.clock.sleep(_LOOK_S)
        if (_read_vote(store, key) or b"") == vote:
            return True
    return False


def _read_vote(store: Store, key: str) -> bytes | None:
    """Return a vote as it is stored: damage on the way must not be taken for another store."""
    vote = get_parsed(store, key, VOTE_BYTES_MAX, parse_vote)
    return None if vote is None else encode_vote(vote)


def make_writer(
    session: Session,
    pool: BufferPool,
    settings: JobSettings,
    base: Checkpoint | None,
    term: Term | None,
) -> Writer:
    """Return the writer of one rank.

    Args:
        session: The job as this rank holds it.
        pool: Staging memory.
        settings: What was asked for.
        base: The checkpoint that the job continues.
        term: The right to write, on rank 0.
    """
    parent = None if base is None else _manifest_or_none(base)
    lenders = [*settings.bases, *([parent] if parent is not None and settings.lends else [])]
    engine = SaveEngine(session, pool, parent, lenders)
    leader = None
    if term is not None:
        referenced = [contribution_of_reference(reference) for reference in settings.references]
        committer = Committer(session, term, referenced, settings.foreign, settings.outposts)
        leader = Leader(session, committer, settings.after_commit)
    return Writer(engine, leader, base)


def _manifest_or_none(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest of the parent; without it the next save writes everything anew.

    All ranks must come to the same answer, because they take the grids from it: a store that does not answer
    one of them is an error.
    """
    try:
        return checkpoint.manifest
    except (Corrupt, NotFound):
        # A damaged parent must not keep the run from going on; `verify` reports it.
        return None
