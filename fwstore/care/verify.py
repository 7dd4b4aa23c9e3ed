"""Verification of one run: that everything its checkpoints rest on is there and is what was written.

With a healer it also brings from other sites what is damaged or missing, and then checks what that leads to.

Invariant: no problem hides another - whatever is wrong with one object, the rest is still checked - and
what retention or garbage collection took away meanwhile is no problem.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import numpy as np

from fwstore.base.errors import Corrupt, FwstoreError, InvalidInput, NotFound
from fwstore.care.heal import Healer
from fwstore.care.logcheck import check_log
from fwstore.care.packcheck import Damage, Level, PackChecker, PackFindings
from fwstore.care.problems import Problem, Repair, VerifyReport, explain, settle
from fwstore.care.radius import Selection, tensors_hit
from fwstore.care.rowcheck import check_rows
from fwstore.content.footers import Pack
from fwstore.content.manifest import Manifest, open_manifest
from fwstore.content.verified import Origin, read_object
from fwstore.format.blocks import CHUNKS_MAX
from fwstore.format.leaf import Leaf
from fwstore.format.packtable import parse_pack_table
from fwstore.format.paths import display_path
from fwstore.format.record import ObjectRef
from fwstore.format.rows import I64, concat_fragments, concat_runs
from fwstore.format.summary import SnapshotEntry
from fwstore.log.fold import uses_elsewhere
from fwstore.log.log import Log
from fwstore.plan.mark import KeySet

T = TypeVar("T")
Progress = Callable[[int, int], None]
PackId = tuple[str, bytes]

_TENSORS_NAMED = 100
_SEED_BYTES = 8
_UNSEEN = "it could not be looked at, and may be whole"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How deep a verification goes.

    Attributes:
        level: "quick" follows the digests from the log to the footer of every pack; "sample" also reads a
            share of the chunks; "data" reads every byte of every pack.
        sample: Share of the chunks that "sample" reads, 0 to 1; at least one of every pack.
        step: Only the checkpoints of this step, without the log; None checks all.
        repair: Heal from other sites what is damaged or missing.
        progress: Called with bytes of packs checked and, as far as known, to be checked.
    """

    level: Level = "quick"
    sample: float = 0.01
    step: int | None = None
    repair: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise InvalidInput(
                f"a verification is {', '.join(get_args(Level))}, and not {self.level!r}"
            )
        if not 0 <= self.sample <= 1:
            raise InvalidInput(f"the share of chunks to be read is 0 to 1, not {self.sample!r}")


def verify_run(
    origin: Origin, log: Log, options: VerifyOptions, healer: Healer | None = None
) -> VerifyReport:
    """Verify a run at the site of its log, once for every object however many checkpoints share it.

    Args:
        origin: Where its bytes are; only the first store is checked.
        log: Its log.
        options: How deep.
        healer: Heals what is damaged or missing; None leaves it as it is.

    Raises:
        Unavailable: The store does not answer at all.
    """
    return _Verification(origin, log, options, healer).run()


@dataclass(frozen=True, slots=True)
class _Wound:
    """Something damaged, and what of a snapshot lies in it.

    Attributes:
        key: The object.
        damage: What is wrong with it.
        selection: Packs and chunks of the snapshot that cannot be read for it.
        claim: Names damage that several snapshots may suffer from.
    """

    key: str
    damage: Damage
    selection: Selection
    claim: tuple[PackId, int] | None = None


class _Tally:
    """What was done so far, counted by many threads."""

    def __init__(self, log: Log, progress: Progress | None) -> None:
        self.objects = self.chunks = self.bytes_read = 0
        self.expected = 0
        self._done = 0
        self._lock = log.runtime.scheduler.lock()
        self._progress = progress

    def count(self, size: int) -> None:
        """Count an object that was read whole."""
        self.objects += 1
        self.bytes_read += size

    def take(self, pack: Pack, found: PackFindings) -> None:
        """Count a pack that was checked."""
        with self._lock:
            self.objects += 1
            self.chunks += found.chunks
            self.bytes_read += found.bytes_read
            self._done += pack.info.size
            self.expected -= pack.info.size
            done, total = self._done, self._done + max(0, self.expected)
        if self._progress is not None:
            self._progress(done, total)


