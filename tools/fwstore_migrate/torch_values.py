"""Values that torch.save wrote, from their inert description.

Invariant: tensors become lazy `Shard`s that read their file when they are stored; everything else
becomes a plain value, or an error that names where it stands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fwstore import (
    Box,
    Corrupt,
    ForeignValue,
    FwstoreError,
    LimitExceeded,
    Piece,
    Shard,
    UnsupportedValue,
    display_path,
    itemsize,
)
from fwstore_migrate.dtypes import TORCH_DTYPES, TORCH_STORAGES
from fwstore_migrate.files import FileRange, FileTensor, check_tensor
from fwstore_migrate.limits import (
    DEPTH_MAX,
    SHARED_VALUES_MAX,
    TREE_VALUES_MAX,
    VALUES_PER_BYTE_MAX,
)
from fwstore_migrate.pickled import Built, Global, Persistent, read_pickle
from fwstore_migrate.torch_archive import TorchArchive, open_archive

_REBUILT = "torch._utils"
_ARRAYS = "numpy._core.multiarray"

ALLOWED: frozenset[tuple[str, str]] = frozenset(
    {
        ("collections", "OrderedDict"),
        ("collections", "Counter"),
        ("collections", "defaultdict"),
        ("builtins", "bytearray"),
        ("builtins", "complex"),
        ("builtins", "dict"),
        ("builtins", "frozenset"),
        ("builtins", "list"),
        ("builtins", "int"),
        ("builtins", "float"),
        ("builtins", "set"),
        ("_codecs", "encode"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch.storage", "UntypedStorage"),
        (_REBUILT, "_rebuild_tensor"),
        (_REBUILT, "_rebuild_tensor_v2"),
        (_REBUILT, "_rebuild_tensor_v3"),
        (_REBUILT, "_rebuild_parameter"),
        (_REBUILT, "_rebuild_parameter_with_state"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        (_ARRAYS, "_reconstruct"),
        (_ARRAYS, "scalar"),
        *(("torch", name) for name in TORCH_STORAGES),
        *(("torch", name) for name in TORCH_DTYPES),
    }
)

Path = tuple[str | int, ...]

_PLAIN = (bool, int, float, complex, str, bytes, bytearray)


Skipped = Callable[[str], bool]


def keep_all(_: str) -> bool:
    """Skip nothing."""
    return False


def read_torch_file(source: FileRange, skipped: Skipped = keep_all) -> Any:
    """Return the value of a torch.save file, its tensors as lazy shards.

    Args:
        source: The file.
        skipped: Tells, by the displayed path, the entries of dicts that are left out. Only with such a
            rule may the pickle refer to unknown classes at all: in what is left out.

    Raises:
        UnsupportedValue: It holds something that cannot be stored; the message says where.
        Corrupt: It is malformed.
    """
    archive = open_archive(source)
    allowed = ALLOWED if skipped is keep_all else None
    payload = archive.pickle()
    value = read_pickle(payload, allowed, source.name)
    most = min(TREE_VALUES_MAX, SHARED_VALUES_MAX + VALUES_PER_BYTE_MAX * len(payload))
    return TorchValues(archive, skipped, most).convert(value, ())


@dataclass
class TorchValues:
    """The conversion of one archive; the same tensor met twice becomes the same shard.

    Attributes:
        archive: The file.
        skipped: Tells what is left out.
        left: How many more values may come. A container that is referred to again counts again, so a few bytes
            could unfold to any number.
    """

    archive: TorchArchive
    skipped: Skipped
    left: int
    _shards: dict[FileTensor, Shard] = field(default_factory=dict)

    def convert(self, value: Any, path: Path) -> Any:
        """Return a value without inert parts."""
        self.left -= 1
        if self.left < 0 or len(path) > DEPTH_MAX:
            raise LimitExceeded(f"{self.archive.source.name} has too many or too deep values")
        if value is None or isinstance(value, _PLAIN):
            return value
        if isinstance(value, dict):
            return self.mapping(value.items(), path)
        if isinstance(value, list | tuple | set | frozenset):
            return self._sequence(value, path)
        if isinstance(value, Built):
            return self._built(value, path)
        if isinstance(value, Global) and value.name in TORCH_DTYPES:
            return ForeignValue("torch", "dtype", (value.name,))
        raise self._refuse(value, path)

    def mapping(self, pairs: Any, path: Path) -> dict[Any, Any]:
        """Return the entries of a mapping without inert parts."""
        return {
            self.convert(key, (*path, "(key)")): self.convert(entry, (*path, _step(key)))
            for key, entry in pairs
            if not self.skipped(display_path((*path, _step(key))))
        }

    def _sequence(self, values: Any, path: Path) -> Any:
        return type(values)(self.convert(entry, (*path, i)) for i, entry in enumerate(values))

    def _built(self, built: Built, path: Path) -> Any:
        make = _MAKERS.get((built.constructor.module, built.constructor.name))
        if make is None:
            raise self._refuse(built, path)
        try:
            return make(self, built, path)
        except FwstoreError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise Corrupt(
                f"{self.archive.source.name}: the {built.constructor} at "
                f"{display_path(path)!r} is malformed: {error}"
            ) from error

    def _refuse(self, value: Any, path: Path) -> UnsupportedValue:
        named = value.constructor if isinstance(value, Built) else value
        kind = named if isinstance(named, Global) else type(value).__name__
        return UnsupportedValue(
            f"{self.archive.source.name}: the value at {display_path(path)!r} is a {kind}, which "
            "has no stored form; nothing was executed; it can be left out with --skip"
        )

    def tensor(self, reference: Any, geometry: tuple[Any, ...], dtype: str | None) -> Shard:
        """Return the shard of a view of a storage."""
        kind, storage, key, _, count = _persistent(reference)
        stored = TORCH_STORAGES.get(storage.name, "uint8")
        if kind != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("the storage reference is malformed")
        offset, shape, strides = geometry[:3]
        source = self.archive.storage(key)
        if count * itemsize(stored) > source.length:
            raise ValueError(f"its storage has {source.length} bytes and not {count} elements")
        view = FileTensor(source, offset, dtype or stored, _sizes(shape), _sizes(strides))
        if view not in self._shards:
            self._shards[view] = whole_shard(check_tensor(view))
        return self._shards[view]


def whole_shard(tensor: FileTensor) -> Shard:
    """Return the shard of a tensor that one file holds whole."""
    piece = Piece(Box.whole(tensor.shape), tensor)
    return Shard(dtype=tensor.element, shape=tensor.shape, pieces=(piece,), kind="torch")


def dtype_name(value: Any) -> str:
    """Return the dtype that ``torch.<name>`` stands for."""
    if isinstance(value, Global) and value.module == "torch" and value.name in TORCH_DTYPES:
        return value.name
    raise ValueError(f"{value!r} is not a dtype")


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Built) and value.constructor == Global("torch", "Size"):
        value = value.arguments[0]
    if not isinstance(value, tuple | list) or not all(type(size) is int for size in value):
        raise ValueError("its sizes are not whole numbers")
    return tuple(value)


def _persistent(reference: Any) -> tuple[Any, Global, Any, Any, Any]:
    if isinstance(reference, Persistent) and isinstance(reference.reference, tuple):
        kind, storage, key, location, count = reference.reference
        if isinstance(storage, Global):
            return kind, storage, key, location, count
    raise ValueError("it has no storage")


def _step(key: Any) -> str | int:
    return key if isinstance(key, str | int) else repr(key)[:100]


_Maker = Callable[[TorchValues, Built, Path], Any]


def _make_tensor(values: TorchValues, built: Built, path: Path) -> Shard:
    return values.tensor(built.arguments[0], built.arguments[1:4], None)


def _make_untyped_tensor(values: TorchValues, built: Built, path: Path) -> Shard:
    return values.tensor(built.arguments[0], built.arguments[1:4], dtype_name(built.arguments[6]))


def _make_parameter(values: TorchValues, built: Built, path: Path) -> Any:
    return values.convert(built.arguments[0], path)


def _make_dict(make: Callable[[Any], Any]) -> _Maker:
    def maker(values: TorchValues, built: Built, path: Path) -> Any:
        given = [entry for entry in built.arguments if not isinstance(entry, Global)]
        first = given[0] if given else ()
        pairs = [*(first.items() if isinstance(first, dict) else first), *built.pairs]
        return make(values.mapping(pairs, path))

    return maker


def _make_collection(make: Callable[[Any], Any]) -> _Maker:
    def maker(values: TorchValues, built: Built, path: Path) -> Any:
        given = built.arguments[0] if built.arguments else ()
        return make([values.convert(entry, path) for entry in [*given, *built.elements]])

    return maker


def _make_number(make: Callable[..., Any]) -> _Maker:
    def maker(values: TorchValues, built: Built, path: Path) -> Any:
        if not all(type(argument) in (int, float) for argument in built.arguments):
            raise ValueError("it is not made from numbers")
        return make(*built.arguments)

    return maker


def _make_size(values: TorchValues, built: Built, path: Path) -> ForeignValue:
    return ForeignValue("torch", "size", _sizes(built))


def _make_device(values: TorchValues, built: Built, path: Path) -> ForeignValue:
    kind, *index = built.arguments
    if type(kind) is not str or len(index) > 1 or not all(type(number) is int for number in index):
        raise ValueError("a device has a type and at most one index")
    return ForeignValue("torch", "device", (kind, index[0] if index else None))


def _make_bytes(values: TorchValues, built: Built, path: Path) -> bytes:
    text, encoding = built.arguments
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("bytes are only understood in their latin1 form")
    return text.encode("latin1")


def _make_bytearray(values: TorchValues, built: Built, path: Path) -> bytearray:
    first, *encoding = built.arguments or (b"",)
    if encoding == ["latin-1"] and isinstance(first, str):
        return bytearray(first.encode("latin1"))
    return bytearray(_bytes(values.convert(first, path)))


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray):
        raise TypeError("its content is not bytes")
    return bytes(value)


def _make_array(values: TorchValues, built: Built, path: Path) -> np.ndarray[Any, Any]:
    _, shape, dtype, fortran, content = built.state
    array = np.frombuffer(_bytes(values.convert(content, path)), _numpy_dtype(dtype)).reshape(
        _sizes(shape), order="F" if fortran else "C"
    )
    return array.copy()


def _make_scalar(values: TorchValues, built: Built, path: Path) -> Any:
    dtype, content = built.arguments
    (scalar,) = np.frombuffer(_bytes(values.convert(content, path)), _numpy_dtype(dtype))
    return scalar


def _numpy_dtype(built: Any) -> np.dtype[Any]:
    if not isinstance(built, Built) or built.constructor != Global("numpy", "dtype"):
        raise ValueError("its dtype is malformed")
    code = built.arguments[0]
    if not isinstance(code, str) or code.strip("<>|=") not in _NUMPY_CODES:
        raise ValueError(f"its dtype {str(code)[:40]!r} is not a plain number")
    big = isinstance(built.state, tuple) and built.state[1] == ">"
    return np.dtype(code).newbyteorder(">" if big else "<")


_NUMPY_CODES = frozenset(
    ["b1", *(f"{k}{n}" for k in "iu" for n in (1, 2, 4, 8)), "f2", "f4", "f8", "c8", "c16"]
)
_MAKERS: dict[tuple[str, str], _Maker] = {
    (_REBUILT, "_rebuild_tensor"): _make_tensor,
    (_REBUILT, "_rebuild_tensor_v2"): _make_tensor,
    (_REBUILT, "_rebuild_tensor_v3"): _make_untyped_tensor,
    (_REBUILT, "_rebuild_parameter"): _make_parameter,
    (_REBUILT, "_rebuild_parameter_with_state"): _make_parameter,
    (_ARRAYS, "_reconstruct"): _make_array,
    (_ARRAYS, "scalar"): _make_scalar,
    ("collections", "OrderedDict"): _make_dict(OrderedDict),
    ("collections", "Counter"): _make_dict(dict),
    ("collections", "defaultdict"): _make_dict(dict),
    ("builtins", "dict"): _make_dict(dict),
    ("builtins", "set"): _make_collection(set),
    ("builtins", "frozenset"): _make_collection(frozenset),
    ("builtins", "list"): _make_collection(list),
    ("builtins", "complex"): _make_number(complex),
    ("builtins", "bytearray"): _make_bytearray,
    ("torch", "Size"): _make_size,
    ("torch", "device"): _make_device,
    ("_codecs", "encode"): _make_bytes,
}
