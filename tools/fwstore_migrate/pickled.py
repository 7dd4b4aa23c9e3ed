"""Pickles read as inert values: what a pickle would call is recorded, never called.

Invariant: nothing is imported or executed, whatever the pickle names: what it would build is a
`Built` that names the constructor, and names outside the exact list of the caller are refused. Work and memory are bounded by the bytes of the
pickle and by `limits`. The standard library only splits the stream into opcodes.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from fwstore import Corrupt, FwstoreError, LimitExceeded, UnsupportedValue
from fwstore_migrate.limits import PICKLE_BYTES_MAX, PICKLE_VALUES_MAX

Allowed = Collection[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle imports."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


GETATTR = Global("builtins", "getattr")


@dataclass(eq=False, slots=True)
class Built:
    """What calling a global would have made.

    Attributes:
        constructor: The global.
        arguments: What it was called with.
        state: What was handed to `__setstate__`; None when nothing was.
        pairs: Entries that were set as in a mapping.
        elements: Entries that were appended or added.
    """

    constructor: Global
    arguments: tuple[Any, ...]
    state: Any = None
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Persistent:
    """A reference to something outside of the pickle."""

    reference: Any


_MARK = object()
_CONTAINER_COST = 8


def read_pickle(payload: bytes, allowed: Allowed | None, name: str) -> Any:
    """Return the value of a pickle as inert data.

    Args:
        payload: The pickle.
        allowed: The (module, name) pairs that it may refer to; None for any, which all stay inert.
        name: What it is, for messages.

    Raises:
        UnsupportedValue: It refers to something else; the message names it.
        LimitExceeded: It is too large.
        Corrupt: It is malformed.
    """
    if len(payload) > PICKLE_BYTES_MAX:
        raise LimitExceeded(f"{name} has {len(payload)} bytes; at most {PICKLE_BYTES_MAX} are read")
    try:
        return _run(_Machine(allowed, name), payload)
    except FwstoreError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise Corrupt(f"{name} is not a well-formed pickle: {error}") from error


@dataclass
class _Machine:
    """The stack machine of pickle, without the power to call."""

    allowed: Allowed | None
    name: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        """Take the value on top."""
        value = self.stack.pop()
        if value is _MARK:
            raise Corrupt(f"{self.name} takes a value where there is none")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise Corrupt(f"{self.name} has no mark to go back to")

    def key(self, key: Any, depth: int = 0) -> Any:
        """Return a key that can be hashed in bounded time and depth."""
        if isinstance(key, tuple) and depth < 4:
            for part in key:
                self.key(part, depth + 1)
        elif not isinstance(key, str | bytes | int | float | complex | Built | Global | None):
            raise UnsupportedValue(f"{self.name} has a {type(key).__name__} as a key")
        return key


def _run(machine: _Machine, payload: bytes) -> Any:
    left = PICKLE_VALUES_MAX
    for opcode, argument, _ in pickletools.genops(io.BytesIO(payload)):
        left -= _CONTAINER_COST if opcode.name in _CONTAINERS else 1
        if left < 0:
            raise LimitExceeded(f"{machine.name} has more than {PICKLE_VALUES_MAX} values")
        if opcode.name == "STOP":
            return machine.pop()
        action = _ACTIONS.get(opcode.name)
        if action is None:
            raise UnsupportedValue(f"{machine.name} uses the pickle opcode {opcode.name}: refused")
        action(machine, argument)
    raise Corrupt(f"{machine.name} ends before its STOP")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _nothing(machine: _Machine, _: Any) -> None:
    """Accept an opcode that only frames."""


def _drop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _drop_to_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _duplicate(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.stack += [value, value]


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[index] = machine.stack[-1]


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: _Machine, index: Any) -> None:
    machine.stack.append(machine.memo[index])


def _dict(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.stack.append({})
    _set(machine, values)


def _frozenset(machine: _Machine, _: Any) -> None:
    machine.stack.append(frozenset(map(machine.key, machine.pop_to_mark())))


def _append(machine: _Machine, _: Any) -> None:
    _extend(machine, [machine.pop()])


def _appends(machine: _Machine, _: Any) -> None:
    _extend(machine, machine.pop_to_mark())


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Built):
        target.elements += values
    elif isinstance(target, list):
        target += values
    elif isinstance(target, set):
        target.update(map(machine.key, values))
    else:
        raise Corrupt(f"{machine.name} appends to a {type(target).__name__}")


def _set_one(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set(machine, [key, value])


def _set_all(machine: _Machine, _: Any) -> None:
    _set(machine, machine.pop_to_mark())


def _set(machine: _Machine, values: list[Any]) -> None:
    target, keys, entries = machine.stack[-1], values[::2], values[1::2]
    if isinstance(target, Built):
        target.pairs += zip(keys, entries, strict=True)
    elif isinstance(target, dict):
        target.update(zip(map(machine.key, keys), entries, strict=True))
    else:
        raise Corrupt(f"{machine.name} sets a key of a {type(target).__name__}")


def _import_line(machine: _Machine, line: Any) -> None:
    module, _, name = line.partition(" ")
    _import(machine, module, name)


def _import_stack(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    _import(machine, module, name)


def _import(machine: _Machine, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise Corrupt(f"{machine.name} imports a name that is not text")
    module = _MOVED.get(module, module)
    if machine.allowed is not None and (module, name) not in machine.allowed:
        raise UnsupportedValue(
            f"{machine.name} refers to {module[:100]}.{name[:100]}, which is not on the list of "
            "what an import understands; nothing was executed"
        )
    machine.stack.append(Global(module, name))


def _call(machine: _Machine, _: Any) -> None:
    arguments, constructor = machine.pop(), machine.pop()
    if not isinstance(constructor, Global) or not isinstance(arguments, tuple):
        raise Corrupt(f"{machine.name} calls something that is not a global")
    if constructor == GETATTR:
        constructor, arguments = _member(machine, arguments)
    machine.stack.append(Built(constructor, arguments))


def _member(machine: _Machine, arguments: tuple[Any, ...]) -> tuple[Global, tuple[Any, ...]]:
    """Return a member of an enum by its name: Python 3.11.0 to 3.11.3 pickle enums as attributes."""
    match arguments:
        case (Global() as owner, str() as name):
            return owner, (name,)
        case _:
            raise Corrupt(f"{machine.name} asks for an attribute of something that is no class")


def _build(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    target = machine.stack[-1]
    if not isinstance(target, Built):
        raise Corrupt(f"{machine.name} sets the state of a {type(target).__name__}")
    target.state = state


def _persistent(machine: _Machine, _: Any) -> None:
    machine.stack.append(Persistent(machine.pop()))


_Action = Callable[[_Machine, Any], None]


def _constant(value: Any) -> _Action:
    return lambda machine, _: machine.stack.append(value)


def _fresh(make: Callable[[], Any]) -> _Action:
    return lambda machine, _: machine.stack.append(make())


def _collect(make: Callable[[list[Any]], Any]) -> _Action:
    return lambda machine, _: machine.stack.append(make(machine.pop_to_mark()))


def _tuple(count: int) -> _Action:
    def action(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return action


_MOVED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "pathlib._local": "pathlib",
}
_CONTAINERS = frozenset(
    [
        "EMPTY_LIST",
        "EMPTY_DICT",
        "EMPTY_SET",
        "LIST",
        "DICT",
        "FROZENSET",
        "REDUCE",
        "NEWOBJ",
        "BINPERSID",
    ]
)
_LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(_LITERALS.split(), _push),
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _call),
    "NONE": _constant(None),
    "NEWTRUE": _constant(value=True),
    "NEWFALSE": _constant(value=False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": _fresh(list),
    "EMPTY_DICT": _fresh(dict),
    "EMPTY_SET": _fresh(set),
    "MARK": _constant(_MARK),
    "POP": _drop,
    "POP_MARK": _drop_to_mark,
    "DUP": _duplicate,
    "MEMOIZE": _memoize,
    "TUPLE": _collect(tuple),
    "LIST": _collect(list),
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_one,
    "SETITEMS": _set_all,
    "GLOBAL": _import_line,
    "STACK_GLOBAL": _import_stack,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