class _Verification:
    def __init__(
        self, origin: Origin, log: Log, options: VerifyOptions, healer: Healer | None
    ) -> None:
        self._healer = healer
        self._origin = replace(origin, stores=origin.stores[:1])
        self._log = log
        self._options = options
        seed = int(origin.runtime.ids.token(_SEED_BYTES), 16)
        self._checker = PackChecker(self._origin, options.level, options.sample, seed)
        self._tally = _Tally(log, options.progress)
        self._seen = KeySet()
        self._damaged: dict[PackId, tuple[Damage, ...]] = {}
        # Damage that no checkpoint was found to suffer from, so far.
        self._unclaimed: dict[tuple[PackId, int], Damage] = {}
        self._problems: list[Problem] = []
        self._repairs: list[Repair] = []
        self._checkpoints = 0

    def run(self) -> VerifyReport:
        entries = self._entries()
        self._tally.expected = sum(entry.bytes_written for entry in entries)
        for entry in entries:
            self._check_snapshot(entry)
        for ((key, _), _), damage in self._unclaimed.items():
            self._add_damage(None, key, damage, "; no checkpoint on offer suffers from it")
        report = VerifyReport(
            checkpoints=self._checkpoints,
            objects=self._tally.objects,
            chunks=self._tally.chunks,
            bytes_read=self._tally.bytes_read,
            problems=tuple(self._problems),
            repairs=tuple(self._repairs),
        )
        return report if self._healer is None else settle(report)

    def _entries(self) -> list[SnapshotEntry]:
        """Return the snapshots to be checked; check the log that leads to them."""
        step, failure = self._options.step, None
        try:
            self._log.refresh()
        except Corrupt as error:
            failure = error
        fold = self._log.fold
        if step is None:
            found = check_log(self._log, fold.seq if failure is None else None)
            self._tally.objects += found.objects
            self._problems += found.problems
        if failure is not None and not self._problems:
            self._add(None, self._log.keys.log, failure)
        entries = [fold.entries[name] for name in fold.roots()]
        return [entry for entry in entries if step in (None, entry.step)]

    def _check_snapshot(self, entry: SnapshotEntry) -> None:
        before, known = len(self._problems), dict(self._unclaimed)
        repaired = len(self._repairs)
        self._tally.expected -= entry.bytes_written
        manifest: Manifest | None = None
        try:
            manifest = self._open(entry)
        except FwstoreError as error:
            key = self._log.keys.root(entry.id)
            self._add(entry, key, error, "; nothing of it can be loaded")
            manifest = self._mend(
                key, error, lambda healer: healer.root(entry), lambda: self._open(entry)
            )
        if manifest is not None:
            self._check_manifest(entry, manifest)
        news = len(self._problems) > before or self._unclaimed != known
        if news and not self._is_root(entry):
            # It was given up while it was looked at: what is missing is missing rightly.
            del self._problems[before:]
            self._repairs[repaired:] = [one for one in self._repairs[repaired:] if one.healed]
            self._unclaimed = known
            return
        self._checkpoints += 1

    def _mend(
        self,
        key: str,
        error: FwstoreError,
        heal: Callable[[Healer], Repair],
        read: Callable[[], T],
    ) -> T | None:
        """Heal an object of a manifest that cannot be read and read it again; None where that is not possible."""
        if self._healer is None:
            return None
        found = None
        if isinstance(error, Corrupt | NotFound):
            repair = heal(self._healer)
        else:
            repair = Repair(run=self._log.keys.name, key=key, reason=_UNSEEN)
        if repair.healed:
            try:
                found = read()
            except FwstoreError as again:
                repair = repair.failed(again.message)
        self._repairs.append(repair)
        return found

    def _open(self, entry: SnapshotEntry) -> Manifest:
        self._tally.count(entry.root.size)
        digest = bytes.fromhex(entry.root.digest)
        return open_manifest(self._origin, self._log.keys, entry.id, digest)

    def _is_root(self, entry: SnapshotEntry) -> bool:
        try:
            return entry.id in self._log.refresh().roots()
        except Corrupt:
            # What was appended meanwhile cannot be read; then the log still offers what it offered.
            return True

    def _check_manifest(self, entry: SnapshotEntry, manifest: Manifest) -> None:
        leaves = self._check_leaves(entry, manifest)
        chunks = np.zeros(manifest.pack_count, np.int64)
        wounds: list[_Wound] = []
        elsewhere = self._elsewhere(entry)
        for number, part in enumerate(manifest.root.pack_tables):
            self._tally.count(part.size)
            numbers = range(part.first_pack, part.first_pack + part.packs)
            packs = self._packs_of(entry, manifest, number, numbers, wounds)
            if packs is None:
                chunks[numbers.start : numbers.stop] = CHUNKS_MAX
                continue
            chunks[numbers.start : numbers.stop] = [pack.info.chunks for pack in packs.values()]
            here = {n: pack for n, pack in packs.items() if pack.key not in elsewhere}
            wounds += self._check_packs(here)
        if len(leaves) == len(manifest.root.leaves):
            # Otherwise a tensor may go on in the leaf that is lost, which has been reported.
            self._check_rows(entry, manifest, chunks)
        self._report(entry, wounds, (manifest.leaf(number) for number in leaves))

    def _elsewhere(self, entry: SnapshotEntry) -> frozenset[str]:
        """Return the packs of a snapshot that other sites hold; they are not here until all of it is."""
        found: set[str] = set()
        for uses in uses_elsewhere(entry):
            for number, part in enumerate(uses.tables):
                key = self._log.keys.hold_table(entry.id, uses.hold or "", number)
                found |= self._held(entry, key, part)
        return frozenset(found)

    def _held(self, entry: SnapshotEntry, key: str, part: ObjectRef) -> set[str]:
        """Return what one list of packs at another site names; nothing where it cannot be had."""

        def read() -> set[str]:
            stored = read_object(self._origin, key, bytes.fromhex(part.digest), part.size)
            _, rows = parse_pack_table(stored)
            return {row.key([self._log.keys] * (row.lineage + 1)) for row in rows}

        self._tally.count(part.size)
        try:
            return read()
        except FwstoreError as error:
            self._add(entry, key, error, "; what it lists is taken for missing here")
            return (
                self._mend(key, error, lambda healer: healer.held(entry, key, part), read) or set()
            )

    def _packs_of(
        self,
        entry: SnapshotEntry,
        manifest: Manifest,
        number: int,
        packs: Sequence[int],
        wounds: list[_Wound],
    ) -> dict[int, Pack] | None:
        """Return the packs in one part of the pack table, or None where it cannot be had; note what is wrong."""
        try:
            return manifest.packs(packs)
        except FwstoreError as error:
            key = self._log.keys.pack_table(entry.id, number)
            damage = Damage(*explain(error, key, self._log.store.url), None)
            wounds.append(_Wound(key, damage, dict.fromkeys(packs)))
            return self._mend(
                key,
                error,
                lambda healer: healer.table(entry, manifest.root, number),
                lambda: manifest.packs(packs),
            )

    def _check_leaves(self, entry: SnapshotEntry, manifest: Manifest) -> list[int]:
        """Return the numbers of the leaves that are what was written."""
        refs = manifest.root.leaves

        def attempt(number: int) -> FwstoreError | None:
            try:
                manifest.leaf(number)
            except FwstoreError as error:
                return error
            return None

        errors = self._origin.runtime.scheduler.map(attempt, range(len(refs)))
        for ref in refs:
            self._tally.count(ref.size)
        return [
            number
            for number, error in enumerate(errors)
            if error is None or self._mend_leaf(entry, manifest, number, error)
        ]

    def _mend_leaf(
        self, entry: SnapshotEntry, manifest: Manifest, number: int, error: FwstoreError
    ) -> bool:
        """Note that a leaf cannot be read; return whether it could be healed."""
        key, ref = self._log.keys.leaf(entry.id, number), manifest.root.leaves[number]
        leaf = self._mend(
            key,
            error,
            lambda healer: healer.leaf(entry, manifest.root, number),
            lambda: manifest.leaf(number),
        )
        if leaf is None:
            first, end = display_path(ref.first_path), display_path(ref.last_path)
            lost = f"; its {ref.tensors} tensors from {first} to {end} cannot be loaded"
            self._add(entry, key, error, lost)
            return False
        damage = Damage(*explain(error, key, self._log.store.url), None)
        self._add_tensors(entry, key, damage, [display_path(info.path) for info in leaf.tensors])
        return True

    def _check_rows(self, entry: SnapshotEntry, manifest: Manifest, chunks: I64) -> None:
        """Check that the leaves cover their tensors with chunks that the packs have."""
        for leaf in _whole_tensors(manifest):
            try:
                check_rows(leaf, chunks)
            except FwstoreError as error:
                self._add(entry, self._log.keys.root(entry.id), error)

    def _check_packs(self, packs: Mapping[int, Pack]) -> list[_Wound]:
        """Check the packs that no earlier snapshot had; return the damage that any of these has."""
        names = [f"{pack.key} {pack.info.footer_digest.hex()}" for pack in packs.values()]
        seen = self._seen.contains(names).tolist()
        self._seen.add(names)
        fresh = [pack for pack, old in zip(packs.values(), seen, strict=True) if not old]
        self._tally.expected += sum(pack.info.size for pack in fresh)
        checked = self._origin.runtime.scheduler.map(self._check_pack, fresh)
        for pack, found in zip(fresh, checked, strict=True):
            if found:
                self._damaged[_id(pack)] = found
                self._unclaimed |= {(_id(pack), n): damage for n, damage in enumerate(found)}
        self._heal_packs([pack for pack, found in zip(fresh, checked, strict=True) if found])
        return [
            _Wound(pack.key, damage, {number: damage.chunks}, (_id(pack), n))
            for number, pack in packs.items()
            for n, damage in enumerate(self._damaged.get(_id(pack), ()))
        ]

    def _check_pack(self, pack: Pack) -> tuple[Damage, ...]:
        found = self._checker.check(pack)
        self._tally.take(pack, found)
        return found.damage

    def _heal_packs(self, damaged: Sequence[Pack]) -> None:
        healer = self._healer
        if healer is not None:
            self._repairs += self._origin.runtime.scheduler.map(
                lambda pack: self._heal_pack(healer, pack), damaged, limit=healer.packs_at_once
            )

    def _heal_pack(self, healer: Healer, pack: Pack) -> Repair:
        if all(damage.code != Corrupt.code for damage in self._damaged[_id(pack)]):
            return Repair(run=self._log.keys.name, key=pack.key, reason=_UNSEEN)
        repair = healer.pack(pack)
        again = self._checker.check(pack).damage if repair.healed else ()
        return repair.failed(again[0].message) if again else repair

    def _report(
        self, entry: SnapshotEntry, wounds: Sequence[_Wound], leaves: Iterable[Leaf]
    ) -> None:
        if not wounds:
            return
        selections = [wound.selection for wound in wounds]
        for wound, tensors in zip(wounds, tensors_hit(leaves, selections), strict=True):
            if wound.claim is None and not tensors:
                self._add_damage(entry, wound.key, wound.damage)
            if wound.claim is not None and tensors:
                self._unclaimed.pop(wound.claim, None)
            self._add_tensors(entry, wound.key, wound.damage, tensors)

    def _add_tensors(
        self, entry: SnapshotEntry, key: str, damage: Damage, tensors: Sequence[str]
    ) -> None:
        for name in tensors[:_TENSORS_NAMED]:
            self._add_damage(entry, key, damage, tensor=name)
        if len(tensors) > _TENSORS_NAMED:
            rest = f"; {len(tensors) - _TENSORS_NAMED} more tensors are hit"
            self._add_damage(entry, key, damage, rest)

    def _add(
        self, entry: SnapshotEntry | None, key: str, error: FwstoreError, more: str = ""
    ) -> None:
        self._add_damage(entry, key, Damage(*explain(error, key, self._log.store.url), None), more)

    def _add_damage(
        self,
        entry: SnapshotEntry | None,
        key: str,
        damage: Damage,
        more: str = "",
        *,
        tensor: str | None = None,
    ) -> None:
        self._problems.append(
            Problem(
                run=self._log.keys.name,
                step=None if entry is None else entry.step,
                snapshot=None if entry is None else entry.id,
                key=key,
                tensor=tensor,
                message=damage.message + more,
                code=damage.code,
            )
        )


def _id(pack: Pack) -> PackId:
    return pack.key, pack.info.footer_digest


def _whole_tensors(manifest: Manifest) -> Iterator[Leaf]:
    """Yield the leaves, those of one tensor that fills several joined."""
    numbers = range(len(manifest.root.leaves))
    refs = manifest.root.leaves
    for _, group in itertools.groupby(numbers, lambda number: refs[number].first_tensor):
        leaves = [manifest.leaf(number) for number in group]
        yield Leaf(
            leaves[0].first_tensor,
            leaves[0].tensors,
            concat_runs([leaf.runs for leaf in leaves]),
            concat_fragments([leaf.fragments for leaf in leaves]),
        )
