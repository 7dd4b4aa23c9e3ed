"""How a capacity is divided among those who want it.

Invariant: the shares together are the capacity, whatever is wanted. Who is urgent comes first, but for a tenth that is
left to the others; within each of the two groups nobody has less than an equal share unless it wants less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

_FOR_URGENT = 0.9


def share_out(
    capacity: float, wanted: Mapping[str, float], urgent: Collection[str] = ()
) -> dict[str, float]:
    """Return the share of each.

    Args:
        capacity: What there is.
        wanted: By name; `math.inf` where all that can be had is wanted.
        urgent: Names of those that come first.
    """
    first = {name: want for name, want in wanted.items() if name in urgent}
    if len(first) in (0, len(wanted)):
        return _equally(capacity, wanted)
    others = {name: want for name, want in wanted.items() if name not in urgent}
    taken = min(sum(first.values()), _FOR_URGENT * capacity)
    return _equally(taken, first) | _equally(capacity - taken, others)


def _equally(capacity: float, wanted: Mapping[str, float]) -> dict[str, float]:
    shares: dict[str, float] = {}
    left = capacity
    for count, name in enumerate(sorted(wanted, key=lambda name: wanted[name])):
        shares[name] = min(wanted[name], left / (len(wanted) - count))
        left -= shares[name]
    # What nobody wants now goes to all alike: whoever wants more in a moment need not ask first.
    return {name: share + left / len(wanted) for name, share in shares.items()}
