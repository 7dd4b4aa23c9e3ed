"""Tensors of other snapshots that a snapshot takes over by reference, without moving a byte.

Invariant: before a record refers to packs of another lineage, a pin in that lineage's log keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fwstore.checkpoint.access import Access
from fwstore.checkpoint.reserved import is_reserved
from fwstore.content.contribution import Contribution
from fwstore.content.manifest import Manifest
from fwstore.format.paths import TensorPath, encode_path
from fwstore.format.record import Foreign
from fwstore.format.rows import concat_fragments, concat_runs
from fwstore.format.summary import SnapshotEntry
from fwstore.format.tensor import TensorInfo
from fwstore.log.pins import pin
from fwstore.log.term import Term


@dataclass(frozen=True, eq=False)
class Reference:
    """A snapshot whose tensors stand below a path of another one.

    Attributes:
        prefix: Put before every path; empty for a fork.
        access: The lineage of the snapshot.
        entry: The snapshot.
        manifest: Its manifest.
    """

    prefix: TensorPath
    access: Access
    entry: SnapshotEntry
    manifest: Manifest


def contribution_of_reference(reference: Reference, rank: int = 0) -> Contribution:
    """Return what a reference brings to a snapshot: the rows of its tensors, no new byte.

    A fork, which has no prefix, takes the plain state and the values of ranks as well.
    """
    manifest = reference.manifest
    # Below a prefix, the plain state and the values of ranks would be taken for tensors of the user.
    infos = {
        info.path: _below(reference.prefix, info)
        for info in manifest.tensors()
        if not (reference.prefix and is_reserved(info.path))
    }
    ordered = sorted(infos.items(), key=lambda pair: encode_path(pair[1].path))
    runs, fragments = [], []
    for number, (path, info) in enumerate(ordered):
        if info.alias is None:
            rows = manifest.rows(path)
            runs.append(replace(rows.runs, tensor=np.full(len(rows.runs), number, np.uint32)))
            column = np.full(len(rows.fragments), number, np.uint32)
            fragments.append(replace(rows.fragments, tensor=column))
    tensors = tuple(info for _, info in ordered)
    return Contribution(
        rank=rank,
        tensors=tensors,
        lineages=tuple(manifest.root.lineages),
        packs=tuple(pack.info for pack in manifest.all_packs()),
        runs=concat_runs(runs),
        fragments=concat_fragments(fragments),
        bytes_written=0,
        bytes_reused=sum(info.size_bytes for info in tensors if info.alias is None),
    )


def _below(prefix: TensorPath, info: TensorInfo) -> TensorInfo:
    alias = None if info.alias is None else (*prefix, *info.alias)
    return replace(info, path=(*prefix, *info.path), alias=alias)


def pin_references(
    references: Sequence[Reference],
    borrower: Access,
    term: Term,
    logs: Mapping[str, Access],
) -> tuple[Foreign, ...]:
    """Pin all snapshots that references use, theirs and those they borrow from, unless they are held.

    Args:
        references: What will be referred to.
        borrower: The lineage that refers to it.
        term: Its right to write; its base holds pins already.
        logs: Access by label to lineages that references borrow from.

    Returns:
        The pins that commit records of the term must list as foreign.
    """
    held = () if term.base is None else term.base.foreign
    found = {(foreign.lineage, foreign.snapshot): foreign for foreign in held}
    for reference in references:
        wanted = [(reference.access, reference.entry.id)]
        wanted += [(logs[foreign.label], foreign.snapshot) for foreign in reference.entry.foreign]
        for access, snapshot in wanted:
            if access.lineage == borrower.lineage or (access.lineage, snapshot) in found:
                continue
            label = borrower.keys.label
            token = pin(
                access.log,
                snapshot,
                f"used by {label}",
                borrower=label,
                borrower_term=term.number,
            )
            foreign = Foreign(access.keys.label, access.lineage, snapshot, token)
            found[access.lineage, snapshot] = foreign
    return tuple(found.values())
