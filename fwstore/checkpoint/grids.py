"""The grids with which a job begins: those of the snapshot that it continues, re-cut where that is free.

Invariant: every rank that holds a tensor reads the same manifest and has the same layout, so all choose the
same grid without a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fwstore.checkpoint.catalogue import Catalogue
from fwstore.content.manifest import Manifest
from fwstore.format.dtypes import itemsize
from fwstore.format.keys import parse_pack_key
from fwstore.format.paths import TensorPath
from fwstore.format.tensor import TensorInfo
from fwstore.plan.fragments import fragmentation
from fwstore.plan.grid import Grid
from fwstore.plan.regrid import FRAGMENT_SHARE_MAX, plan_grid

Grids = Mapping[TensorPath, TensorInfo]
"""The grid that a lineage keeps for a tensor, with the dtype and shape for which it was made."""


def inherited_grids(parent: Manifest, catalogue: Catalogue) -> Grids:
    """Return the grids of the parent's tensors, as the next save should have them.

    A tensor that the layout of today would cut into too many fragments gets another grid if the parent's
    save wrote all of its bytes anew; then nothing is lost by not finding them again.
    """
    grids = {info.path: info for info in parent.tensors()}
    for path, shard in catalogue.tensors.items():
        info = grids.get(path)
        if (
            info is None
            or shard.layout is None
            or (info.dtype, info.shape) != (shard.dtype, shard.shape)
        ):
            continue
        before = Grid(info.shape, info.cells)
        if fragmentation(before, shard.layout).share <= FRAGMENT_SHARE_MAX:
            continue
        rewritten = _was_rewritten(parent, path)
        after = plan_grid(before, itemsize(info.dtype), shard.layout, rewritten=rewritten)
        grids[path] = replace(info, cells=after.cells)
    return grids


def _was_rewritten(parent: Manifest, path: TensorPath) -> bool:
    """Return whether all bytes of a tensor stand in packs that the parent's own save wrote."""
    root, rows = parent.root, parent.rows(path)
    numbers = {*rows.runs.pack.tolist(), *rows.fragments.pack.tolist()}
    own = (root.lineage.label, root.term, root.save)
    names = [parse_pack_key(pack.key) for pack in parent.packs(numbers).values()]
    return all((f"{n.name}@{n.generation}", n.term, n.save) == own for n in names)
