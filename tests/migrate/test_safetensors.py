"""Safetensors files: what the library writes is read, what it must not accept is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fwstore import Corrupt, FwstoreError, InvalidInput, NotFound, Unsupported
from fwstore_migrate.files import open_file
from fwstore_migrate.limits import HEADER_BYTES_MAX
from fwstore_migrate.safetensors_format import Entry, Header, encode_header, parse_header
from fwstore_migrate.safetensors_read import read_safetensors_file, read_safetensors_index
from fwstore_migrate.states import open_foreign
from support.foreign import error_of, read_shard, safetensors_bytes, write

_F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
]


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 5)).to(torch.float32).to(dtype) for dtype in _DTYPES
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "äö/ü": torch.ones(1)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    state = read_safetensors_file(open_file(tmp_path / "m.safetensors"))
    assert state.pop("__metadata__") == {"format": "pt"}
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert state[name].shape == tuple(tensor.shape)
        assert f"torch.{state[name].dtype}" == str(tensor.dtype)
        assert read_shard(state[name]).tobytes() == _bits(tensor)


_HOSTILE: dict[str, tuple[bytes, type[FwstoreError]]] = {
    "empty": (b"", Corrupt),
    "seven bytes": (b"\0" * 7, Corrupt),
    "an HTML page": (b"<html><body>404 not found</body></html>", Corrupt),
    "header of 2^63": (safetensors_bytes({}, length=1 << 63), Corrupt),
    "header above the limit": (safetensors_bytes({}, length=HEADER_BYTES_MAX + 1), Corrupt),
    "header longer than the file": (safetensors_bytes({}, length=1000), Corrupt),
    "not JSON": (safetensors_bytes(b"{"), Corrupt),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), Corrupt),
    "deep JSON": (safetensors_bytes(b"[" * 100_000 + b"]" * 100_000), Corrupt),
    "a list": (safetensors_bytes([]), Corrupt),
    "NaN": (safetensors_bytes(b'{"a": NaN}'), Corrupt),
    "a huge integer": (safetensors_bytes(b'{"a": ' + b"9" * 10_000 + b"}"), Corrupt),
    "a name twice": (
        safetensors_bytes(b'{"a": %s, "a": %s}' % ((json.dumps(_F32).encode(),) * 2), b"\0" * 8),
        Corrupt,
    ),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}), Corrupt),
    "metadata as text": (safetensors_bytes({"__metadata__": "a"}), Corrupt),
    "an unknown dtype": (safetensors_bytes({"a": _F32 | {"dtype": "F33"}}, b"\0" * 8), Unsupported),
    "a dtype of another type": (safetensors_bytes({"a": _F32 | {"dtype": []}}), Unsupported),
    "an unknown field": (safetensors_bytes({"a": _F32 | {"more": 1}}, b"\0" * 8), Corrupt),
    "no shape": (safetensors_bytes({"a": {"dtype": "F32"}}), Corrupt),
    "a negative size": (safetensors_bytes({"a": _F32 | {"shape": [-2]}}, b"\0" * 8), Corrupt),
    "sizes as floats": (safetensors_bytes({"a": _F32 | {"shape": [2.0]}}, b"\0" * 8), Corrupt),
    "sizes as truth": (safetensors_bytes({"a": _F32 | {"shape": [True]}}, b"\0" * 8), Corrupt),
    "a size of 2^62": (safetensors_bytes({"a": _F32 | {"shape": [1 << 62]}}), Corrupt),
    "a product of 2^80": (safetensors_bytes({"a": _F32 | {"shape": [1 << 40] * 2}}), Corrupt),
    "1000 dimensions": (safetensors_bytes({"a": _F32 | {"shape": [1] * 1000}}), Corrupt),
    "an end before its start": (
        safetensors_bytes({"a": _F32 | {"data_offsets": [8, 0]}}, b"\0" * 8),
        Corrupt,
    ),
    "a length that is not the shape's": (
        safetensors_bytes({"a": _F32 | {"data_offsets": [0, 4]}}, b"\0" * 4),
        Corrupt,
    ),
    "a hole": (safetensors_bytes({"a": _F32 | {"data_offsets": [8, 16]}}, b"\0" * 16), Corrupt),
    "an overlap": (
        safetensors_bytes({"a": _F32, "b": _F32 | {"data_offsets": [4, 12]}}, b"\0" * 12),
        Corrupt,
    ),
    "a tail": (safetensors_bytes({"a": _F32}, b"\0" * 9), Corrupt),
    "a cut tensor": (safetensors_bytes({"a": _F32}, b"\0" * 7), Corrupt),
}


@pytest.mark.parametrize(("content", "kind"), _HOSTILE.values(), ids=_HOSTILE.keys())
def test_hostile_files_end_in_a_typed_error(
    content: bytes, kind: type[FwstoreError], tmp_path: Path
) -> None:
    path = write(tmp_path / "m.safetensors", content)
    with pytest.raises(kind) as caught:
        read_safetensors_file(open_file(path))
    assert str(path) in caught.value.message or "dtype" in caught.value.message


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": _F32}, b"\0" * 8)
    for length in range(len(content)):
        with pytest.raises(Corrupt):
            read_safetensors_file(open_file(write(tmp_path / "cut.safetensors", content[:length])))


@given(st.binary(max_size=80))
def test_any_header_ends_in_a_typed_error_or_a_header(payload: bytes) -> None:
    error = error_of(parse_header, payload, 8, "it")
    assert error is None or "it" in error.message or "dtype" in error.message


_names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")


@given(
    st.dictionaries(_names, st.lists(st.integers(0, 5), max_size=4)),
    st.dictionaries(_names, st.text()),
)
def test_encoding_and_parsing_are_inverse(
    shapes: dict[str, list[int]], metadata: dict[str, str]
) -> None:
    entries, position = [], 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        entries.append(Entry(name, "bfloat16", tuple(shape), position, position + size))
        position += size
    entries.sort(key=lambda entry: (entry.start, entry.end))
    payload = encode_header(Header(tuple(entries), metadata))
    assert len(payload) % 8 == 0
    parsed = parse_header(payload[8:], position, "it")
    assert parsed.metadata == metadata
    assert {entry.name: entry for entry in parsed.entries} == {e.name: e for e in entries}


def _index(folder: Path, weights: Any) -> Path:
    content = json.dumps({"metadata": {}, "weight_map": weights}).encode()
    return write(folder / "model.safetensors.index.json", content)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    _index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def test_a_sharded_checkpoint_is_one_state(sharded: Path) -> None:
    foreign = open_foreign(sharded)
    assert (foreign.kind, foreign.tensors, foreign.size_bytes) == ("safetensors", 2, 20)
    assert list(foreign.state) == ["a", "b", "__metadata__"]
    assert read_shard(foreign.state["a"]).tobytes() == _bits(torch.ones(2))


@pytest.mark.parametrize(
    "name",
    [
        "../one.safetensors",
        "/etc/passwd",
        "a/../../one.safetensors",
        "a\\one.safetensors",
        "C:one.safetensors",
        "one\0.safetensors",
        "%2e%2e/one.safetensors",
        "",
        ".",
        "x" * 2000,
        7,
        None,
        ["one.safetensors"],
    ],
)
def test_an_index_cannot_lead_outside(sharded: Path, name: Any) -> None:
    index = _index(sharded, {"a": name, "b": "two.safetensors"})
    with pytest.raises(InvalidInput, match=r"outside"):
        read_safetensors_index(index)


def test_index_and_files_must_agree(sharded: Path) -> None:
    with pytest.raises(Corrupt, match="'b'"):
        read_safetensors_index(_index(sharded, {"a": "one.safetensors", "b": "one.safetensors"}))
    save_file({"b": torch.ones(1), "c": torch.ones(1)}, sharded / "two.safetensors")
    with pytest.raises(Corrupt, match="does not name"):
        read_safetensors_index(_index(sharded, {"a": "one.safetensors", "b": "two.safetensors"}))
    with pytest.raises(NotFound, match="three"):
        read_safetensors_index(_index(sharded, {"a": "three.safetensors"}))
    with pytest.raises(InvalidInput, match="weight_map"):
        read_safetensors_index(_index(sharded, []))


def test_names_can_be_skipped(sharded: Path) -> None:
    assert list(open_foreign(sharded, skip=["b", "__*"]).state) == ["a"]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(64)}, path)
    state = read_safetensors_file(open_file(path))
    save_file({"a": torch.ones(65)}, path)
    with pytest.raises(FwstoreError, match="changed"):
        read_shard(state["a"])


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        open_foreign(tmp_path / "missing.safetensors")
    with pytest.raises(NotFound, match="no checkpoint"):
        open_foreign(tmp_path)
    with pytest.raises(InvalidInput, match="regular"):
        open_foreign(Path("/dev/zero"))
    for name in ("a", "b"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InvalidInput, match="name one"):
        open_foreign(tmp_path)
