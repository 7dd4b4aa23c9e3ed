"""Loading a snapshot into existing memory or into a new state.

Invariant: nothing is declared loaded before every wanted byte was verified; names, shapes and dtypes are
checked before the first byte is read.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.adapter import TensorAdapter
from fwstore.checkpoint.reserved import is_reserved
from fwstore.checkpoint.selection import (
    Described,
    Only,
    Rename,
    check_only,
    is_complex,
    name_filter,
    pair_names,
)
from fwstore.checkpoint.shard import Piece, Shard, raw_dtype
from fwstore.checkpoint.states import common_kind, complete, load_skeleton, revived, slots_of
from fwstore.checkpoint.ties import fill_once, same_content
from fwstore.checkpoint.tree import assign, flatten, tensor_slots, unflatten
from fwstore.content.manifest import Manifest
from fwstore.format.dtypes import ITEMSIZE
from fwstore.format.paths import TensorPath, display_path
from fwstore.format.state import TensorSlot
from fwstore.format.tensor import TensorInfo
from fwstore.plan.box import Box
from fwstore.sched import collection_paused

_MAPS = (dict, OrderedDict)
_REAL = ("float", "bfloat")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a load takes and how.

    Attributes:
        only: Globs over saved names.
        rename: From saved names to those of the destination.
        dtype: "cast", a dtype, or None.
        strict: Whether names must match one to one.
    """

    only: Only = None
    rename: Rename = None
    dtype: Any = None
    strict: bool = True


class Fill(NamedTuple):
    """One saved tensor and the memory of this rank that receives its elements."""

    path: TensorPath
    dtype: str
    shard: Shard
    adapter: TensorAdapter


def read_boxes(
    access: Access,
    manifest: Manifest,
    wanted: Mapping[TensorPath, Sequence[tuple[Box, np.ndarray[Any, Any]]]],
) -> None:
    """Read boxes of many tensors into arrays, side by side."""
    pieces = {path: [Piece(*box) for box in boxes] for path, boxes in wanted.items()}
    access.reader.read(manifest, pieces.items())


def fill(access: Access, manifest: Manifest, fills: Sequence[Fill]) -> None:
    """Fill the memory of some tensors, converting element types where they differ."""
    reads: list[tuple[TensorPath, Sequence[Piece]]] = []
    casts = []
    for one in fills:
        pieces = one.shard.pieces
        if one.shard.dtype != one.dtype:
            raw = raw_dtype(one.dtype)
            pieces = tuple(Piece(p.box, np.empty(p.box.sizes, raw)) for p in pieces)
            casts.append((one, pieces))
        if any(0 not in piece.box.sizes for piece in pieces):
            reads.append((one.path, pieces))
    access.reader.read(manifest, reads)
    for one, pieces in casts:
        for source, target in zip(pieces, one.shard.pieces, strict=True):
            _convert(one, source, target)


def _convert(one: Fill, source: Piece, target: Piece) -> None:
    converted = one.adapter.convert(np.asarray(source.array), one.dtype, one.shard.dtype)
    if isinstance(target.array, np.ndarray):
        np.copyto(target.array, converted)
    else:
        whole = tuple(slice(0, size) for size in target.box.sizes)
        target.array.copy_from_host(whole, converted)


def load_tree(access: Access, manifest: Manifest, selection: Selection) -> Any:
    """Return a new state with whole tensors."""
    if selection.rename is not None:
        raise InvalidInput("rename= needs into=: a new state has the saved names")
    keep = name_filter(selection.only)
    infos = {info.path: info for info in manifest.tensors() if not is_reserved(info.path)}
    skeleton = load_skeleton(access, manifest)
    kind = common_kind(slots_of(skeleton))
    skeleton = complete(skeleton, manifest, kind)
    slots = {path: slot for path, slot in slots_of(skeleton).items() if path in infos}
    if selection.strict:
        check_only(selection.only, map(display_path, slots))
    slots = {path: slot for path, slot in slots.items() if keep(display_path(path))}
    if selection.only is not None:
        skeleton = _prune(skeleton, set(slots), ())
    values: dict[TensorPath, Any] = {}
    fills: list[Fill] = []
    for path, slot in slots.items():
        source = infos[path].alias or path
        if source not in values:
            values[source] = _allocate(access, infos[path], source, slot, selection, fills)
    fill(access, manifest, fills)
    return unflatten(skeleton, values, access.adapters)


