"""Pickles are read as data: the same values as the real thing, and never anything executed."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore import Corrupt, FwstoreError, LimitExceeded, UnsupportedValue
from fwstore_migrate import pickled
from fwstore_migrate.pickled import Built, Global, Persistent, read_pickle
from support.foreign import error_of

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
)
_keys = st.text() | st.integers() | st.tuples(st.text(), st.integers()) | st.none()
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(_keys, inner)
        | st.tuples(inner, inner)
        | st.lists(inner).map(tuple)
    ),
    max_leaves=30,
)
_sets = st.sets(st.integers() | st.text()) | st.frozensets(st.integers())


@given(_values | _sets, st.sampled_from([4, 5]))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol), (), "it") == value


@given(_values.filter(lambda value: value != b""), st.sampled_from([2, 3]))
def test_older_protocols_come_back(value: Any, protocol: int) -> None:
    payload = pickle.dumps(value, protocol)
    allowed = {("_codecs", "encode"), ("builtins", "bytes")}
    found = read_pickle(payload, allowed, "it")
    if "GLOBAL" not in {opcode.name for opcode, _, _ in pickletools.genops(payload)}:
        assert found == value


def test_the_same_object_stays_the_same() -> None:
    shared = [1]
    left, right = read_pickle(pickle.dumps([shared, shared]), (), "it")
    assert left is right


def test_calls_are_recorded() -> None:
    value = collections.OrderedDict(a=1)
    found = read_pickle(pickle.dumps(value), {("collections", "OrderedDict")}, "it")
    assert isinstance(found, Built)
    assert found.constructor == Global("collections", "OrderedDict")
    assert found.pairs == [("a", 1)]


def test_references_are_recorded() -> None:
    found = read_pickle(b"\x80\x02(X\x01\x00\x00\x00aK\x01tQ.", (), "it")
    assert found == Persistent(("a", 1))


class _Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (os.system, ("true",), "system"),
        (eval, ("1",), "builtins.eval"),
        (exec, ("x = 1",), "builtins.exec"),
        (getattr, (os, "system"), "builtins.getattr"),
        (__import__, ("os",), "builtins.__import__"),
        (print, ("hi",), "builtins.print"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_calls_of_code_are_refused_by_name(
    call: Any, arguments: tuple[Any, ...], named: str, protocol: int
) -> None:
    arguments = tuple(0 if argument is os else argument for argument in arguments)
    payload = pickle.dumps({"weights": _Evil(call, *arguments)}, protocol)
    with pytest.raises(UnsupportedValue, match=named):
        read_pickle(payload, {("collections", "OrderedDict")}, "it")


_BYPASSES = {
    "a name with dots": b"\x80\x04\x8c\x0bcollections\x8c\x1aOrderedDict.__init__.__glo\x93.",
    "a call that is popped": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R0}.",
    "the opcode INST": b"(S'true'\nios\nsystem\n.",
    "the opcode OBJ": b"(cos\nsystem\nS'true'\no.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a text reference": b"Pabc\n.",
    "a module of one's own": b"\x80\x02cevil.collections\nOrderedDict\n)R.",
    "a name in two parts": b"\x80\x02ccollections OrderedDict\nx\n)R.",
    "an out-of-band buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("payload", _BYPASSES.values(), ids=_BYPASSES.keys())
def test_bypasses_are_refused_and_run_nothing(payload: bytes) -> None:
    events: list[str] = []
    watching = True

    def watch(event: str, arguments: object) -> None:
        if watching and event in ("os.system", "exec", "import", "subprocess.Popen"):
            events.append(event)

    sys.addaudithook(watch)
    with pytest.raises(FwstoreError):
        read_pickle(payload, {("collections", "OrderedDict")}, "it")
    watching = False
    assert events == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b".",
        b"\x80\x02",
        b"0.",
        b"(.",
        b"h\x05.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02K\x01b.",
        b"\x80\x02K\x01)R.",
        b"\x80\x02}(K\x01u.",
        b"t.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00x.",
        b"\x8b\xff\xff\xff\x7fx.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02\x8c\x01\xff.",
        b"\xff",
    ],
)
def test_malformed_pickles_are_corrupt(payload: bytes) -> None:
    with pytest.raises(Corrupt):
        read_pickle(payload, (), "it")


def test_deep_keys_are_refused() -> None:
    deep = b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."
    with pytest.raises(UnsupportedValue, match="key"):
        read_pickle(deep, (), "it")


def test_deep_values_are_only_data() -> None:
    value = read_pickle(b"\x80\x02)" + b"\x85" * 100_000 + b".", (), "it")
    depth = 0
    while value:
        (value,) = value
        depth += 1
    assert depth == 100_000


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "PICKLE_VALUES_MAX", 1000)
    with pytest.raises(LimitExceeded):
        read_pickle(b"\x80\x02(" + b"}" * 1000 + b"l.", (), "it")


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "PICKLE_BYTES_MAX", 10)
    with pytest.raises(LimitExceeded):
        read_pickle(b"\x80\x02" + b"]" * 10, (), "it")


@given(st.binary(max_size=64))
def test_any_bytes_end_in_a_typed_error_or_a_value(payload: bytes) -> None:
    error = error_of(read_pickle, payload, {("collections", "OrderedDict")}, "it")
    assert error is None or "it" in error.message


@given(st.data())
def test_flipped_pickles_end_in_a_typed_error_or_a_value(data: st.DataObject) -> None:
    payload = bytearray(pickle.dumps({"a": [1, (2.5, "x")], "b": collections.OrderedDict(c=b"y")}))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    error = error_of(read_pickle, bytes(payload), {("collections", "OrderedDict")}, "it")
    assert error is None or "it" in error.message
