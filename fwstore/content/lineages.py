"""Lineages as packs and roots refer to them.

Invariant: a pack's `lineage` number means something only beside the list that it indexes; whoever joins
tables joins those lists first.
"""

from __future__ import annotations

from collections.abc import Sequence

from fwstore.base.errors import Corrupt
from fwstore.format.keys import CATALOG_PREFIX, LineageKeys, parse_catalog_key
from fwstore.format.root import LineageRef


def keys_of(lineage: LineageRef) -> LineageKeys:
    """Return the object keys of a lineage.

    Raises:
        Corrupt: Its label is malformed.
    """
    keys = parse_catalog_key(f"{CATALOG_PREFIX}{lineage.label}")
    if keys is None:
        raise Corrupt(f"{lineage.label[:200]!r} is not the label of a lineage")
    return keys


def join_lineages(
    lists: Sequence[Sequence[LineageRef]],
) -> tuple[tuple[LineageRef, ...], list[list[int]]]:
    """Return all lineages without repeats, and for every list the new numbers of its members."""
    numbers: dict[LineageRef, int] = {}
    renumbered = [
        [numbers.setdefault(lineage, len(numbers)) for lineage in lineages] for lineages in lists
    ]
    return tuple(numbers), renumbered