def _allocate(
    access: Access,
    info: TensorInfo,
    source: TensorPath,
    slot: TensorSlot,
    selection: Selection,
    fills: list[Fill],
) -> Any:
    adapter = access.adapters.of_kind(slot.kind)
    value = adapter.allocate(_wanted_dtype(info.dtype, selection.dtype), info.shape)
    fills.append(Fill(source, info.dtype, adapter.describe(value, writable=True), adapter))
    return value


def _wanted_dtype(saved: str, dtype: Any) -> str:
    if dtype is None:
        return saved
    name = dtype if isinstance(dtype, str) else str(dtype).rpartition(".")[2]
    kind = _kind(name)
    if name not in ITEMSIZE or not kind:
        raise InvalidInput(
            f"dtype {dtype!r} is no floating-point dtype; name one such as 'float32' or 'bfloat16'"
        )
    # A complex tensor made real would lose half of what was saved.
    return name if _kind(saved) == kind else saved


def _kind(dtype: str) -> str:
    """Return "real" or "complex" for floating-point dtypes, else nothing."""
    if dtype.startswith(_REAL):
        return "real"
    return "complex" if is_complex(dtype) else ""


def _prune(value: Any, kept: set[TensorPath], path: tuple[Any, ...]) -> Any:
    """Return a skeleton without the slots that were not selected and the containers this empties."""
    if type(value) in _MAPS:
        pruned = type(value)()
        for key, child in value.items():
            if isinstance(child, TensorSlot) and (*path, key) not in kept:
                continue
            smaller = _prune(child, kept, (*path, key))
            if child and not smaller and type(child) in (*_MAPS, list, tuple):
                continue
            pruned[key] = smaller
        return pruned
    if type(value) in (list, tuple):
        return type(value)(
            None
            if isinstance(child, TensorSlot) and (*path, index) not in kept
            else _prune(child, kept, (*path, index))
            for index, child in enumerate(value)
        )
    return value


def load_into(access: Access, manifest: Manifest, into: Any, selection: Selection) -> Any:
    """Fill the tensors of a state in place and replace its plain values by the saved ones."""
    saved = {info.path: info for info in manifest.tensors() if not is_reserved(info.path)}
    with collection_paused():
        skeleton, tensors = flatten(into, access.adapters)
        sources = _sources(access, manifest, saved, (skeleton, tensors), selection)
        fills = [
            _destination(access, into, skeleton, target, tensors[target], saved[source])
            for target, source in sources.items()
        ]
    fill(access, manifest, fills)
    if selection.only is None and selection.rename is None:
        _take_plain(into, skeleton, revived(access, load_skeleton(access, manifest)))
    return into


def _sources(
    access: Access,
    manifest: Manifest,
    saved: Mapping[TensorPath, TensorInfo],
    flat: tuple[Any, Mapping[TensorPath, Any]],
    selection: Selection,
) -> dict[TensorPath, TensorPath]:
    """Return for every tensor of a flattened destination that is filled the saved one that fills it."""
    skeleton, tensors = flat
    first_of = {path: slot.alias or path for path, slot in tensor_slots(skeleton)}
    described = {p: Described(*access.adapters.form(p, v)) for p, v in tensors.items()}
    return fill_once(
        _pair(saved, {path: described[first] for path, first in first_of.items()}, selection),
        first_of,
        saved,
        lambda one, other: same_content(access, manifest, one, other),
    )


def _destination(
    access: Access, into: Any, skeleton: Any, target: TensorPath, tensor: Any, saved: TensorInfo
) -> Fill:
    """Return the memory that a saved tensor fills, made first where there is none yet."""
    adapter = access.adapters.owner(tensor)
    value = adapter.materialise(tensor)
    if value is not tensor:
        _replace(into, skeleton, target, value)
    shard = access.adapters.describe(target, value, writable=True, adapter=adapter)
    return Fill(saved.path, saved.dtype, shard, adapter)


