"""Malicious input, row by row: one typed error, nothing executed, bounded memory and time.

`support.hostile` has the whole table of what is hostile: rows that are not here are held by tests that it names.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zstandard

import fwstore
from fwstore import (
    Box,
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    Piece,
    Shard,
    Unsupported,
    UnsupportedValue,
)
from fwstore.format.condemned import parse_condemned
from fwstore.format.envelope import FEATURES_KNOWN, magic
from fwstore.format.summary import parse_summary
from fwstore.store.naming import validate_key
from support.bounded import bounded
from support.foreign import error_of, safetensors_bytes, torch_archive
from support.hostile import KINDS
from support.parsers import TARGETS

ROOT = Path(__file__).parents[2]
PAGE = b"<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head></html>"
Hostile = dict[str, tuple[str, bytes, type[FwstoreError] | tuple[type[FwstoreError], ...]]]


def _json(name: str, change: Callable[[dict[str, object]], object]) -> bytes:
    fields = json.loads(TARGETS[name].seeds[0])
    change(fields)
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


def _pickled(body: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + body + b"s."


def _unfolding(levels: int) -> bytes:
    """Each list holds the one before ten times: a few bytes that unfold to ten to the levels."""
    steps = b"".join(b"(" + b"h%c" % (n - 1,) * 10 + b"lq%c" % n for n in range(1, levels))
    return b"\x80\x02]q\x00" + steps + b"}X\x01\x00\x00\x00ah%cs." % (levels - 1)


def _zip(*entries: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _index(name: str) -> bytes:
    return json.dumps({"weight_map": {"a": name}}).encode()


def _tensor(**fields: object) -> bytes:
    whole = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return safetensors_bytes({"a": whole | fields}, bytes(8))


_SYSTEM = b"cos\nsystem\nX\x04\x00\x00\x00true\x85R"
_EVAL = b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R"
_NESTED = b"c__builtin__\ngetattr\ncos\nsystem\nX\x08\x00\x00\x00__call__\x86R"
_CALLS = {
    "os.system": _pickled(_SYSTEM),
    "eval": _pickled(_EVAL),
    "nested getattr": _pickled(_NESTED),
    "a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "an extension": b"\x80\x02\x82\x01.",
    "a module of its own": b"\x80\x02cevil.collections\nOrderedDict\n)R.",
}
_FRAME = zstandard.ZstdCompressor().compress(bytes(1 << 20))
# 13 bytes that say that they hold a terabyte.
_TERABYTE = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40)
_ONE = b"\x00\x00\x10\x00"
_DEEP = b"[" * 100_000
_ESCAPES = (
    "../x",
    "/etc/passwd",
    "a\\b",
    "a\0b",
    "C:x",
    "%2e%2e/x",
    "x" * 1025,
    "a/../../x",
    "",
    "a\nb",
)

ROWS: dict[str, Hostile] = {
    "a pickle that calls": {
        f"{name}: {what}": (name, payload, UnsupportedValue)
        for name in ("pickle", "torch-pickle", "torch-file", "dcp")
        for what, body in _CALLS.items()
        for payload in [torch_archive(body) if name == "torch-file" else body]
    },
    "a pickle that asks for memory": {
        "4 GB of bytes": ("pickle", b"\x8e" + struct.pack("<Q", 4 << 30) + b"x.", Corrupt),
        "2^63 bytes": ("pickle", b"\x8e" + struct.pack("<Q", 1 << 63) + b"x.", Corrupt),
        "2 GB of text": ("pickle", b"\x8d" + struct.pack("<Q", 2 << 30) + b"x.", Corrupt),
        "an integer of 2 GB": ("pickle", b"\x8b\xff\xff\xff\x7fx.", Corrupt),
        "deep lists": ("torch-pickle", _pickled(b"]" * 9999 + b"a" * 9998), LimitExceeded),
        "deep tuples as keys": (
            "pickle",
            b"\x80\x02}" + b")" + b"\x85" * 9999 + b"Ns.",
            UnsupportedValue,
        ),
        "a value that unfolds": ("torch-pickle", _unfolding(60), LimitExceeded),
    },
    "a pickle that is malformed": {
        f"{name}: {payload[:9]!r}": (name, payload, (Corrupt, UnsupportedValue))
        for name in ("pickle", "torch-pickle", "dcp")
        for payload in (
            b"",
            b".",
            b"\x80\x02",
            b"0.",
            b"(.",
            b"h\x05.",
            b"\x80\xff.",
            b"\x94.",
            b"K\x01K\x02a.",
        )
    },
    "JSON that is hostile": {
        "a record that is too large": (
            "record",
            _json("record", lambda r: r.update(previous="a" * (1 << 21))),
            Corrupt,
        ),
        "depth": ("record", _DEEP, Corrupt),
        "depth in an index": ("safetensors-index", b'{"weight_map":' + _DEEP, Corrupt),
        "a key twice": ("vote", TARGETS["vote"].seeds[0].replace(b"{", b'{"term":1,', 1), Corrupt),
        "NaN": ("hint", b'{"lineage":NaN}', Corrupt),
        "10^400": ("record", _json("record", lambda r: r.update(term=10**400)), Corrupt),
        "10^400 in a header": ("safetensors", _tensor(shape=[10**400]), Corrupt),
        "a lone surrogate": ("name", b'{"name":"\\ud800"}', Corrupt),
        "a term of 2^63": ("record", _json("record", lambda r: r.update(term=1 << 63)), Corrupt),
    },
    "sizes that overflow": {
        "a product of 2^80": ("safetensors", _tensor(shape=[1 << 40, 1 << 40]), Corrupt),
        "a negative size": ("safetensors", _tensor(shape=[-2]), Corrupt),
        "another length": ("safetensors", _tensor(data_offsets=[0, 4]), Corrupt),
        "an unknown dtype": ("safetensors", _tensor(dtype="F33"), Unsupported),
        "offset and length beyond 2^63": (
            "safetensors",
            _tensor(data_offsets=[(1 << 63) - 4, (1 << 63) + 4]),
            Corrupt,
        ),
        "an array of 2^64 elements": (
            "state",
            b"\x92\x01\x95\x0a\xa3<f4\xc4\x00\xcf" + b"\xff" * 8 + b"\xcf" + b"\xff" * 8,
            Corrupt,
        ),
    },
    "overlaps and gaps": {
        "a hole": (
            "safetensors",
            safetensors_bytes(
                {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16)
            ),
            Corrupt,
        ),
        "an overlap": (
            "safetensors",
            safetensors_bytes(
                {
                    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
                },
                bytes(12),
            ),
            Corrupt,
        ),
    },
    "frames that are bombs": {
        "a terabyte": ("frame", _ONE + _TERABYTE, Corrupt),
        "a terabyte, as its referrer says": ("frame", b"\xff\xff\xff\xff" + _TERABYTE, Corrupt),
        "more than declared": ("frame", b"\x10\x00\x00\x00" + _FRAME, Corrupt),
        "bytes behind it": ("frame", _ONE + _FRAME + b"x", Corrupt),
        "two frames": ("frame", _ONE + _FRAME + _FRAME, Corrupt),
        "no size": (
            "frame",
            _ONE + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20)),
            Corrupt,
        ),
    },
    "paths that lead elsewhere": {
        repr(name)[:20]: ("safetensors-index", _index(name), InvalidInput) for name in _ESCAPES
    },
    "archives that are unsafe": {
        "an entry twice": (
            "torch-file",
            _zip(("a/data.pkl", b"}."), ("b/data.pkl", b"}.")).replace(b"b/data", b"a/data"),
            Corrupt,
        ),
        "an entry elsewhere": (
            "torch-file",
            _zip(("a/data.pkl", b"}."), ("../../x", b"")),
            Corrupt,
        ),
        "a safetensors file that is a zip": (
            "safetensors",
            safetensors_bytes({}) + _zip(("a/data.pkl", b"}.")),
            Corrupt,
        ),
        "no end": ("torch-file", _zip(("a/data.pkl", b"}."))[:-9], Corrupt),
    },
    "a header of safetensors": {
        "of 2^63": ("safetensors", safetensors_bytes({}, length=1 << 63), Corrupt),
        "of more than 100 MB": ("safetensors", safetensors_bytes({}, length=100_000_001), Corrupt),
        "with a name twice": ("safetensors", safetensors_bytes(b'{"a":{},"a":{}}'), Corrupt),
        "with metadata of numbers": (
            "safetensors",
            safetensors_bytes({"__metadata__": {"a": 1}}),
            Corrupt,
        ),
    },
}


def test_every_kind_of_hostile_input_has_its_tests_or_a_reason() -> None:
    rows = set()
    for kind, held in KINDS.items():
        assert held.tests or held.note, kind
        for test in held.tests:
            file, _, name = test.partition("::")
            name, _, row = name.rstrip("]").partition("[")
            assert f"def {name or 'test_'}" in (ROOT / file).read_text(), test
            rows |= {row} if row else set()
    assert rows == ROWS.keys()


# What parsing has no business with.
_FORBIDDEN = ("os.system", "exec", "subprocess.Popen", "pickle.find_class", "socket.connect")


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Fail when the interpreter is made to run something. An audit hook stays for ever, so it is told when to look."""
    events: list[str] = []
    watching = True

    def watch(event: str, arguments: object) -> None:
        if watching and event in _FORBIDDEN:
            events.append(event)

    sys.addaudithook(watch)
    try:
        yield
    finally:
        watching = False
    assert events == []


