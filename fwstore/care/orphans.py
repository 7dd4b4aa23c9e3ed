"""What no record knows: packs and manifests of saves that died, late copies, old coordination objects.

Invariant: something that a writer may still commit is left alone (`is_dead`), and so is whatever has a
name that fwstore does not make.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from fwstore.base.errors import Corrupt
from fwstore.care.survey import Given, Survey
from fwstore.format.condemned import CONDEMNED_KEYS_MAX
from fwstore.format.groups import GroupRange, groups_meet
from fwstore.format.keys import (
    pack_key_of_staged,
    parse_hold_table,
    parse_pack_key,
    parse_snapshot_id,
)
from fwstore.log.fold import Fold, uses_of
from fwstore.log.log import Log
from fwstore.plan.mark import Garbage, is_dead
from fwstore.store.base import ObjectInfo

DEAD_PACK = "pack of a save that was never recorded"
DEAD_MANIFEST = "manifest of a save that was never recorded"
LATE_COPY = "condemned key that turned up again"
COORDINATION = "message between the ranks of a dead job"
STAGED_PART = "part of a copy that nobody goes on with"
HOLD_TABLE = "list of the packs of a hold that has ended"

_COORDINATION_MARGIN_S = 86_400.0


def find_orphans(log: Log, fold: Fold) -> Iterator[Given]:
    """Yield packs and manifests that may be orphans, a bounded number at a time: two LISTs of packs, one of manifests."""
    batch: list[Garbage] = []
    accounted = _accounted(log, fold)
    for prefix in (log.keys.packs, log.keys.snapshots):
        for info in log.store.list(prefix):
            found = _orphan(log, fold, info)
            if found is not None and (found.reason, found.term, found.save) not in accounted:
                batch.append(found)
            if len(batch) >= CONDEMNED_KEYS_MAX:
                yield Given((), tuple(batch))
                batch = []
    if batch:
        yield Given((), tuple(batch))


def late_copies(survey: Survey, fold: Fold, given: Given) -> list[Garbage]:
    """Return candidates that a swept list names: they were condemned and deleted, and landed late."""
    groups = given.groups
    wanted = {candidate.key: candidate for candidate in given.candidates}
    found = []
    for entry in tuple(fold.condemned.values()):
        if entry.swept and groups_meet(entry.groups, groups):
            found += [wanted[row.key] for row in survey.read_list(entry) if row.key in wanted]
    return found


def find_coordination(log: Log, fold: Fold) -> Iterator[ObjectInfo]:
    """Yield messages written well before the newest open: the jobs that wrote them are gone."""
    if not fold.opens:
        return
    before = fold.opens[max(fold.opens)].wall_time - _COORDINATION_MARGIN_S
    for info in log.store.list(f"{log.keys.meta}_coord/"):
        if info.modified < before:
            yield info


def find_staged(log: Log) -> Iterator[Garbage]:
    """Yield parts of packs, and claims on copying, that no intent covers: the copy was finished or given up.

    The log is read after they were listed: whatever stands there stands under an intent that was appended before.
    """
    listed = list(log.store.list(log.keys.staged))
    holds = tuple(log.refresh().holds.values()) if listed else ()
    covered = [uses_of(hold).groups for hold in holds if hold.intent]
    for info in listed:
        with suppress(Corrupt):
            group = _group_of_staged(log, info.key)
            if not any(groups_meet(groups, [GroupRange(group, group)]) for groups in covered):
                yield Garbage(info.key, info.size, STAGED_PART, "", *group)


def find_hold_tables(log: Log) -> Iterator[Garbage]:
    """Yield lists of packs whose hold has ended, or was never recorded and never will be.

    The log is read after they were listed, as for `find_staged`.
    """
    listed = list(log.store.list(log.keys.holds))
    fold = log.refresh() if listed else log.fold
    entries = tuple(fold.entries.values())
    standing = {*fold.holds, *(held.hold for entry in entries for held in entry.holds)}
    for info in listed:
        with suppress(Corrupt):
            term, save, hold = parse_hold_table(info.key)
            dead = fold.closed is not None or is_dead(term, save, fold.newest_term, fold.saves)
            if dead and hold not in standing:
                yield Garbage(info.key, info.size, HOLD_TABLE, "", term, save)


def _group_of_staged(log: Log, key: str) -> tuple[int, int]:
    manifest = log.keys.snapshot_of_staged(key)
    if manifest is not None:
        found = parse_snapshot_id(manifest)
        return found.term, found.save
    pack = parse_pack_key(pack_key_of_staged(key))
    return pack.term, pack.save


def _accounted(log: Log, fold: Fold) -> set[tuple[str, int, int]]:
    """Return the groups of which there are as many bytes of packs as their snapshot says it wrote: no orphans.

    Else the tables of all snapshots would be read to find out what is in none of them.
    """
    left = {(entry.term, entry.save): entry.bytes_written for entry in tuple(fold.entries.values())}
    for info in log.store.list(log.keys.packs):
        with suppress(Corrupt):
            pack = parse_pack_key(info.key)
            if (pack.term, pack.save) in left:
                left[pack.term, pack.save] -= info.size
    return {(DEAD_PACK, *group) for group, size in left.items() if not size}


def _orphan(log: Log, fold: Fold, info: ObjectInfo) -> Garbage | None:
    try:
        if info.key.startswith(log.keys.packs):
            pack = parse_pack_key(info.key)
            found = Garbage(info.key, info.size, DEAD_PACK, "", pack.term, pack.save)
        else:
            name = info.key.removeprefix(log.keys.snapshots).partition("/")[0]
            snapshot = parse_snapshot_id(name)
            if name in fold.entries:
                return None
            found = Garbage(info.key, info.size, DEAD_MANIFEST, name, snapshot.term, snapshot.save)
    except Corrupt:
        # Not a name of ours: someone else put it there, and it is theirs to delete.
        return None
    dead = fold.closed is not None or is_dead(found.term, found.save, fold.newest_term, fold.saves)
    return found if dead else None
