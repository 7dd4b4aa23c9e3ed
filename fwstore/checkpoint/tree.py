"""Takes a nested state apart into named tensors and a plain skeleton, and puts it together again.

Invariant: ``unflatten(*flatten(tree))`` is the tree with the same containers, the same order and the same
ties: tensors that shared memory are one tensor under all their paths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from fwstore.base.errors import InvalidInput, NotFound
from fwstore.checkpoint.adapter import Adapters, default_adapters, refuse_bare
from fwstore.checkpoint.shard import Shard
from fwstore.format.paths import TensorPath, display_path, encode_path
from fwstore.format.state import STATE_DEPTH_MAX, ForeignValue, TensorSlot, unsupported

_DICTS = (dict, OrderedDict)
_SEQUENCES = (list, tuple)
_SETS = (set, frozenset)
_BRANCHES = (TensorSlot, *_DICTS, *_SEQUENCES)


def flatten(tree: Any, adapters: Adapters | None = None) -> tuple[Any, dict[TensorPath, Any]]:
    """Return the plain skeleton of a state and its tensors by path, ties only once.

    Dict keys that are str or int, and indices of lists and tuples, become elements of a path. Objects with
    attributes are not looked into. The skeleton shares mutable leaves, such as a bytearray, with the tree:
    encode it before the tree changes.

    Args:
        tree: Nested dicts, lists and tuples of tensors and plain values.
        adapters: Tells tensors from plain values.

    Raises:
        UnsupportedValue: A tensor stands where it has no path, or containers nest too deep.
        InvalidInput: The path of a tensor is too long.
    """
    walk = _Flatten(adapters or default_adapters())
    skeleton = walk.visit(tree, ())
    if isinstance(skeleton, TensorSlot):
        raise refuse_bare(tree)
    return skeleton, walk.tensors


def unflatten(
    skeleton: Any, tensors: Mapping[TensorPath, Any], adapters: Adapters | None = None
) -> Any:
    """Return the state of a skeleton and its tensors.

    Raises:
        NotFound: A tensor of the skeleton is not among those given.
    """
    return _rebuild(skeleton, (), tensors, adapters or default_adapters())


def tensor_slots(skeleton: Any, path: TensorPath = ()) -> Iterator[tuple[TensorPath, TensorSlot]]:
    """Yield the path and slot of every tensor of a skeleton, aliases too, in the order of the state."""
    if isinstance(skeleton, TensorSlot):
        yield path, skeleton
    elif type(skeleton) in _DICTS:
        for key, value in skeleton.items():
            if type(value) in _BRANCHES:
                yield from tensor_slots(value, (*path, key))
    elif type(skeleton) in _SEQUENCES:
        for index, value in enumerate(skeleton):
            if type(value) in _BRANCHES:
                yield from tensor_slots(value, (*path, index))


def assign(tree: Any, path: TensorPath, value: Any) -> None:
    """Put a value where a path of a nested state leads.

    Raises:
        NotFound: The path leads nowhere.
        InvalidInput: The value would stand in a tuple, which cannot change.
    """
    parent = tree
    try:
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]]
    except (KeyError, IndexError, TypeError) as error:
        raise NotFound(f"{display_path(path)} is not in the state") from error
    if isinstance(parent, tuple):
        raise InvalidInput(
            f"{display_path(path)} stands in a tuple, which cannot be changed in place"
        )
    parent[path[-1]] = value


class _Flatten:
    def __init__(self, adapters: Adapters) -> None:
        self.tensors: dict[TensorPath, Any] = {}
        self._adapters = adapters
        self._first: dict[tuple[str, Hashable], TensorPath] = {}
        self._open: set[int] = set()

    def visit(self, value: Any, path: tuple[Hashable, ...]) -> Any:
        kind = type(value)
        if kind in _DICTS or kind in _SEQUENCES:
            return self._container(value, path)
        if kind in _SETS:
            return kind(self._without_tensors(element, path) for element in value)
        adapter = self._adapters.of_tensor(value)
        if adapter is None:
            plain = self._adapters.plain(value)
            return value if plain is None else plain
        slot_kind = value.kind if isinstance(value, Shard) else adapter.kind
        return self._tensor(value, path, slot_kind, adapter.identity(value))

    def _container(self, value: Any, path: tuple[Hashable, ...]) -> Any:
        if id(value) in self._open:
            raise unsupported(path, "a container that contains itself")
        if len(path) >= STATE_DEPTH_MAX:
            raise unsupported(path, f"nested deeper than {STATE_DEPTH_MAX} levels")
        self._open.add(id(value))
        try:
            if type(value) in _SEQUENCES:
                return type(value)(self.visit(v, (*path, i)) for i, v in enumerate(value))
            return type(value)(
                (self._without_tensors(key, path), self.visit(v, (*path, key)))
                for key, v in value.items()
            )
        finally:
            self._open.discard(id(value))

    def _tensor(
        self, value: Any, path: tuple[Hashable, ...], kind: str, identity: Hashable | None
    ) -> TensorSlot:
        names = tuple(key for key in path if type(key) is str or type(key) is int)
        if len(names) != len(path):
            raise unsupported(path, "a tensor below a key that is neither text nor a whole number")
        if names:
            encode_path(names)
        if identity is not None:
            first = self._first.setdefault((kind, identity), names)
            if first != names:
                return TensorSlot(kind, first)
        self.tensors[names] = value
        return TensorSlot(kind)

    def _without_tensors(self, value: Any, path: tuple[Hashable, ...]) -> Any:
        """Return a dict key or set element in its plain form."""
        if type(value) in (str, int):
            return value
        if type(value) in (tuple, frozenset):
            return type(value)(self._without_tensors(element, path) for element in value)
        if self._adapters.of_tensor(value) is not None:
            raise unsupported(path, "a tensor as a dict key or in a set")
        plain = self._adapters.plain(value)
        return value if plain is None else plain


def _rebuild(
    value: Any, path: tuple[Any, ...], tensors: Mapping[TensorPath, Any], adapters: Adapters
) -> Any:
    kind = type(value)
    if kind is TensorSlot:
        name = path if value.alias is None else value.alias
        if name not in tensors:
            raise NotFound(f"tensor {display_path(name)} is in the state but was not loaded")
        return tensors[name]
    if kind is ForeignValue:
        return adapters.revive(value)
    if kind in _DICTS:
        return kind(
            (_rebuild(key, (), {}, adapters), _rebuild(v, (*path, key), tensors, adapters))
            for key, v in value.items()
        )
    if kind in _SEQUENCES:
        return kind(_rebuild(v, (*path, i), tensors, adapters) for i, v in enumerate(value))
    if kind in _SETS:
        return kind(_rebuild(element, (), {}, adapters) for element in value)
    return value
