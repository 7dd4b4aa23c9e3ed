"""The union of what the ranks of a save bring: one tensor dictionary, one pack list, one set of rows.

Invariant: a tensor that two ranks describe differently is refused by name; rows keep their meaning
through every renumbering. Pure, and without a loop over rows: 1e5 ranks bring 1e7 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fwstore.base.errors import Corrupt, InvalidInput
from fwstore.content.contribution import Contribution
from fwstore.content.lineages import join_lineages
from fwstore.format.packtable import PackInfo
from fwstore.format.paths import TensorPath, display_path, encode_path
from fwstore.format.root import LineageRef
from fwstore.format.rows import (
    FragmentTable,
    RunTable,
    concat_fragments,
    concat_runs,
    merge_runs,
    sort_fragments,
    sort_runs,
)
from fwstore.format.tensor import TensorInfo

Numbers = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Union:
    """All tensors, packs and rows of a snapshot.

    Attributes:
        tensors: Sorted by stored path.
        lineages: The lineages of the packs, that of the snapshot first.
        packs: Those that rows refer to, sorted.
        runs: Sorted, adjoining ones merged; tensors and packs are numbers in the lists above.
        fragments: Sorted, likewise.
    """

    tensors: tuple[TensorInfo, ...]
    lineages: tuple[LineageRef, ...]
    packs: tuple[PackInfo, ...]
    runs: RunTable
    fragments: FragmentTable


def unite(lineage: LineageRef, contributions: Sequence[Contribution]) -> Union:
    """Return the union of some contributions.

    Raises:
        InvalidInput: Ranks disagree on a tensor, or tensors are tied in a circle; tensor and ranks are named.
        Corrupt: Contributions contradict each other on a pack.
    """
    tensors, tensor_numbers = _unite_tensors(contributions)
    lineages, all_packs, pack_numbers = _unite_packs(lineage, contributions)
    runs = concat_runs(
        [
            replace(part.runs, tensor=tensor[part.runs.tensor], pack=pack[part.runs.pack])
            for part, tensor, pack in zip(contributions, tensor_numbers, pack_numbers, strict=True)
        ]
    )
    fragments = concat_fragments(
        [
            replace(
                part.fragments, tensor=tensor[part.fragments.tensor], pack=pack[part.fragments.pack]
            )
            for part, tensor, pack in zip(contributions, tensor_numbers, pack_numbers, strict=True)
        ]
    )
    # A rank that did not know of a tie brought the bytes of the tied tensor; its twin's are used.
    tied = np.array([info.alias is not None for info in tensors], np.bool_)
    if tied.any():
        runs = runs.take(~tied[runs.tensor])
        fragments = fragments.take(~tied[fragments.tensor])
    packs, runs, fragments = _keep_used(all_packs, runs, fragments)
    lineages, packs = _keep_lineages(lineages, packs)
    return Union(tensors, lineages, packs, merge_runs(sort_runs(runs)), sort_fragments(fragments))


def _unite_tensors(
    contributions: Sequence[Contribution],
) -> tuple[tuple[TensorInfo, ...], list[Numbers]]:
    united: dict[TensorPath, tuple[TensorInfo, int]] = {}
    distinct = {id(part.tensors): part for part in contributions}
    for part in distinct.values():
        for info in part.tensors:
            before = united.get(info.path)
            if before is None:
                united[info.path] = (info, part.rank)
            elif before[0] != info:
                united[info.path] = (_reconcile(*before, info, part.rank), before[1])
    tensors = tuple(sorted((info for info, _ in united.values()), key=_stored_path))
    _check_ties(tensors)
    number_of = {info.path: number for number, info in enumerate(tensors)}
    numbers = {
        key: np.array([number_of[info.path] for info in part.tensors], np.uint32)
        for key, part in distinct.items()
    }
    return tensors, [numbers[id(part.tensors)] for part in contributions]


def _stored_path(info: TensorInfo) -> bytes:
    return encode_path(info.path)


def _reconcile(one: TensorInfo, rank: int, other: TensorInfo, other_rank: int) -> TensorInfo:
    for name in ("dtype", "shape", "cells"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            raise InvalidInput(
                f"tensor {display_path(one.path)} has {name} {mine} on rank {rank} "
                f"but {theirs} on rank {other_rank}"
            )
    if None not in (one.alias, other.alias):
        raise InvalidInput(
            f"tensor {display_path(one.path)} is tied to different tensors on ranks {rank} and {other_rank}"
        )
    return one if one.alias is not None else other


def _check_ties(tensors: Sequence[TensorInfo]) -> None:
    infos = {info.path: info for info in tensors}
    for info in tensors:
        if info.alias is None:
            continue
        target = infos.get(info.alias)
        tie = f"tensor {display_path(info.path)} is tied to {display_path(info.alias)}"
        if target is None:
            raise InvalidInput(f"{tie}, which no rank has")
        if target.alias is not None:
            raise InvalidInput(f"{tie}, which is itself tied: ranks tie these tensors differently")
        if (target.dtype, target.shape) != (info.dtype, info.shape):
            raise InvalidInput(f"{tie}, which has another dtype or shape")


def _unite_packs(
    lineage: LineageRef, contributions: Sequence[Contribution]
) -> tuple[tuple[LineageRef, ...], list[PackInfo], list[Numbers]]:
    lineages, (_, *renumbered) = join_lineages(
        [[lineage], *(part.lineages for part in contributions)]
    )
    numbers: dict[PackInfo, int] = {}
    pack_numbers = []
    for part, new in zip(contributions, renumbered, strict=True):
        packs = (
            pack if new[pack.lineage] == pack.lineage else replace(pack, lineage=new[pack.lineage])
            for pack in part.packs
        )
        pack_numbers.append(
            np.array([numbers.setdefault(pack, len(numbers)) for pack in packs], np.uint32)
        )
    return lineages, list(numbers), pack_numbers


def _keep_used(
    packs: Sequence[PackInfo], runs: RunTable, fragments: FragmentTable
) -> tuple[tuple[PackInfo, ...], RunTable, FragmentTable]:
    used = np.union1d(runs.pack, fragments.pack).tolist()
    order = sorted(used, key=lambda number: _pack_identity(packs[number]))
    kept = tuple(packs[number] for number in order)
    for one, other in pairwise(kept):
        if _pack_identity(one) == _pack_identity(other):
            raise Corrupt(
                f"ranks disagree on the size or footer of pack {one.token} of save {one.save}"
            )
    renumbered = np.zeros(len(packs), np.uint32)
    renumbered[order] = np.arange(len(order), dtype=np.uint32)
    return (
        kept,
        replace(runs, pack=renumbered[runs.pack]),
        replace(fragments, pack=renumbered[fragments.pack]),
    )


def _keep_lineages(
    lineages: tuple[LineageRef, ...], packs: tuple[PackInfo, ...]
) -> tuple[tuple[LineageRef, ...], tuple[PackInfo, ...]]:
    """Forget lineages that no pack is of any more, so that what they lent is given back."""
    used = sorted({0, *(pack.lineage for pack in packs)})
    if len(used) == len(lineages):
        return lineages, packs
    numbers = {old: new for new, old in enumerate(used)}
    renumbered = tuple(replace(pack, lineage=numbers[pack.lineage]) for pack in packs)
    return tuple(lineages[number] for number in used), renumbered


def _pack_identity(pack: PackInfo) -> tuple[int | str, ...]:
    return (
        pack.lineage,
        pack.term,
        pack.save,
        pack.rank,
        pack.number,
        pack.token,
        pack.incarnation,
    )
