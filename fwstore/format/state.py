"""The plain part of a state: everything that is not a tensor, as msgpack of a closed list of types.

Invariant: ``decode_state(encode_state(tree))`` is the same tree with the same types, or encoding
refuses and names the key path. Decoding never imports a module, runs code or allocates more than a
small multiple of the bytes it was given. The layout is docs/spec/state.md.
"""

from __future__ import annotations

import enum
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from types import NoneType
from typing import Any, NoReturn

import msgspec
import numpy as np

from fwstore.base.config import PLAIN_STATE_BYTES_MAX
from fwstore.base.errors import Corrupt, FwstoreError, LimitExceeded, Unsupported, UnsupportedValue
from fwstore.format.paths import TensorPath, decode_path, display_path, encode_path
from fwstore.format.state_arrays import (
    array_fields,
    array_of_fields,
    scalar_fields,
    scalar_of_fields,
)

STATE_VERSION = 1
STATE_DEPTH_MAX = 100

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_SELF_CODED = frozenset({NoneType, bool, float, bytes})
_NATIVE = _SELF_CODED | {int, str}


class Tag(enum.IntEnum):
    """First element of every stored array; numbers are never reused."""

    TUPLE = 0
    LIST = 1
    DICT = 2
    ORDERED_DICT = 3
    SET = 4
    FROZENSET = 5
    BIG_INT = 6
    COMPLEX = 7
    BYTEARRAY = 8
    NUMPY_SCALAR = 9
    NUMPY_ARRAY = 10
    DATETIME = 11
    DATE = 12
    TIMEDELTA = 13
    ENUM = 14
    FOREIGN = 15
    TENSOR = 16


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Stands in the plain state where a tensor was; its path is implied by its position.

    Attributes:
        kind: The adapter whose tensor it was: ``"numpy"`` or ``"torch"``.
        alias: The path of the first tensor with the same memory, or None when this is the first.
    """

    kind: str
    alias: TensorPath | None = None


@dataclass(frozen=True, slots=True)
class EnumName:
    """A stored member of an enum whose class is not imported in this process: inert."""

    module: str
    qualname: str
    name: str


@dataclass(frozen=True, slots=True)
class ForeignValue:
    """A small value of a framework, such as a torch dtype, in a form that needs no framework.

    Attributes:
        kind: The adapter that turns it back.
        noun: What it is to that adapter: ``"dtype"``, ``"device"``, ``"size"``.
        fields: None, bool, int, float and str only.
    """

    kind: str
    noun: str
    fields: tuple[bool | int | float | str | None, ...]


def encode_state(
    tree: Any, *, limit_bytes: int = PLAIN_STATE_BYTES_MAX, name: str | None = None
) -> bytes:
    """Return the stored form of a plain state; tensors stand in it as `TensorSlot`.

    Args:
        tree: Nested values of the types listed in docs/spec/state.md.
        limit_bytes: Largest result.
        name: Stands before key paths in errors, where the tree is not the state itself.

    Raises:
        UnsupportedValue: A value has no stored form; the message names its key path.
        LimitExceeded: The result is larger than the limit.
    """
    encoded = _packer.encode([STATE_VERSION, _Encoder(name).encode(tree)])
    if len(encoded) > limit_bytes:
        raise LimitExceeded(
            f"{name or 'the plain part of the state'} takes {len(encoded)} bytes; at most {limit_bytes} are "
            "allowed: put large sequences into arrays of the state"
        )
    return encoded


def decode_state(encoded: bytes | memoryview, *, limit_bytes: int = PLAIN_STATE_BYTES_MAX) -> Any:
    """Return the plain state of its stored form.

    Raises:
        Corrupt: The bytes are not a plain state.
        Unsupported: A newer version of fwstore wrote them.
    """
    if len(encoded) > limit_bytes:
        raise Corrupt(f"a stored plain state of {len(encoded)} bytes is above the limit")
    try:
        outer = _unpacker.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"stored plain state is malformed: {error}") from error
    if type(outer) is not list or not outer or type(outer[0]) is not int:
        raise Corrupt("stored plain state does not begin with its version")
    if outer[0] != STATE_VERSION:
        raise Unsupported(f"plain state version {outer[0]} needs a newer version of fwstore")
    if len(outer) != 2:
        raise Corrupt("stored plain state has trailing values")
    return _decode(outer[1], 0)


_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder()


class _Encoder:
    """Turns one tree into nested msgpack arrays and remembers where it stands."""

    def __init__(self, name: str | None = None) -> None:
        self._path: list[Hashable] = [] if name is None else [name]
        self._open: set[int] = set()

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SELF_CODED:
            return value
        if kind is int:
            return value if _INT_MIN <= value <= _INT_MAX else [Tag.BIG_INT, _big_int_bytes(value)]
        if kind is str:
            return self._text(value)
        container = _CONTAINERS.get(kind)
        if container is not None:
            return self._container(value, container)
        return self._scalar(value, kind)

    def _text(self, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self._refuse("text with a lone surrogate, which UTF-8 cannot hold")
        return value

    def _scalar(self, value: Any, kind: type) -> list[Any]:
        known = _SCALARS.get(kind)
        try:
            if known is not None:
                return [known[0], *known[1](value)]
            if isinstance(value, enum.Enum):
                return [Tag.ENUM, *_enum_fields(value)]
            if isinstance(value, np.generic):
                return [Tag.NUMPY_SCALAR, *scalar_fields(value)]
            if kind is np.ndarray:
                return [Tag.NUMPY_ARRAY, *array_fields(value)]
        except UnsupportedValue as error:
            self._refuse(error.message)
        raise unsupported(tuple(self._path), f"a {kind.__module__}.{kind.__qualname__}")

    def _container(self, value: Any, tag: Tag) -> list[Any]:
        if id(value) in self._open:
            self._refuse("a container that contains itself")
        if len(self._open) >= STATE_DEPTH_MAX:
            self._refuse(f"nested deeper than {STATE_DEPTH_MAX} levels")
        self._open.add(id(value))
        try:
            if tag in (Tag.DICT, Tag.ORDERED_DICT):
                return [tag, *self._entries(value)]
            if tag in (Tag.SET, Tag.FROZENSET):
                # Sets have no order of their own: sorted, equal states have equal bytes.
                return [tag, *sorted(self._elements(value), key=_packer.encode)]
            return [tag, *(value if _is_flat(value) else self._elements(value))]
        finally:
            self._open.discard(id(value))

    def _elements(self, values: Iterable[Any]) -> list[Any]:
        return [self._at(index, value) for index, value in enumerate(values)]

    def _entries(self, entries: dict[Any, Any]) -> list[Any]:
        out: list[Any] = []
        for key, value in entries.items():
            out.append(key if type(key) is str and key.isascii() else self._at("<key>", key))
            out.append(self._at(key, value))
        return out

    def _at(self, key: Hashable, value: Any) -> Any:
        self._path.append(key)
        encoded = self.encode(value)
        self._path.pop()
        return encoded

    def _refuse(self, what: str) -> NoReturn:
        raise unsupported(tuple(self._path), what)


def unsupported(path: tuple[Hashable, ...], what: str) -> UnsupportedValue:
    """Return the error for a value that has no stored form."""
    shown = display_path(tuple(key if type(key) is int else str(key) for key in path))
    where = shown.encode(errors="backslashreplace").decode()[:400] or "(top of the state)"
    return UnsupportedValue(
        f"{where}: {what} cannot be stored; turn it into plain values, numpy arrays or tensors, "
        "or leave it out"
    )


def _is_flat(values: list[Any] | tuple[Any, ...]) -> bool:
    """Tell whether every element is its own msgpack form, without looking at each in Python."""
    kinds = set(map(type, values))
    if kinds <= _SELF_CODED:
        return True
    return kinds == {int} and min(values) >= _INT_MIN and max(values) <= _INT_MAX


def _big_int_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _enum_fields(value: enum.Enum) -> tuple[str, str, str]:
    kind = type(value)
    if kind.__members__.get(value.name) is not value:
        raise UnsupportedValue(f"{value!r}, a combination of members of {kind.__qualname__},")
    return kind.__module__, kind.__qualname__, value.name


def _datetime_fields(value: datetime) -> tuple[Any, ...]:
    fields = (*value.timetuple()[:6], value.microsecond, value.fold)
    if value.tzinfo is None:
        return fields
    if type(value.tzinfo) is not timezone:
        raise UnsupportedValue(
            f"a datetime with the time zone {value.tzinfo!r} (UTC and offsets can)"
        )
    offset = value.tzinfo.utcoffset(None) // timedelta(microseconds=1)
    name = value.tzinfo.tzname(None)
    return (
        (*fields, offset)
        if name == timezone(timedelta(microseconds=offset)).tzname(None)
        else (*fields, offset, name)
    )


def _datetime(year: int, month: int, day: int, *rest: Any) -> datetime:
    hour, minute, second, microsecond, fold, *zone = rest
    info = timezone(timedelta(microseconds=zone[0]), *zone[1:]) if zone else None
    return datetime(year, month, day, hour, minute, second, microsecond, info, fold=fold)


def _timedelta(days: int, seconds: int, microseconds: int) -> timedelta:
    return timedelta(days, seconds, microseconds)


def _complex(real: float, imag: float) -> complex:
    if type(real) is not float or type(imag) is not float:
        raise Corrupt("a stored complex number is malformed")
    return complex(real, imag)


def _foreign(kind: str, noun: str, *fields: Any) -> ForeignValue:
    if (
        type(kind) is not str
        or type(noun) is not str
        or not set(map(type, fields)) <= _NATIVE - {bytes}
    ):
        raise Corrupt("a stored framework value is malformed")
    return ForeignValue(kind, noun, fields)


def _slot(kind: str, alias: bytes | None) -> TensorSlot:
    if type(kind) is not str:
        raise Corrupt("a stored tensor slot has no kind")
    return TensorSlot(kind, None if alias is None else decode_path(alias))


def _enum_member(module: str, qualname: str, name: str) -> Any:
    """Return the member if its class is already imported here, else its inert name."""
    inert = EnumName(module, qualname, name)
    if not all(type(text) is str for text in (module, qualname, name)):
        raise Corrupt("a stored enum member is malformed")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        # Not getattr: a module's __getattr__ may import, and import runs code.
        found = getattr(found, "__dict__", {}).get(part)
    if not isinstance(found, enum.EnumMeta):
        return inert
    return found.__members__.get(name, inert)


def _big_int(encoded: bytes) -> int:
    value = int.from_bytes(encoded, "little", signed=True)
    if _INT_MIN <= value <= _INT_MAX or _big_int_bytes(value) != encoded:
        raise Corrupt("a stored big integer is not in its shortest form")
    return value


_CONTAINERS: dict[type, Tag] = {
    tuple: Tag.TUPLE,
    list: Tag.LIST,
    dict: Tag.DICT,
    OrderedDict: Tag.ORDERED_DICT,
    set: Tag.SET,
    frozenset: Tag.FROZENSET,
}
_SCALARS: dict[type, tuple[Tag, Callable[[Any], Iterable[Any]]]] = {
    complex: (Tag.COMPLEX, lambda value: (value.real, value.imag)),
    bytearray: (Tag.BYTEARRAY, lambda value: (bytes(value),)),
    datetime: (Tag.DATETIME, _datetime_fields),
    date: (Tag.DATE, lambda value: (value.year, value.month, value.day)),
    timedelta: (Tag.TIMEDELTA, lambda value: (value.days, value.seconds, value.microseconds)),
    EnumName: (Tag.ENUM, lambda value: (value.module, value.qualname, value.name)),
    ForeignValue: (Tag.FOREIGN, lambda value: (value.kind, value.noun, *value.fields)),
    TensorSlot: (Tag.TENSOR, lambda value: (value.kind, value.alias and encode_path(value.alias))),
}
_DECODERS: dict[int, Callable[..., Any]] = {
    Tag.BIG_INT: _big_int,
    Tag.COMPLEX: _complex,
    Tag.BYTEARRAY: lambda content: bytearray(memoryview(content)),
    Tag.NUMPY_SCALAR: scalar_of_fields,
    Tag.NUMPY_ARRAY: array_of_fields,
    Tag.DATETIME: _datetime,
    Tag.DATE: date,
    Tag.TIMEDELTA: _timedelta,
    Tag.ENUM: _enum_member,
    Tag.FOREIGN: _foreign,
    Tag.TENSOR: _slot,
}


def _decode(value: Any, depth: int) -> Any:
    if type(value) in _NATIVE:
        return value
    if type(value) is not list or not value or type(value[0]) is not int:
        raise Corrupt("stored plain state holds a value without a tag")
    tag, fields = value[0], value[1:]
    if tag <= Tag.FROZENSET:
        return _decode_container(tag, fields, depth + 1)
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise Corrupt(f"stored plain state has the unknown tag {tag}")
    try:
        return decoder(*fields)
    except FwstoreError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise Corrupt(f"stored plain state has a malformed {Tag(tag).name}: {error}") from error


def _decode_container(tag: int, fields: list[Any], depth: int) -> Any:
    if depth > STATE_DEPTH_MAX or tag < 0:
        raise Corrupt("stored plain state is nested too deep or has a negative tag")
    if not set(map(type, fields)) <= _NATIVE:
        fields = [_decode(field, depth) for field in fields]
    if tag == Tag.LIST:
        return fields
    if tag == Tag.TUPLE:
        return tuple(fields)
    try:
        unique = _decode_dict(tag, fields) if tag <= Tag.ORDERED_DICT else set(fields)
    except TypeError as error:
        raise Corrupt(f"stored plain state has a key that cannot be one: {error}") from error
    if len(unique) != (len(fields) // 2 if tag <= Tag.ORDERED_DICT else len(fields)):
        raise Corrupt("stored plain state repeats a key")
    return frozenset(unique) if tag == Tag.FROZENSET else unique


def _decode_dict(tag: int, fields: list[Any]) -> dict[Any, Any]:
    pairs = zip(fields[::2], fields[1::2], strict=False)
    if len(fields) % 2:
        raise Corrupt("stored plain state has a key without a value")
    return OrderedDict(pairs) if tag == Tag.ORDERED_DICT else dict(pairs)
