"""Marking: which keys no root needs any more, and condemning them.

Invariant: a list is condemned only if, at the slot of its record, no root lists a key of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fwstore.base.errors import Conflict, Corrupt, Expired, NotFound
from fwstore.base.ids import write_id
from fwstore.format.condemned import CONDEMNED_KEYS_MAX, CondemnedKey, CondemnedList
from fwstore.format.groups import GroupRange, group_ranges, groups_meet
from fwstore.format.keys import parse_pack_key, parse_snapshot_id
from fwstore.format.record import AnyBody, Condemn
from fwstore.format.summary import CondemnEntry, HoldEntry, SnapshotEntry
from fwstore.log.condemned import read_condemned, write_condemned
from fwstore.log.fold import Fold, uses_of
from fwstore.log.log import Log
from fwstore.plan.mark import Garbage, KeySet, plan_garbage

_MARKS_MAX = 20
_SNAPSHOTS_PER_RECORD = 64
# So many tables are read by a collection after a commit, however many snapshots a run keeps.
ROOTS_READ_MAX = 128
UNUSED_PACK = "pack that only given-up snapshots use"
UNUSED_MANIFEST = "manifest of a given-up snapshot"

Root = SnapshotEntry | HoldEntry


@dataclass(frozen=True, slots=True)
class Given:
    """Snapshots given up, or orphans, and the keys that may go with them."""

    snapshots: tuple[SnapshotEntry, ...]
    candidates: tuple[Garbage, ...]

    @property
    def groups(self) -> tuple[GroupRange, ...]:
        """The groups that the candidates belong to, as they are."""
        return group_ranges({(g.term, g.save) for g in self.candidates}, limit=2**31)


class Survey:
    """Marks what is garbage in one lineage at one site.

    Args:
        log: The log; folded before.
        roots_max: How many roots are read for one mark; None reads all that may need a candidate. Packs that a
            root beyond that may need are spared: a full collection finds them as orphans.
    """

    def __init__(self, log: Log, roots_max: int | None = None) -> None:
        self._log = log
        self._roots_max = roots_max
        self._needed = KeySet()
        self._condemned = KeySet()
        self._taken: set[str] = set()

    def roots(self, fold: Fold) -> dict[str, Root]:
        """Return what must stay, by name."""
        roots: dict[str, Root] = {name: fold.entries[name] for name in fold.roots()}
        return roots | dict(fold.holds)

    def given_up(self, fold: Fold) -> list[SnapshotEntry]:
        """Return the snapshots that nothing protects any more, in the order of their records."""
        roots = self.roots(fold)
        return [entry for name, entry in tuple(fold.entries.items()) if name not in roots]

    def batches(self, entries: Sequence[SnapshotEntry]) -> Iterator[Given]:
        """Yield snapshots with the keys that were theirs, a bounded number of keys at a time."""
        snapshots: list[SnapshotEntry] = []
        candidates: list[Garbage] = []
        for entry in entries:
            own = self._candidates(entry)
            while own:
                room = CONDEMNED_KEYS_MAX - len(candidates)
                candidates += own[:room]
                own = own[room:]
                if own:
                    # The snapshot ends with the last of its keys, so that a crash forgets none.
                    yield Given(tuple(snapshots), tuple(candidates))
                    snapshots, candidates = [], []
            snapshots.append(entry)
            if len(snapshots) >= _SNAPSHOTS_PER_RECORD:
                yield Given(tuple(snapshots), tuple(candidates))
                snapshots, candidates = [], []
        if snapshots:
            yield Given(tuple(snapshots), tuple(candidates))

    def mark(self, fold: Fold, given: Given) -> list[Garbage]:
        """Return the candidates that no root needs and no list has condemned.

        An intent keeps its groups whole: the tables of what is being copied are written after the packs.
        """
        groups = given.groups
        roots = self.roots(fold)
        intents = [r for r in roots.values() if isinstance(r, HoldEntry) and r.intent]
        coming = group_ranges([g for r in intents for g in uses_of(r).groups], limit=2**31)
        for entry in tuple(fold.condemned.values()):
            if entry.token not in self._taken and groups_meet(entry.groups, groups):
                self._taken.add(entry.token)
                self._condemned.add(row.key for row in self.read_list(entry))
        manifests = {_snapshot_of(root) for root in roots.values()}
        packs, free = [], []
        for candidate in given.candidates:
            if candidate.key.startswith(self._log.keys.packs):
                if not groups_meet(coming, [_group_of(candidate)]):
                    packs.append(candidate)
            elif candidate.snapshot not in manifests:
                free.append(candidate)
        seqs = [entry.seq for entry in given.snapshots] or [0]
        listing = [root for root in roots.values() if root not in intents]
        free += self._unneeded(packs, _by_distance(listing, min(seqs), max(seqs)))
        return plan_garbage(free, self._condemned)

    def skip(self, garbage: Iterable[Garbage]) -> None:
        """Treat garbage as condemned, so that a plan without writing counts it once."""
        self._condemned.add(candidate.key for candidate in garbage)

    def condemn(
        self, given: Given, before: Callable[[Sequence[SnapshotEntry]], None] = lambda _: None
    ) -> list[Garbage]:
        """Mark, write the list, append its record; return what was condemned.

        Args:
            given: What may go.
            before: Called with the snapshots that end, before their record is appended.

        Raises:
            Conflict: New roots went on appearing.
        """
        log = self._log
        for _ in range(_MARKS_MAX):
            fold = log.fold
            roots = self.roots(fold)
            ending = [entry for entry in given.snapshots if entry.id not in roots]
            garbage = self.mark(fold, given)
            if not garbage and not any(entry.id in fold.entries for entry in ending):
                return []
            before(ending)
            body = self._write(garbage, ending)
            marked = frozenset([*roots, *fold.condemned])
            if log.append(_unless_changed(self, body, marked)) is not None:
                return garbage
        raise Conflict(f"roots of {log.keys.label} went on changing during {_MARKS_MAX} marks")

    def read_list(self, entry: CondemnEntry) -> tuple[CondemnedKey, ...]:
        """Return the keys of a condemned list."""
        return read_condemned(self._log.store, self._log.keys, self._log.lineage, entry)

    def _unneeded(self, packs: Sequence[Garbage], roots: Sequence[Root]) -> list[Garbage]:
        """Return the packs that no root needs; the roots are read nearest first, as far as it matters."""
        left, count = self._roots_max, 1
        while True:
            packs = plan_garbage(packs, self._needed)
            groups = group_ranges({(pack.term, pack.save) for pack in packs}, limit=2**31)
            unread = [
                root
                for root in roots
                if _name_of(root) not in self._taken and groups_meet(uses_of(root).groups, groups)
            ]
            if not unread or left == 0:
                return _beyond(packs, unread)
            batch = unread[: count if left is None else min(count, left)]
            for found in self._log.runtime.scheduler.map(self._packs, batch):
                self._needed.add(key for key, _ in found)
            self._taken.update(map(_name_of, batch))
            left = None if left is None else left - len(batch)
            count *= 2

    def _write(self, garbage: Sequence[Garbage], ending: Sequence[SnapshotEntry]) -> Condemn:
        log = self._log
        token = write_id(log.runtime.ids)
        rows = tuple(CondemnedKey(g.key, g.size, g.reason) for g in garbage)
        listing = write_condemned(
            log.store, log.keys, CondemnedList(log.lineage, token, rows), log.runtime
        )
        return Condemn(
            token=token,
            listing=listing,
            count=len(rows),
            bytes=sum(row.size for row in rows),
            groups=group_ranges({(g.term, g.save) for g in garbage}),
            snapshots=tuple(entry.id for entry in ending),
        )

    def _candidates(self, entry: SnapshotEntry) -> list[Garbage]:
        # Packs first: their tables must stay until the last of them is condemned.
        log = self._log
        found = []
        try:
            packs = self._packs(entry)
        except Expired:
            # Someone removed the tables; what they listed is found as orphans.
            packs = []
        for key, size in packs:
            pack = parse_pack_key(key)
            found.append(Garbage(key, size, UNUSED_PACK, entry.id, pack.term, pack.save))
        found += [
            Garbage(info.key, info.size, UNUSED_MANIFEST, entry.id, entry.term, entry.save)
            for info in log.store.list(log.keys.snapshot(entry.id))
        ]
        return found

    def _packs(self, root: Root) -> list[tuple[str, int]]:
        log, uses = self._log, uses_of(root)
        try:
            packs = log.read_packs(log.store, log.keys, uses)
        except NotFound as error:
            raise log.why_missing(_snapshot_of(root)) from error
        for group in {(pack.term, pack.save) for pack in (parse_pack_key(key) for key, _ in packs)}:
            if not groups_meet(uses.groups, [GroupRange(group, group)]):
                raise Corrupt(
                    f"the record of {uses.snapshot} does not list group {group} of its pack table; nothing "
                    "is collected until that is explained"
                )
        return packs


def _snapshot_of(root: Root) -> str:
    return root.id if isinstance(root, SnapshotEntry) else root.snapshot


def _name_of(root: Root) -> str:
    """What tells a root from every other, one that came back under its name too."""
    return f"{_snapshot_of(root)} {root.seq}"


def _by_distance(roots: Iterable[Root], first: int, last: int) -> list[Root]:
    """Return roots by the distance of their records from a range of slots: neighbours share most packs."""
    return sorted(roots, key=lambda root: max(first - root.seq, root.seq - last, 0))


def _beyond(packs: list[Garbage], unread: Sequence[Root]) -> list[Garbage]:
    """Return the packs of which no root that was not read has a group."""
    met = group_ranges([span for root in unread for span in uses_of(root).groups], limit=2**31)
    return [pack for pack in packs if not groups_meet(met, [_group_of(pack)])]


def _group_of(candidate: Garbage) -> GroupRange:
    return GroupRange((candidate.term, candidate.save), (candidate.term, candidate.save))


def _unless_changed(
    survey: Survey, body: Condemn, marked: frozenset[str]
) -> Callable[[Fold], AnyBody | None]:
    """Return the record maker: nothing when what came since the mark shares a group with the list."""
    own = [(found.term, found.save) for found in map(parse_snapshot_id, body.snapshots)]
    groups = group_ranges([*body.groups, *own], limit=2**31)

    def make(fold: Fold) -> AnyBody | None:
        met = [
            *[
                uses_of(root).groups
                for name, root in survey.roots(fold).items()
                if name not in marked
            ],
            *[entry.groups for token, entry in fold.condemned.items() if token not in marked],
        ]
        return None if any(groups_meet(one, groups) for one in met) else body

    return make
