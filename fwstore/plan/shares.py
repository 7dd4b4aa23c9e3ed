"""How a capacity is divided among those who want it.

Invariant: the shares together are the capacity, whatever is wanted, and nobody has less than an equal share
unless it wants less.
"""

from __future__ import annotations

from collections.abc import Mapping


def share_out(capacity: float, wanted: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each.

    Args:
        capacity: What there is.
        wanted: By name; `math.inf` where all that can be had is wanted.
    """
    shares: dict[str, float] = {}
    left = capacity
    for count, name in enumerate(sorted(wanted, key=lambda name: wanted[name])):
        shares[name] = min(wanted[name], left / (len(wanted) - count))
        left -= shares[name]
    # What nobody wants now goes to all alike: whoever wants more in a moment need not ask first.
    return {name: share + left / len(wanted) for name, share in shares.items()}