def _replace(into: Any, skeleton: Any, target: TensorPath, value: Any) -> None:
    """Put a tensor that got memory where it stood, and where its ties stood."""
    assign(into, target, value)
    for path, slot in tensor_slots(skeleton):
        if slot.alias == target:
            assign(into, path, value)


def _pair(
    saved: Mapping[TensorPath, TensorInfo],
    wanted: Mapping[TensorPath, Described],
    selection: Selection,
) -> dict[TensorPath, TensorPath]:
    if selection.dtype not in (None, "cast"):
        raise InvalidInput("with into=, dtype= may only be 'cast': the destination has its dtypes")
    if selection.only is None and selection.rename is None and _are_alike(saved, wanted):
        return {path: path for path in wanted}
    shown = {path: display_path(path) for path in (*saved, *wanted)}
    ambiguous = _repeated(shown[path] for path in saved) | _repeated(shown[p] for p in wanted)
    saved_names = _names(saved, shown, ambiguous)
    wanted_names = _names(wanted, shown, ambiguous)
    pairs = pair_names(
        {
            name: Described(saved[path].dtype, saved[path].shape)
            for name, path in saved_names.items()
        },
        {name: wanted[path] for name, path in wanted_names.items()},
        only=selection.only,
        rename=selection.rename,
        strict=selection.strict,
        cast=selection.dtype == "cast",
    )
    return {wanted_names[name]: saved_names[source] for name, source in pairs.items()}


def _are_alike(
    saved: Mapping[TensorPath, TensorInfo], wanted: Mapping[TensorPath, Described]
) -> bool:
    """Return whether both sides have the same tensors, so that nobody needs their names."""
    return saved.keys() == wanted.keys() and all(
        (saved[path].dtype, saved[path].shape) == (form.dtype, form.shape)
        for path, form in wanted.items()
    )


def _repeated(names: Iterable[str]) -> set[str]:
    """Return the names of several paths: an int and a text key may read alike."""
    return {name for name, count in Counter(names).items() if count > 1}


def _names(
    paths: Iterable[TensorPath], shown: Mapping[TensorPath, str], ambiguous: Container[str]
) -> dict[str, TensorPath]:
    """Return paths by name; where names are ambiguous, ints are shown in brackets."""
    names: dict[str, TensorPath] = {}
    for path in paths:
        name = shown[path]
        if name in ambiguous:
            name = display_path(tuple(f"[{k}]" if isinstance(k, int) else k for k in path))
        if name in names:
            raise InvalidInput(f"{path} and {names[name]} are both called {name}; rename one")
        names[name] = path
    return names


def _take_plain(into: Any, skeleton: Any, saved: Any) -> None:
    """Replace plain values of a nested state by the saved ones of the same place; tensors stay.

    Args:
        into: The state.
        skeleton: What `flatten` made of it, which tells where its tensors are.
        saved: The saved state, with slots.
    """
    if type(into) in _MAPS and type(saved) in _MAPS:
        places = [(key, skeleton.get(key), saved[key]) for key in into if key in saved]
    elif type(into) is list and type(saved) is list:
        places = [(n, *pair) for n, pair in enumerate(zip(skeleton, saved, strict=False))]
    else:
        return
    for key, slot, value in places:
        if type(slot) is TensorSlot or type(value) is TensorSlot:
            continue
        if _holds_slots(slot) or _holds_slots(value):
            _take_plain(into[key], slot, value)
        else:
            into[key] = _replaced(into[key], value)


def _replaced(old: Any, new: Any) -> Any:
    """Return a plain value in place of another: in its dict or list, which others may hold."""
    if type(old) in _MAPS and type(new) in _MAPS:
        old.clear()
        old.update(new)
        return old
    if type(old) is list and type(new) is list:
        old[:] = new
        return old
    return new


def _holds_slots(value: Any) -> bool:
    return any(True for _ in tensor_slots(value))
