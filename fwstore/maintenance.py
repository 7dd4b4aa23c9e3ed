"""Looking after a repository: freeing, verifying and probing, over all its runs.

Invariant: nothing here decides anything; it asks `fwstore.care` run by run and joins the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fwstore.base.errors import Corrupt, NotFound
from fwstore.care.gc import GcOptions, GcReport, collect
from fwstore.care.heal import Elsewhere, Healer
from fwstore.care.problems import Problem, VerifyReport, join_reports, settle
from fwstore.care.quarantine import find_quarantined
from fwstore.care.verify import VerifyOptions, verify_run
from fwstore.checkpoint.access import Access
from fwstore.format.keys import LineageKeys, run_of_quarantined
from fwstore.log.lineage import all_generations, read_lineage
from fwstore.plan.mark import Garbage
from fwstore.plan.retention import Verdict
from fwstore.store.directory import DirectoryStore
from fwstore.wan.copy import Supply
from fwstore.wan.sites import Silence

if TYPE_CHECKING:
    from fwstore.repository import Repository

_STALE_UPLOAD_S = 86_400.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedAction:
    """One thing that a collection did, or would do.

    Attributes:
        run: The run; empty where none can be told.
        action: "expire" or "keep" a checkpoint, "delete" an object.
        key: The object key, or the step of a checkpoint.
        size_bytes: Bytes of the object; 0 for checkpoints.
        reason: Why.
    """

    run: str
    action: Literal["expire", "keep", "delete"]
    key: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport:
    """What a garbage collection did, or would do, over all runs.

    Attributes:
        dry_run: Nothing was written or deleted.
        actions: Everything, by run.
        bytes_freed: Bytes of the objects deleted, or to be deleted.
        bytes_kept: Logical bytes of the checkpoints that stay, each counted whole.
    """

    dry_run: bool
    actions: tuple[CollectedAction, ...]
    bytes_freed: int
    bytes_kept: int


def collect_all(
    repository: Repository,
    names: Sequence[str] | None,
    options: Callable[[Callable[[Garbage], None]], GcOptions],
    progress: Progress | None,
    *,
    dry_run: bool,
    quarantine: bool,
) -> CollectionReport:
    """Collect the garbage of some runs, or of all with all their generations, and unfinished uploads.

    Args:
        repository: Whose.
        names: Of the runs; None for all.
        options: How each is collected, from what hears of its garbage.
        progress: Called with (runs done, runs in all).
        dry_run: Change nothing.
        quarantine: Remove also the bad bytes that repairs have kept.

    Raises:
        NotFound: A run that was named does not exist.
    """
    accesses = _lenders_last(list(lineages(repository, names)))
    actions = clean_uploads(repository, dry_run=dry_run)
    if quarantine:
        actions += _empty_quarantine(repository, names, dry_run=dry_run)
    freed, kept = sum(action.size_bytes for action in actions), 0
    returned: frozenset[str] = frozenset()
    for number, access in enumerate(accesses):
        garbage: list[Garbage] = []
        report = collect(access.log, replace(options(garbage.append), returned=returned))
        returned |= report.pins_returned
        actions += _actions(access.keys.name, report, garbage)
        freed += sum(g.size for g in garbage) if dry_run else report.bytes_deleted
        sizes = {entry.id: entry.bytes_logical for entry in access.log.fold.live()}
        kept += sum(sizes.get(verdict.id, 0) for verdict in report.kept)
        if progress is not None:
            progress(number + 1, len(accesses))
    actions.sort(key=lambda action: action.run)
    return CollectionReport(
        dry_run=dry_run, actions=tuple(actions), bytes_freed=freed, bytes_kept=kept
    )


def _lenders_last(accesses: Sequence[Access]) -> list[Access]:
    """Return lineages behind those that borrow from them, so that what is given back is freed at once."""
    by_label = {access.keys.label: access for access in accesses}
    borrowers = {label: _borrowers(access) & by_label.keys() for label, access in by_label.items()}
    ordered: dict[str, Access] = {}
    met: set[str] = set()
    for label in by_label:
        path = [label]
        while path:
            met.add(path[-1])
            # Two may borrow from each other; then one of them has to be first.
            ahead = sorted(borrowers[path[-1]] - met)
            if ahead:
                path += ahead
            else:
                last = path.pop()
                ordered.setdefault(last, by_label[last])
    return list(ordered.values())


def _borrowers(access: Access) -> set[str]:
    pins = tuple(access.log.refresh().pins.values())
    return {pin.borrower for pin in pins if pin.borrower is not None}


def verify_all(
    repository: Repository, names: Sequence[str] | None, options: VerifyOptions
) -> VerifyReport:
    """Verify some runs, or all with all their generations.

    Raises:
        NotFound: A run that was named does not exist, or no run has the step.
    """
    reports: list[VerifyReport] = []
    progress = _Joined(options.progress)
    elsewhere = _elsewhere(repository) if options.repair else None
    for keys in _generations(repository, names):
        try:
            access = _access(repository, keys)
        except Corrupt as error:
            lost = _unreadable(keys, error)
            reports.append(settle(lost) if options.repair else lost)
            continue
        if access is not None:
            progress.next_run()
            of_run = replace(options, progress=progress)
            healer = None if elsewhere is None else _healer(repository, access, elsewhere)
            reports.append(verify_run(access.origin, access.log, of_run, healer))
    kept = find_quarantined(repository.store, names)
    report = replace(join_reports(reports), quarantined=kept)
    if options.step is not None and not report.checkpoints and not report.problems:
        where = "any run" if names is None else f"run {', '.join(names)}"
        raise NotFound(
            f"there is no checkpoint of step {options.step} in {where} of {repository.url}"
        )
    return report


def _elsewhere(repository: Repository) -> Elsewhere:
    """Return from where bytes may come; they wait for all others that want the link."""
    sites, links = repository.sites, repository.links
    keeping = [s.name for s in sites.topology.sites.values() if s.keeps and s.name != sites.local]
    answers = sites.answers(keeping)
    return Elsewhere(
        supplies=tuple(
            Supply(one.name, sites.patient_store(one.name), links.throttle(one, spare=True))
            for one in answers
            if not isinstance(one, Silence)
        ),
        silent={one.name: one.reason for one in answers if isinstance(one, Silence)},
    )


def _healer(repository: Repository, access: Access, elsewhere: Elsewhere) -> Healer:
    runtime = repository.runtime
    paced = replace(runtime, limits=repository.links.paced(runtime.limits))
    content_hash = repository.content_hash
    return Healer(access.log, paced, content_hash, elsewhere, repository.open_log)


class _Joined:
    """The progress of several runs as one."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._before = self._done = 0

    def next_run(self) -> None:
        """Begin to count behind what was done."""
        self._before = self._done

    def __call__(self, done: int, total: int) -> None:
        self._done = max(self._done, self._before + done)
        if self._progress is not None:
            self._progress(self._before + done, self._before + total)