@pytest.mark.parametrize("row", ROWS)
def test_what_is_hostile_ends_in_one_typed_error(row: str, tmp_path: Path) -> None:
    for name in {name for name, _, _ in ROWS[row].values()}:
        # Modules that are imported at first use run code of their own.
        TARGETS[name].parse(TARGETS[name].seeds[0], tmp_path)
    with nothing_executed():
        for what, (name, payload, expected) in ROWS[row].items():
            with bounded(len(payload)):
                error = error_of(TARGETS[name].parse, payload, tmp_path)
            assert isinstance(error, expected), (what, error)
            assert len(error.message) < 1000, what


@pytest.mark.parametrize("name", TARGETS)
def test_every_parser_takes_what_it_should_and_anything_else_ends_in_a_typed_error(
    name: str, tmp_path: Path
) -> None:
    target, chance = TARGETS[name], random.Random(name)
    for seed in target.seeds:
        assert error_of(target.parse, seed, tmp_path) is None
    foreign = [b"", b"\0", PAGE, bytes(4096), b"\xff" * 4096, _DEEP, _FRAME, _TERABYTE]
    others = [seed for other in TARGETS.values() for seed in other.seeds]
    with nothing_executed():
        for payload in [*foreign, *others, *_mutations(target.seeds, chance)]:
            with bounded(len(payload)):
                error_of(target.parse, payload, tmp_path)


