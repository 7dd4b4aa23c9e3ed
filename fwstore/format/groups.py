"""Groups of packs, (term, save), as sorted ranges.

Invariant: ranges are sorted, do not touch and name at least the groups that they were made from; merging
for the sake of the bound only ever adds groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from fwstore.base.errors import Corrupt
from fwstore.format.canonical import Count, Row

GROUPS_MAX = 64

Group = tuple[int, int]


class GroupRange(Row, frozen=True):
    """The groups from one to another, both included, in the order of (term, save)."""

    first: tuple[Count, Count]
    last: tuple[Count, Count]


def group_ranges(
    groups: Iterable[Group | GroupRange], limit: int = GROUPS_MAX
) -> tuple[GroupRange, ...]:
    """Return at most `limit` ranges that cover all groups, merging the nearest where there are more."""
    spans = sorted(
        (group.first, group.last) if isinstance(group, GroupRange) else (group, group)
        for group in groups
    )
    joined: list[GroupRange] = []
    for first, last in spans:
        newest = joined[-1] if joined else None
        if newest is not None and first <= _after(newest.last):
            joined[-1] = GroupRange(newest.first, max(newest.last, last))
        else:
            joined.append(GroupRange(first, last))
    return _coarsen(joined, limit)


def groups_meet(left: Sequence[GroupRange], right: Sequence[GroupRange]) -> bool:
    """Return whether two sorted lists of ranges share a group."""
    i = j = 0
    while i < len(left) and j < len(right):
        a, b = left[i], right[j]
        if a.first <= b.last and b.first <= a.last:
            return True
        if a.last < b.last:
            i += 1
        else:
            j += 1
    return False


def groups_cover(outer: Sequence[GroupRange], inner: Sequence[GroupRange]) -> bool:
    """Return whether sorted ranges contain every group of others."""
    return group_ranges([*outer, *inner], limit=2**31) == tuple(outer)


def check_ranges(ranges: Sequence[GroupRange]) -> None:
    """Refuse ranges that are not sorted, apart and within the bound.

    Raises:
        Corrupt: They are not what `group_ranges` makes.
    """
    apart = all(_after(a.last) < b.first for a, b in pairwise(ranges))
    if len(ranges) > GROUPS_MAX or not apart or any(r.first > r.last for r in ranges):
        raise Corrupt("groups are not sorted, apart and within their bound")


def _after(group: Group) -> Group:
    return (group[0], group[1] + 1)


def _coarsen(ranges: list[GroupRange], limit: int) -> tuple[GroupRange, ...]:
    while len(ranges) > limit:
        index = min(range(len(ranges) - 1), key=lambda i: _gap(ranges[i], ranges[i + 1]))
        ranges[index : index + 2] = [GroupRange(ranges[index].first, ranges[index + 1].last)]
    return tuple(ranges)


def _gap(left: GroupRange, right: GroupRange) -> Group:
    terms = right.first[0] - left.last[0]
    return (terms, right.first[1] - (0 if terms else left.last[1]))