def _unreadable(keys: LineageKeys, error: Corrupt) -> VerifyReport:
    lost = Problem(
        run=keys.name,
        step=None,
        key=keys.catalog,
        tensor=None,
        message=f"{error}; nothing of the run can be loaded",
        code=error.code,
    )
    return VerifyReport(objects=1, problems=(lost,))


def clean_uploads(repository: Repository, *, dry_run: bool) -> list[CollectedAction]:
    """Remove what killed writers left half-written where no reader looks."""
    store = repository.store
    if not isinstance(store, DirectoryStore):
        return []
    if dry_run:
        before = repository.runtime.clock.wall() - _STALE_UPLOAD_S
        found = store.find_temporary(before=before)
    else:
        found = store.clean_temporary(older_than_s=_STALE_UPLOAD_S)
    reason = "object that a killed process was writing"
    return [
        CollectedAction(run="", action="delete", key=one.key, size_bytes=one.size, reason=reason)
        for one in found
    ]


def _empty_quarantine(
    repository: Repository, names: Sequence[str] | None, *, dry_run: bool
) -> list[CollectedAction]:
    """Remove what repairs have kept of bad bytes."""
    found = find_quarantined(repository.store, names)
    if not dry_run:
        repository.store.delete([one.key for one in found])
    reason = "bad bytes that a repair has kept"
    return [
        CollectedAction(
            run=run_of_quarantined(one.key),
            action="delete",
            key=one.key,
            size_bytes=one.size,
            reason=reason,
        )
        for one in found
    ]


def lineages(repository: Repository, names: Sequence[str] | None) -> Iterable[Access]:
    """Yield access to all generations of some runs, or of all.

    Raises:
        NotFound: A run that was named does not exist.
    """
    for keys in _generations(repository, names):
        access = _access(repository, keys)
        if access is not None:
            yield access


def _generations(repository: Repository, names: Sequence[str] | None) -> list[LineageKeys]:
    generations = all_generations(repository.store)
    missing = set(names or ()) - {keys.name for keys in generations}
    if missing:
        raise NotFound(f"there is no run {', '.join(sorted(missing))} in {repository.url}")
    return [keys for keys in generations if names is None or keys.name in names]


def _access(repository: Repository, keys: LineageKeys) -> Access | None:
    lineage = read_lineage(repository.store, keys)
    if lineage is None:
        return None
    return repository.access(keys.name, keys.generation, lineage.lineage)


def _actions(run: str, report: GcReport, garbage: Sequence[Garbage]) -> list[CollectedAction]:
    def on_checkpoint(action: Literal["expire", "keep"], verdict: Verdict) -> CollectedAction:
        return CollectedAction(
            run=run, action=action, key=f"step {verdict.step}", size_bytes=0, reason=verdict.reason
        )

    return [
        *(on_checkpoint("keep", verdict) for verdict in report.kept),
        *(on_checkpoint("expire", verdict) for verdict in report.expired),
        *(
            CollectedAction(run=run, action="delete", key=g.key, size_bytes=g.size, reason=g.reason)
            for g in garbage
        ),
    ]