def _mutations(seeds: Sequence[bytes], chance: random.Random) -> Iterator[bytes]:
    for _ in range(60):
        seed = chance.choice(seeds)
        yield seed[: chance.randrange(len(seed))]
        changed = bytearray(seed)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        yield bytes(changed)


@pytest.mark.parametrize(
    "key", ["a/../b", "/a", "a\\b", "a\0b", "a//b", ".a", "a/./b", "x" * 801, "a\n", ""]
)
def test_keys_that_lead_elsewhere_are_invalid(key: str) -> None:
    with pytest.raises(InvalidInput):
        validate_key(key)


def test_a_manifest_with_a_hole_is_not_loaded() -> None:
    shape = (3 << 10, 1 << 10)
    half = np.ones((shape[0] // 2, shape[1]), np.float32)
    holey = Shard("float32", shape, (Piece(Box((0, 0), half.shape), half),))
    with fwstore.open(f"memory://{__name__}") as repository:
        # A writer that does not look at what ranks bring.
        with (
            mock.patch("fwstore.content.build._check_tensors"),
            repository.run("run").writer() as writer,
        ):
            writer.save(0, {"w": holey}).result()
        for into in (None, {"w": np.zeros(shape, np.float32)}):
            with pytest.raises(Corrupt, match="no chunk holds"):
                repository.run("run").latest().load(into=into)
        (problem,) = repository.verify().problems
        assert "in no chunk" in problem.message


def test_what_the_headers_of_stored_objects_declare_is_not_believed() -> None:
    for kind, parse in (("summ", parse_summary), ("cond", parse_condemned)):
        header = magic(kind) + struct.pack("<IQ32s", FEATURES_KNOWN, 2 << 30, b"")
        with bounded(0), pytest.raises(Corrupt, match="declares"):
            parse(header + _TERABYTE)
