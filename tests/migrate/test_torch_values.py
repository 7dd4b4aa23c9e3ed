"""torch.save files: read without torch, equal to what torch.load reads, and refused when hostile."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fwstore import (
    Corrupt,
    ForeignValue,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    Shard,
    Unsupported,
    UnsupportedValue,
)
from fwstore_migrate import files
from fwstore_migrate.files import open_file
from fwstore_migrate.states import open_foreign
from fwstore_migrate.torch_values import read_torch_file
from support.foreign import error_of, read_shard, torch_archive, write


def _read(path: Path, value: Any, **options: Any) -> Any:
    torch.save(value, path, **options)
    return read_torch_file(open_file(path))


def _assert_equal(shard: Any, tensor: torch.Tensor) -> None:
    assert isinstance(shard, Shard)
    assert f"torch.{shard.dtype}" == str(tensor.dtype)
    assert shard.shape == tuple(tensor.shape)
    assert shard.kind == "torch"
    expected = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert read_shard(shard).tobytes() == expected


_DTYPES = sorted(
    {
        value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype) and "q" not in str(value) and "bits" not in str(value)
    },
    key=str,
)
_STORED = [
    dtype
    for dtype in _DTYPES
    if not any(str(dtype).endswith(f"int{bits}") for bits in range(1, 8))
    and "e2m1" not in str(dtype)
]


@pytest.mark.parametrize("dtype", _STORED, ids=str)
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randint(0, 255, (48,), dtype=torch.uint8).view(dtype).reshape(3, -1)
    if dtype is torch.bool:
        tensor = torch.randint(0, 2, (3, 16)).bool()
    _assert_equal(_read(tmp_path / "x.pt", {"a": tensor})["a"], tensor)


def test_every_geometry(tmp_path: Path) -> None:
    base = torch.arange(120.0).reshape(4, 5, 6)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "column": base[:, 1:3, ::2],
        "offset": base[2:],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "diagonal": torch.arange(9.0).reshape(3, 3).diagonal(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "buffer": torch.nn.BatchNorm1d(3).state_dict()["running_mean"],
    }
    state = _read(tmp_path / "x.pt", tensors)
    for name, tensor in tensors.items():
        _assert_equal(state[name], tensor)


@given(st.data())
@settings(max_examples=40)
def test_any_strides_are_read_in_any_boxes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    base = torch.arange(float(np.prod(shape))).reshape(shape)
    view = base.permute(*data.draw(st.permutations(range(len(shape)))))
    for axis in range(view.dim()):
        view = view[(slice(None),) * axis + (slice(0, None, data.draw(st.integers(1, 3))),)]
    path = tmp_path_factory.mktemp("any") / "x.pt"
    source = _read(path, {"a": view})["a"].pieces[0].array
    starts = [data.draw(st.integers(0, size - 1)) for size in view.shape]
    stops = [data.draw(st.integers(s + 1, n)) for s, n in zip(starts, view.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    target = np.zeros([b - a for a, b in zip(starts, stops, strict=True)], np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "COPY_BYTES", data.draw(st.sampled_from([1, 16, 1 << 20])))
        source.copy_to_host(box, target)
    assert target.view(np.float32).tolist() == view[box].tolist()


def test_memory_does_not_grow_with_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(512, 512).t()}, tmp_path / "x.pt")
    source = read_torch_file(open_file(tmp_path / "x.pt"))["a"].pieces[0].array
    monkeypatch.setattr(files, "COPY_BYTES", 4096)
    largest, read_into = 0, files.FileRange.read_into

    def watch(self: files.FileRange, offset: int, buffer: memoryview) -> None:
        nonlocal largest
        largest = max(largest, buffer.nbytes)
        read_into(self, offset, buffer)

    monkeypatch.setattr(files.FileRange, "read_into", watch)
    source.copy_to_host((slice(0, 8), slice(0, 512)), np.zeros((8, 512), np.uint32))
    assert largest <= 8192


def test_plain_values_keep_their_types(tmp_path: Path) -> None:
    value: dict[Any, Any] = {
        "none": None,
        "numbers": [1, -(10**30), 2.5, 1 + 2j, True],
        "text": ("ä", b"\x00\xff", bytearray(b"ab")),
        "sets": [{1, 2}, frozenset({3})],
        "ordered": collections.OrderedDict(b=1, a=2),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float32(2.5),
        3: {"nested": {(1, "a"): 4}},
    }
    state = _read(tmp_path / "x.pt", value)
    for name in ("array", "fortran"):
        assert state[name].dtype == value[name].dtype
        assert (state.pop(name) == value.pop(name)).all()
    assert state == value
    assert type(state["ordered"]) is collections.OrderedDict
    assert type(state["scalar"]) is np.float32
    assert [type(text) for text in state["text"]] == [str, bytes, bytearray]


def test_small_values_of_torch_stay_inert(tmp_path: Path) -> None:
    state = _read(
        tmp_path / "x.pt",
        {"dtype": torch.bfloat16, "device": torch.device("cpu"), "size": torch.Size([1, 2])},
    )
    assert {name: value.noun for name, value in state.items()} == {
        "dtype": "dtype",
        "device": "device",
        "size": "size",
    }
    assert all(
        isinstance(value, ForeignValue) and value.kind == "torch" for value in state.values()
    )


def test_tied_tensors_are_one_shard(tmp_path: Path) -> None:
    tensor = torch.randn(3)
    state = _read(
        tmp_path / "x.pt", {"a": tensor, "b": tensor, "c": tensor[:2], "d": tensor.clone()}
    )
    assert state["a"] is state["b"]
    assert state["a"] is not state["c"]
    assert state["a"] is not state["d"]


def test_an_optimizer_is_read(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = _read(tmp_path / "x.pt", {"model": model.state_dict(), "opt": optimizer.state_dict()})
    _assert_equal(state["model"]["weight"], model.weight)
    _assert_equal(
        state["opt"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert state["opt"]["param_groups"][0]["lr"] == 1e-3


def test_unknown_classes_are_refused_and_can_be_skipped(tmp_path: Path) -> None:
    torch.save({"m": torch.ones(1), "args": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with pytest.raises(UnsupportedValue, match=r"argparse\.Namespace"):
        open_foreign(tmp_path / "x.pt")
    with pytest.raises(UnsupportedValue, match=r"argparse\.Namespace.*--skip"):
        open_foreign(tmp_path / "x.pt", skip=["other"])
    assert list(open_foreign(tmp_path / "x.pt", skip=["args"]).state) == ["m"]


def _tensor_pickle(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], count: int
) -> bytes:
    def put(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    reference = (
        b"("
        + put("storage")
        + b"ctorch\nFloatStorage\n"
        + put("0")
        + put("cpu")
        + put(count)
        + b"tQ"
    )
    arguments = put(offset) + put(shape) + put(strides) + b"\x89N"
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
        + reference
        + arguments
        + b"tRs."
    )


_GEOMETRIES = {
    "behind the storage": (1, (4,), (1,), 4),
    "far behind": (1 << 61, (1,), (1,), 4),
    "a negative offset": (-1, (1,), (1,), 4),
    "a negative stride": (3, (4,), (-1,), 4),
    "a negative size": (0, (-4,), (1,), 4),
    "a product of 2^80": (0, (1 << 40, 1 << 40), (1 << 40, 1), 4),
    "a huge expanded tensor": (0, (1 << 63,), (0,), 4),
    "more sizes than strides": (0, (2, 2), (1,), 4),
    "a storage larger than its entry": (0, (4,), (1,), 5),
    "a negative storage": (0, (0,), (1,), -1),
}


def test_the_pickle_made_by_hand_is_right(tmp_path: Path) -> None:
    archive = torch_archive(_tensor_pickle(1, (3,), (1,), 4), {"0": bytes(range(16))})
    path = write(tmp_path / "x.pt", archive)
    assert read_shard(read_torch_file(open_file(path))["a"]).tobytes() == bytes(range(4, 16))
    assert torch.load(path, weights_only=True)["a"].shape == (3,)


@pytest.mark.parametrize("geometry", _GEOMETRIES.values(), ids=_GEOMETRIES.keys())
def test_tensors_cannot_leave_their_storage(
    geometry: tuple[int, tuple[int, ...], tuple[int, ...], int], tmp_path: Path
) -> None:
    path = write(tmp_path / "x.pt", torch_archive(_tensor_pickle(*geometry), {"0": b"\0" * 16}))
    with pytest.raises(FwstoreError) as caught:
        read_torch_file(open_file(path))
    assert isinstance(caught.value, Corrupt)


def _nested(levels: int) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * levels + b"a" * (levels - 1) + b"s."


def _laughs(levels: int) -> bytes:
    """Each list holds the one before ten times: a few bytes that unfold to ten to the levels."""
    steps = b"".join(b"(" + b"h%c" % (n - 1,) * 10 + b"lq%c" % n for n in range(1, levels))
    return b"\x80\x02]q\x00" + steps + b"}X\x01\x00\x00\x00ah%cs." % (levels - 1)


def test_deep_and_unfolding_values_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LimitExceeded):
        read_torch_file(open_file(write(tmp_path / "x.pt", torch_archive(_nested(10_000)))))
    monkeypatch.setattr("fwstore_migrate.torch_values.TREE_VALUES_MAX", 100_000)
    with pytest.raises(LimitExceeded):
        read_torch_file(open_file(write(tmp_path / "x.pt", torch_archive(_laughs(50)))))


def _zip(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _overlapping() -> bytes:
    content = _zip(("archive/data.pkl", b"}."), ("archive/data/0", b"\0" * 64))
    first, second = content.index(b"PK\x01\x02"), content.rindex(b"PK\x01\x02")
    return content[: second + 42] + content[first + 42 : first + 46] + content[second + 46 :]


_ARCHIVES: dict[str, tuple[bytes, type[FwstoreError]]] = {
    "empty": (b"", Unsupported),
    "a pickle of torch 0.4": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", Unsupported),
    "only the magic": (b"PK\x03\x04", Corrupt),
    "compressed": (
        _zip(("archive/data.pkl", b"}." * 99), compression=zipfile.ZIP_DEFLATED),
        Unsupported,
    ),
    "no pickle": (_zip(("archive/version", b"3")), Corrupt),
    "two folders": (_zip(("a/data.pkl", b"}."), ("b/data.pkl", b"}.")), Corrupt),
    "overlapping entries": (_overlapping(), Corrupt),
    "big-endian": (_zip(("a/data.pkl", b"}."), ("a/byteorder", b"big")), Unsupported),
    "no such storage": (torch_archive(_tensor_pickle(0, (1,), (1,), 1)), Corrupt),
    "a bare tensor": (torch_archive(b"\x80\x02K\x01."), InvalidInput),
}


@pytest.mark.parametrize(("content", "kind"), _ARCHIVES.values(), ids=_ARCHIVES.keys())
def test_hostile_archives_end_in_a_typed_error(
    content: bytes, kind: type[FwstoreError], tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        open_foreign(write(tmp_path / "x.pt", content))
    assert "x.pt" in caught.value.message


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(content), 7):
        with pytest.raises(FwstoreError):
            open_foreign(write(tmp_path / "cut.pt", content[:length]))


@given(st.data())
@settings(max_examples=150)
def test_flipped_archives_end_in_a_typed_error_or_a_state(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(torch_archive(_tensor_pickle(0, (4,), (1,), 4), {"0": b"\0" * 16}))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = write(tmp_path_factory.mktemp("flip") / "x.pt", bytes(content))
    error = error_of(open_foreign, path)
    assert error is None or "x.pt" in error.message
