"""The other sites at which ranks of a job write: seeing to it that they keep what a commit counts on.

Invariant: a commit names packs at another site only where a hold in the log of that site keeps them, appended after they
were durable and before the commit (rule *several sites in one save* of the protocol).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fwstore.base.errors import InvalidInput
from fwstore.base.ids import write_id
from fwstore.checkpoint.part import HOME, BySite
from fwstore.codec.hashing import ContentHash
from fwstore.format.groups import group_ranges
from fwstore.format.packtable import PACKS_PER_PART, PackInfo, encode_pack_table
from fwstore.format.record import AnyBody, Held, Hold, ObjectRef
from fwstore.format.root import LineageRef
from fwstore.log.fold import Fold, uses_of
from fwstore.log.log import Log

LogAt = Callable[[str], Log]


class Outposts:
    """The sites beside home at which ranks of one job write.

    Args:
        log: The log of the lineage at home.
        home: Uuid of the home of the job.
        log_at: Returns the log of the lineage at a site, by its uuid.
        content_hash: The hash that proves objects.
    """

    def __init__(self, log: Log, home: str, log_at: LogAt, content_hash: ContentHash) -> None:
        self._log = log
        self._home = home
        self._log_at = log_at
        self._hash = content_hash

    def hold(
        self, snapshot: str, term: int, save: int, packs: Mapping[str, Sequence[PackInfo]]
    ) -> tuple[Held, ...]:
        """Hold packs at other sites for a snapshot; return what its commit is to say of it.

        Args:
            snapshot: Its id.
            term: The term of the job.
            save: Number of the save in the term.
            packs: By site, all durable.

        Raises:
            Fenced: A newer job owns the run.
            Conflict: Packs there were condemned meanwhile; the next save writes them anew.
            Unavailable: A site does not answer.
        """

        def hold(site: str) -> Held:
            log, token = self._log_at(site), write_id(self._log.runtime.ids)
            made = Hold(
                hold=token,
                snapshot=snapshot,
                save=save,
                home=self._home,
                tables=self._write_tables(log, snapshot, token, packs[site]),
                groups=group_ranges({(pack.term, pack.save) for pack in packs[site]}),
            )
            log.know_packs(uses_of(made), [pack.key([log.keys]) for pack in packs[site]])
            log.append(_unless_there(made), term=term)
            return Held(site, token, made.tables)

        return tuple(self._log.runtime.scheduler.map(hold, sorted(packs)))

    def _write_tables(
        self, there: Log, snapshot: str, token: str, packs: Sequence[PackInfo]
    ) -> tuple[ObjectRef, ...]:
        """Write the list of held packs at home and at their site."""
        tables = []
        for number, first in enumerate(range(0, len(packs), PACKS_PER_PART)):
            stored = encode_pack_table(first, packs[first : first + PACKS_PER_PART])
            for log in (self._log, there):
                # The token is new, so nobody else writes this key.
                key = log.keys.hold_table(snapshot, token, number)
                log.store.put(key, [stored], mode="overwrite")
            tables.append(ObjectRef(self._hash.digest(stored).hex(), len(stored)))
        return tuple(tables)


def packs_elsewhere(lineage: LineageRef, brought: BySite) -> dict[str, list[PackInfo]]:
    """Return the packs that ranks at other sites than home refer to, each once, by site.

    Raises:
        InvalidInput: Some are of another lineage, which nobody holds there.
    """
    found: dict[str, dict[PackInfo, None]] = {}
    for site, part in ((s, part) for s, parts in brought.items() if s != HOME for part in parts):
        for pack in part.packs:
            if part.lineages[pack.lineage] != lineage:
                raise InvalidInput(
                    f"ranks at another site than home refer to packs of run {part.lineages[pack.lineage].label}, which "
                    "are not kept there: give bases and references to the ranks at home alone"
                )
            found.setdefault(site, {})[replace(pack, lineage=0)] = None
    return {site: list(packs) for site, packs in found.items()}


def _unless_there(hold: Hold) -> Callable[[Fold], AnyBody | None]:
    return lambda fold: None if hold.hold in fold.holds else hold
