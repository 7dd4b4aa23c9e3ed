"""A run: reading it, extending it, branching it off and giving it up.

Invariant: everything that changes a run goes through a term or an append to its log; nothing is changed in
place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fwstore.base.errors import AlreadyExists, FwstoreError, InvalidInput, NotFound
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.codecs import check_choice
from fwstore.checkpoint.coordinator import (
    Coordinator,
    LocalCoordinator,
    ScopedCoordinator,
    find_world,
)
from fwstore.checkpoint.jobs import (
    JobAnnouncement,
    JobSettings,
    announce_term,
    await_announcement,
    check_shared,
    make_writer,
    tell_failure,
)
from fwstore.checkpoint.leader import Committer, Draft
from fwstore.checkpoint.outposts import Outposts
from fwstore.checkpoint.part import HOME
from fwstore.checkpoint.phases import Beside, SaveTicket, commit_save, make_ticket, write_part
from fwstore.checkpoint.references import Reference, contribution_of_reference, pin_references
from fwstore.checkpoint.rendezvous import make_coordinator
from fwstore.checkpoint.session import CodecChoice, Session
from fwstore.checkpoint.shard import Shard
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.checkpoint.writer import Writer
from fwstore.format.keys import LineageKeys
from fwstore.format.names import validate_name
from fwstore.format.paths import TensorPath
from fwstore.format.record import AnyBody, Expire, Foreign
from fwstore.history import RunHistory
from fwstore.log.fold import Fold
from fwstore.log.lineage import delete
from fwstore.log.pins import pin, tag, unpin
from fwstore.log.term import Term
from fwstore.plan.retention import Keep, check_keep

if TYPE_CHECKING:
    from fwstore.repository import Repository

_ALREADY_GONE = "removed by hand"


class Run(RunHistory):
    """A named history of checkpoints; made by `Repository.run`, created at the first writer."""

    def __init__(self, repository: Repository, name: str) -> None:
        super().__init__(validate_name(name), repository.url, repository.runtime.clock, repository)
        self._repository = repository

    def __repr__(self) -> str:
        return f"Run({self.name!r} in {self._repository.url!r})"

    def __reduce__(self) -> tuple[type[Run], tuple[Repository, str]]:
        return Run, (self._repository, self.name)

    def writer(  # noqa: PLR0913 - the public face has flat keywords
        self,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        coordinator: Coordinator | None = None,
        keep: Keep | None = None,
        codec: CodecChoice = "raw",
        base: Checkpoint | None = None,
        bases: Sequence[Checkpoint] = (),
        references: Mapping[str, Checkpoint] | None = None,
    ) -> Writer:
        """Take the next term of the run and return this rank's writer; every rank calls it.

        An older job that still writes gets `Fenced`.

        Args:
            rank: This process; with `world_size`, or found from torch.distributed, RANK and WORLD_SIZE.
            world_size: How many processes save together.
            coordinator: How the ranks talk; None uses what the job has.
            keep: Retention, applied by rank 0 after every commit, garbage collection included.
            codec: "raw", "zstd", or "auto" to encode only where the store is slower than the codec.
            base: Continue this checkpoint instead of the newest one; later ones become a branch.
            bases: Other checkpoints in which to look for unchanged chunks.
            references: By top-level key, checkpoints whose tensors every save takes over by reference.

        Raises:
            Conflict: Other jobs kept winning the election.
            Unavailable: A rank did not come in time.
            InvalidInput: No such codec; ranks cannot meet or share no store; `bases` or `references` are of another repository.
        """
        check_choice(codec)
        check_keep(keep)
        borrowed = self._references(references or {}, bases)
        channel = self._channel(rank, world_size, coordinator)
        term, announced = self._meet(channel, base)
        access = self._repository.access(announced.name, announced.generation, announced.lineage)
        # Terms are never given twice, so nothing that another writer left at the channel is heard.
        channel = ScopedCoordinator(channel, f"t{announced.term}")
        site = self._muster(channel, access, announced)
        continued, lends = self._continued(access, announced, site)
        session = Session(
            access=access,
            coordinator=channel,
            term=announced.term,
            codec=codec,
            site=site,
            reads=lambda entry: self._reading(access, near=site == HOME and not entry.holds),
        )
        settings = JobSettings(
            codec=codec,
            # What other runs lent is pinned at home alone.
            bases=[checkpoint.manifest for checkpoint in bases] if site == HOME else [],
            lends=lends,
            references=borrowed[: len(references or {})],
            foreign=self._pin(borrowed, access, term),
            outposts=self._outposts(access, announced.home),
            after_commit=self._repository.retention(access, keep),
        )
        return make_writer(session, self._repository.pool, settings, continued, term)

    def fork(self, name: str, *, at: int | None = None) -> Run:
        """Create another run that begins with a checkpoint of this one; no tensor byte is copied.

        Args:
            name: Of the new run.
            at: Step to begin with; None takes the newest.

        Raises:
            AlreadyExists: A run of that name exists and has saved something.
        """
        checkpoint = self.latest() if at is None else self[at]
        # A run without a save is what a fork leaves that died: this one takes its place.
        found = self._repository.find(name)
        if found is not None and _has_saved(found.log.refresh()):
            raise AlreadyExists(f"run {name} exists in {self._repository.url}; choose another name")
        term = self._repository.take_term(name, None)
        if term.base is not None:
            raise AlreadyExists(f"run {name} was begun by another job meanwhile")
        access = self._repository.access(term.keys.name, term.keys.generation, term.lineage)
        reference = Reference((), checkpoint.access, checkpoint.entry, checkpoint.manifest)
        foreign = pin_references([reference], access, term, self._repository.borrowed([reference]))
        session = Session(access=access, coordinator=LocalCoordinator(), term=term.number)
        root = checkpoint.manifest.root
        draft = Draft(
            save=1,
            step=checkpoint.step,
            state=root.state,
            position=root.position,
            metrics=dict(checkpoint.metrics),
        )
        committer = Committer(session, term, [contribution_of_reference(reference)], foreign)
        committer.commit(draft, {})
        return self._repository.run(name)

    def promote(self, branch: str) -> Checkpoint:
        """Take a term that continues a branch, so that it becomes the canonical history.

        What `superseded_by` tells becomes a branch itself; a job that still writes gets `Fenced`.

        Args:
            branch: Its name, from `branches`.

        Returns:
            The newest checkpoint of the branch.

        Raises:
            NotFound: There is no such branch.
            Expired: It was collected meanwhile.
        """
        head = self._head_of(branch, self._listing())
        self._repository.take_term(self.name, head.id)
        return head

    def delete(self, reason: str = "deleted", *, lift_pins: bool = False) -> None:
        """Delete the run; its name may be used again, its bytes go with the next garbage collection.

        Args:
            reason: For people.
            lift_pins: Lift the pins of its checkpoints first.

        Raises:
            NotFound: There is no such run.
            InvalidInput: It has pins, which are named.
        """
        delete(self._access().log, reason, lift_pins=lift_pins)

    def remove(self, step: int) -> None:
        """Give up one checkpoint; its bytes go with the next garbage collection.

        Raises:
            NotFound: There is no checkpoint of that step at this site.
            InvalidInput: It is pinned or tagged.
        """
        access, checkpoint = self._access(), self[step]
        entry = checkpoint.entry

        def make(fold: Fold) -> AnyBody | None:
            if entry.id not in fold.entries and checkpoint.elsewhere:
                raise NotFound(
                    f"step {step} of run {self.name} is not at this site but at {', '.join(checkpoint.sites)}; "
                    "give it up there"
                )
            held = [
                p.reason for p in fold.pins.values() if p.snapshot == entry.id and not p.base_of
            ]
            held += [f"tag {name}" for name, snapshot in fold.tags.items() if snapshot == entry.id]
            if held:
                raise InvalidInput(
                    f"step {step} of run {self.name} is kept by: {', '.join(held)}; lift that first"
                )
            return None if entry.id in fold.expired else Expire((entry.id,), _ALREADY_GONE)

        access.log.append(make)

    def pin(self, step: int, reason: str) -> str:
        """Keep a checkpoint whatever retention says; return the id that lifts the pin."""
        return pin(self._access().log, self[step].id, reason)

    def unpin(self, pin_id: str) -> None:
        """Lift a pin."""
        unpin(self._access().log, pin_id)

    def tag(self, name: str, step: int | None) -> None:
        """Give a checkpoint a name that also keeps it; None forgets the name."""
        tag(self._access().log, name, None if step is None else self[step].id)

    def begin_save(self, step: int | None = None, *, replace: bool = True) -> SaveTicket:
        """Take the next term for one save in three phases; the run is created if needed.

        Args:
            step: The step; None takes the one after the newest.
            replace: Whether a checkpoint of that step may exist; it is superseded at the commit.

        Raises:
            AlreadyExists: The step exists and must not be replaced.
        """
        if (
            not replace
            and step is not None
            and any(c.step == step for c in self._checkpoints_or_none())
        ):
            raise AlreadyExists(f"step {step} of run {self.name} exists and is not to be replaced")
        term = self._repository.take_term(self.name, None)
        access = self._repository.access(term.keys.name, term.keys.generation, term.lineage)
        return make_ticket(access, term, step, replace=replace)

    def write_part(
        self, ticket: SaveTicket, tensors: Mapping[TensorPath, Shard], *, rank: int
    ) -> bytes:
        """Write the pieces that one rank brings to a save; return its contribution for the commit."""
        access = self._repository.access(ticket.name, ticket.generation, ticket.lineage)
        away = self._repository.posts.away_from(ticket.home, access.keys)
        base = None
        if ticket.base is not None:
            # What is not complete and on offer here lends nothing: its packs are elsewhere, or may go.
            entries = {entry.id: entry for entry in access.log.refresh().live() if not entry.holds}
            entry = entries.get(ticket.base)
            base = None if entry is None else Checkpoint(access, entry).manifest
        site = HOME if away is None else away[0].uuid
        return write_part(access, ticket, tensors, rank, base, site)

    def commit_save(
        self,
        ticket: SaveTicket,
        parts: Sequence[bytes],
        state: Any = None,
        *,
        metrics: Mapping[str, float] | None = None,
        annotations: Mapping[str, bytes] | None = None,
    ) -> Checkpoint:
        """Make the parts of a save one checkpoint.

        Args:
            ticket: What `begin_save` returned.
            parts: What `write_part` returned, from every rank.
            state: The plain state, with `TensorSlot` where tensors stand.
            metrics: Numbers by name; those that are not finite are left out.
            annotations: Named byte strings to be kept with the checkpoint.

        Raises:
            Fenced: A newer job owns the run.
        """
        access = self._repository.access(ticket.name, ticket.generation, ticket.lineage)
        beside = Beside(
            state={} if state is None else state,
            metrics=metrics or {},
            annotations=annotations or {},
        )
        outposts = self._outposts(access, ticket.home)
        entry = commit_save(access, ticket, parts, beside, outposts)
        return Checkpoint(self._reading(access, near=not entry.holds), entry)

    def _channel(
        self, rank: int | None, world_size: int | None, coordinator: Coordinator | None
    ) -> Coordinator:
        """Return how the ranks talk: as they were told to, else by what the job has."""
        runtime = self._repository.runtime
        world = find_world(runtime, rank, world_size)
        if coordinator is not None:
            return coordinator
        keys = LineageKeys(self.name, 1)
        return make_coordinator(runtime, world, self._repository.store, keys)

    def _muster(self, channel: Coordinator, access: Access, announced: JobAnnouncement) -> str:
        """Make sure that this rank belongs to the job; return its site where that is not the home of the job."""
        if channel.world_size == 1:
            return HOME
        away = None
        try:
            if channel.rank:
                away = self._repository.posts.away_from(announced.home, access.keys)
        except FwstoreError as error:
            tell_failure(channel, error)
            raise
        check_shared(access, access.store if away is None else away[1].store, announced, channel)
        return HOME if away is None else away[0].uuid

    def _continued(
        self, access: Access, announced: JobAnnouncement, site: str
    ) -> tuple[Checkpoint | None, bool]:
        """Return what the term continues, and whether its packs at this site may be used again."""
        entry, lends = announced.base, announced.lends
        if entry is not None and site != HOME:
            live = {found.id: found for found in access.log.refresh().live()}
            entry = live.get(entry.id, entry)
            lends = entry.id in live and not entry.holds
        if entry is None:
            return None, lends
        return Checkpoint(self._reading(access, near=lends), entry), lends

    def _pin(
        self, borrowed: Sequence[Reference], access: Access, term: Term | None
    ) -> Sequence[Foreign]:
        """Pin on rank 0 what the job borrows from other runs."""
        if term is None:
            return ()
        return pin_references(borrowed, access, term, self._repository.borrowed(borrowed))

    def _outposts(self, access: Access, home: str) -> Outposts | None:
        """Return the other sites at which ranks of a job may write; None for a store alone."""
        if len(self._repository.topology.sites) == 1:
            return None
        log_at = partial(self._repository.posts.log_at, access.keys)
        return Outposts(access.log, home, log_at, access.content_hash)

    def _reading(self, access: Access, *, near: bool) -> Access:
        """Return what reads a snapshot: this site alone where it has all of it, else the others too."""
        return access if near else self._repository.through(access)

    def _meet(
        self, channel: Coordinator, base: Checkpoint | None
    ) -> tuple[Term | None, JobAnnouncement]:
        repository = self._repository
        if channel.rank:
            return None, await_announcement(channel, repository.runtime)
        wanted = None if base is None else base.id

        def take() -> Term:
            return repository.replication.watch_over(repository.take_term(self.name, wanted))

        return announce_term(channel, repository.store, take)

    def _references(
        self, references: Mapping[str, Checkpoint], bases: Sequence[Checkpoint]
    ) -> list[Reference]:
        named: list[tuple[TensorPath, Checkpoint]] = [((k,), c) for k, c in references.items()]
        named += [((), checkpoint) for checkpoint in bases]
        for _, checkpoint in named:
            self._repository.check_own(checkpoint)
        return [Reference(prefix, c.access, c.entry, c.manifest) for prefix, c in named]


def _has_saved(fold: Fold) -> bool:
    return fold.closed is None and bool(fold.saves)
