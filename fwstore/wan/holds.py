"""When the bytes that a save counts on at another site than its home need be kept there no more, decided without I/O.

Invariant: a hold ends only by what the log of its home says, or with that site; while the log was not read, it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fwstore.format.summary import HoldEntry
from fwstore.log.fold import Fold


def ended_holds(
    own: Fold, homes: Mapping[str, Fold], retired: Callable[[str], bool]
) -> list[HoldEntry]:
    """Return the holds in a log on which nobody counts any more.

    Args:
        own: The log.
        homes: The logs of the sites that were read, by uuid.
        retired: Whether a site was retired: nobody reads its log any more.
    """
    holds = [hold for hold in tuple(own.holds.values()) if not hold.intent]
    return [
        hold
        for hold in holds
        if retired(hold.home)
        or (hold.home in homes and _has_ended(hold, homes[hold.home], newest=_newest(holds, hold)))
    ]


def _newest(holds: list[HoldEntry], hold: HoldEntry) -> bool:
    """Return whether a hold is the newest of its home: a job that goes on may use its packs again."""
    others = [(one.term, one.save) for one in holds if one.home == hold.home]
    return (hold.term, hold.save) == max(others)


def _has_ended(hold: HoldEntry, home: Fold, *, newest: bool) -> bool:
    if home.closed is not None:
        return True
    if newest and home.fence <= hold.term:
        return False
    if hold.snapshot in home.entries:
        return home.is_complete(hold.snapshot) or hold.snapshot in home.expired
    # Not committed, or collected: no record of that save will come any more.
    return home.fence > hold.term or home.saves.get(hold.term, 0) >= hold.save
