"""When a tensor leaves its grid for one that suits the layout of today.

Invariant: a tensor changes its grid only where that costs nothing: its bytes were all rewritten by the
last save anyway, so no reference to an old chunk is lost. Frozen tensors keep their grid for ever.
"""

from __future__ import annotations

from fwstore.plan.fragments import fragmentation
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.layout import Layout

FRAGMENT_SHARE_MAX = 0.01


def plan_grid(previous: Grid, itemsize: int, layout: Layout | None, *, rewritten: bool) -> Grid:
    """Return the grid for the next save of a tensor.

    Args:
        previous: The grid that the lineage keeps for it.
        itemsize: Bytes of one element.
        layout: How the ranks divide it now; None keeps the grid.
        rewritten: The last save wrote all of its bytes anew.
    """
    if layout is None or not rewritten:
        return previous
    share = fragmentation(previous, layout).share
    if share <= FRAGMENT_SHARE_MAX:
        return previous
    fresh = grid_of_layout(previous.shape, itemsize, layout)
    return fresh if fragmentation(fresh, layout).share < share else previous
