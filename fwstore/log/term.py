"""The right to extend a run, as its holder has it.

Invariant: nothing that is appended through a term counts behind the fence of a higher one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fwstore.base.errors import Fenced, FwstoreError
from fwstore.format.keys import LineageKeys
from fwstore.format.record import AnyBody, Commit, Unpin
from fwstore.format.summary import SnapshotEntry
from fwstore.log.fold import Fold, uses_of
from fwstore.log.log import Log


class Term:
    """The right to extend a run until a higher term fences it; made by `take_term`.

    Attributes:
        number: The fencing number.
        base: The snapshot that the term continues, or None for a new run.
        log: The home log.
        lends: Whether the base is complete at home and pinned in the log there, so that its packs are here and stay; else
            the first save uses none of them again (rule *reuse*).
        guard: Called before every commit; what it raises refuses it.
    """

    def __init__(
        self, number: int, base: SnapshotEntry | None, log: Log, pinned: list[Log]
    ) -> None:
        self.number = number
        self.base = base
        self.log = log
        self.lends = log in pinned and (base is None or log.fold.is_complete(base.id))
        self.guard: Callable[[], None] = lambda: None
        # At home first: other sites may not answer any more.
        self._pinned = sorted(pinned, key=lambda pin: pin is not log)

    @property
    def lineage(self) -> str:
        """Uuid of the run."""
        return self.log.lineage

    @property
    def keys(self) -> LineageKeys:
        """Where the run is."""
        return self.log.keys

    def commit(self, commit: Commit, packs: Iterable[str] | None = None) -> SnapshotEntry:
        """Append a snapshot whose packs and manifest are durable; a repeated call finds the first.

        Args:
            commit: The snapshot.
            packs: Keys of all packs of the run that its tables list; without them the tables are read back
                where its groups meet condemned ones.

        Raises:
            Fenced: A newer job owns the run, or may own it.
            Conflict: It refers to condemned bytes, or the run was deleted.
            Unavailable: Whether it was committed is unknown; it may still appear.
        """

        def make(fold: Fold) -> AnyBody | None:
            if commit.snapshot in fold.entries:
                return None
            self.guard()
            return commit

        if packs is not None:
            self.log.know_packs(uses_of(commit), packs)
        self.log.append(make, term=self.number)
        self._unpin_base()
        return self.log.fold.entries[commit.snapshot]

    def check(self) -> None:
        """Read the log and see whether this term still holds.

        Raises:
            Fenced: A newer job owns the run.
        """
        fold = self.log.refresh()
        if fold.fence > self.number:
            raise Fenced(
                f"term {fold.fence} of {self.keys.label} belongs to a newer job; this writer has term "
                f"{self.number} and must stop"
            )

    def _unpin_base(self) -> None:
        for log in self._pinned:
            try:
                unpin_bases(log, self.number)
            except FwstoreError:
                # The collector lifts base pins of terms that have committed.
                continue
        self._pinned = []


def unpin_bases(log: Log, term: int) -> None:
    """Lift the base pins of a term in a log."""

    def unpin(fold: Fold) -> AnyBody | None:
        pins = [pin.pin for pin in fold.pins.values() if pin.base_of == term]
        return Unpin(pins[0]) if pins else None

    while log.append(unpin, term=term) is not None:
        continue
