"""The command `diff`: which tensors changed, how much, and which bytes two checkpoints share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from fwstore import Checkpoint, LazyTensor, format_size
from fwstore_cli.layers import first
from fwstore_cli.session import (
    LimitOption,
    Session,
    command,
    find_checkpoint,
    make_facts,
    make_table,
)


def add_diff_command(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "diff")(diff)


@dataclass(frozen=True, slots=True)
class Change:
    """How one tensor differs.

    Attributes:
        tensor: Its name.
        change: "added", "removed", "reshaped", "changed" or "same".
        bytes_before: Its bytes in the older checkpoint.
        bytes_after: Its bytes in the newer one.
        bytes_shared: Bytes of the newer one in chunks that the older one has too.
    """

    tensor: str
    change: str
    bytes_before: int
    bytes_after: int
    bytes_shared: int


@dataclass(frozen=True)
class _Chunks:
    """The distinct chunks of something, by content id, and their lengths."""

    ids: NDArray[Any]
    lengths: NDArray[np.uint64]

    def shared(self, other: _Chunks) -> int:
        """Return the bytes of the chunks here that are also there."""
        return int(self.lengths[np.isin(self.ids, other.ids)].sum())


def diff(
    session: Session,
    old: Annotated[str, typer.Argument(metavar="OLD", help="RUN[@STEP]; default: newest step.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="RUN[@STEP]; default: newest step.")],
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Also list equal tensors.")] = False,
    limit: LimitOption = 100,
) -> None:
    """Compare two checkpoints: tensors added, removed and changed, and the bytes they share.

    Contents are compared by the ids of their chunks; no tensor is read. A tensor that was cut in
    another way since counts as changed where its chunks differ.
    """
    with session.repository() as repository:
        before, after = find_checkpoint(repository, old), find_checkpoint(repository, new)
        changes = compare(before, after)
        shared = _all_chunks(after).shared(_all_chunks(before))
    listed = [change for change in changes if show_all or change.change != "same"]
    total = sum(tensor.nbytes for tensor in after.tensors.values() if tensor.alias is None)
    facts = {
        "tensors": f"{len(changes) - sum(c.change == 'same' for c in changes)} of {len(changes)} differ",
        "shared": f"{format_size(shared)} of {format_size(total)}",
    }
    table = make_table("tensor", "change", "size", "changed", right=("size", "changed"))
    for change in first(listed, limit):
        size = format_size(change.bytes_after or change.bytes_before)
        table.add_row(change.tensor, change.change, size, _share(change))
    value = {"old": before.id, "new": after.id, "bytes_shared": shared, "tensors": listed}
    session.emit(value, table, make_facts(facts))


def compare(before: Checkpoint, after: Checkpoint) -> list[Change]:
    """Return how every tensor of either checkpoint differs, by name."""
    old, new = dict(before.tensors.items()), dict(after.tensors.items())
    changes = [_removed(tensor) for path, tensor in old.items() if path not in new]
    for path, tensor in new.items():
        if path not in old:
            changes.append(Change(tensor.name, "added", 0, tensor.nbytes, 0))
        else:
            changes.append(_compare_one(before, after, old[path], tensor))
    return sorted(changes, key=lambda change: change.tensor)


def _removed(tensor: LazyTensor) -> Change:
    return Change(tensor.name, "removed", tensor.nbytes, 0, 0)


def _compare_one(before: Checkpoint, after: Checkpoint, old: LazyTensor, new: LazyTensor) -> Change:
    there, here = _chunks(before, old), _chunks(after, new)
    shared = min(here.shared(there), new.nbytes)
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        kind = "reshaped"
    else:
        kind = "same" if np.array_equal(there.ids, here.ids) else "changed"
    return Change(new.name, kind, old.nbytes, new.nbytes, shared)


def _chunks(checkpoint: Checkpoint, tensor: LazyTensor) -> _Chunks:
    table = checkpoint.chunks(tensor.path)
    ids = np.ascontiguousarray(table.ids).view("V32").reshape(-1)
    return _Chunks(ids, table.raw_lengths)


def _all_chunks(checkpoint: Checkpoint) -> _Chunks:
    parts = [
        _chunks(checkpoint, tensor)
        for tensor in checkpoint.tensors.values()
        if tensor.alias is None
    ]
    if not parts:
        return _Chunks(np.zeros(0, "V32"), np.zeros(0, np.uint64))
    ids = np.concatenate([part.ids for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    distinct, places = np.unique(ids, return_index=True)
    return _Chunks(distinct, lengths[places])


def _share(change: Change) -> str:
    if change.change in ("added", "removed") or not change.bytes_after:
        return ""
    return f"{1 - change.bytes_shared / change.bytes_after:.1%}"
