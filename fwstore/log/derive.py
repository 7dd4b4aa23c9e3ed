"""Writing what only spares readers time: summaries and the hint.

Invariant: nothing here can fail an append; what is lost is written again later or done without.
"""

from __future__ import annotations

from fwstore.base.errors import AlreadyExists, LimitExceeded, Unavailable
from fwstore.format.keys import LineageKeys
from fwstore.format.summary import Hint, Summary, encode_hint, encode_summary
from fwstore.log.fold import Fold
from fwstore.store.base import Store

SUMMARY_EVERY = 128
SUMMARY_EVERY_MAX = 1024
HINT_EVERY = 16
_ENTRIES_PER_STEP = 2048


class Deriver:
    """Writes summaries and the hint of one log after appends."""

    def __init__(self, store: Store, keys: LineageKeys) -> None:
        self._store = store
        self._keys = keys
        self.newest_summary = -1

    def follow(self, fold: Fold) -> None:
        """Write what is due after the newest slot."""
        self.newest_summary = max(self.newest_summary, fold.anchors.summary)
        if fold.seq - self.newest_summary >= _interval(fold):
            self._write_summary(fold)
            self._write_hint(fold)
        elif fold.seq % HINT_EVERY == 0 and fold.seq:
            self._write_hint(fold)

    def _write_summary(self, fold: Fold) -> None:
        summary = Summary(fold.lineage, fold.seq, fold.digest, fold.export())
        try:
            stored = encode_summary(summary)
            self._store.put(self._keys.summary(fold.seq), [stored], mode="create")
        except AlreadyExists:
            # An earlier attempt of ours, or another who found the same.
            self.newest_summary = fold.seq
        except (Unavailable, LimitExceeded):
            # The record is safe; the next append finds the summary due again.
            return
        self.newest_summary = fold.seq

    def _write_hint(self, fold: Fold) -> None:
        hint = Hint(fold.lineage, fold.seq, self.newest_summary)
        try:
            self._store.put(self._keys.hint, [encode_hint(hint)], mode="overwrite")
        except (Unavailable, LimitExceeded):
            # Advisory: readers find the end without it.
            return


def _interval(fold: Fold) -> int:
    # A large state is summarised less often, so that all summaries together stay small beside the packs.
    return min(SUMMARY_EVERY * (1 + len(fold.entries) // _ENTRIES_PER_STEP), SUMMARY_EVERY_MAX)
