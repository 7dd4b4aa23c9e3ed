"""DCP directories: what torch writes is read without torch, and what is hostile is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from fwstore import Corrupt, FwstoreError, InvalidInput, NotFound, UnsupportedValue
from fwstore_migrate.states import open_foreign
from support.foreign import error_of, read_shard

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def _state() -> dict[str, Any]:
    return {
        "model": {"w": torch.arange(100.0).reshape(10, 10), "b": torch.ones(3).bfloat16()},
        "opt": {"groups": [{"lr": 0.1, "params": [0, 1]}], "exp": [torch.ones(2), torch.zeros(0)]},
        "step": 3,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(_state(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def _edit(folder: Path, change: Any) -> None:
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    change(metadata)
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)


def test_a_nested_state_comes_back(folder: Path) -> None:
    foreign = open_foreign(folder)
    assert (foreign.kind, foreign.tensors) == ("dcp", 4)
    state, expected = foreign.state, _state()
    assert state["step"] == 3
    assert state["opt"]["groups"] == expected["opt"]["groups"]
    assert read_shard(state["model"]["w"]).tobytes() == expected["model"]["w"].numpy().tobytes()
    assert state["model"]["b"].dtype == "bfloat16"
    assert [shard.shape for shard in state["opt"]["exp"]] == [(2,), (0,)]


def test_names_can_be_skipped(folder: Path) -> None:
    assert open_foreign(folder, skip=["opt.*", "model.w"]).state.keys() == {"model", "step"}


_SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
folder, meeting, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = {
    "rows": distribute_tensor(torch.arange(35.0).reshape(7, 5), mesh, [Shard(0)]),
    "columns": distribute_tensor(torch.arange(35.0).reshape(7, 5), mesh, [Shard(1)]),
    "replicated": torch.arange(4.0),
}
save(state, checkpoint_id=folder)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.dist
def test_sharded_tensors_are_put_together(tmp_path: Path) -> None:
    script = tmp_path / "save.py"
    script.write_text(_SHARDED)
    command = [sys.executable, str(script), str(tmp_path / "dcp"), str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, rank]) for rank in ("0", "1")]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    state = open_foreign(tmp_path / "dcp").state
    expected = torch.arange(35.0).reshape(7, 5).numpy().tobytes()
    for name in ("rows", "columns"):
        assert len(state[name].pieces) == 2
        assert read_shard(state[name]).tobytes() == expected
    assert state["replicated"].shape == (4,)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_code_in_the_metadata_is_refused_and_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    metadata = Metadata({}, planner_data=_Evil())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UnsupportedValue, match="system"):
        open_foreign(folder)
    assert not (folder / "executed").exists()


def test_code_in_a_value_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save({"a": _Evil()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(UnsupportedValue, match="system"):
        open_foreign(tmp_path / "dcp")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../x.distcp", "/etc/passwd", "a\\b", "", ".."])
def test_files_outside_are_refused(folder: Path, name: str) -> None:
    def change(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    _edit(folder, change)
    with pytest.raises(InvalidInput, match="outside"):
        open_foreign(folder)


def _fail_to_open(folder: Path) -> FwstoreError:
    error = error_of(_read_all, folder)
    assert error is not None
    return error


def _read_all(folder: Path) -> None:
    model = open_foreign(folder).state["model"]
    for name in ("w", "b"):
        read_shard(model[name])


def test_chunks_must_cover_the_tensor_once(folder: Path) -> None:
    def shrink(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.w"].chunks[0].sizes = torch.Size([5, 10])  # type: ignore[union-attr]

    _edit(folder, shrink)
    assert isinstance(_fail_to_open(folder), Corrupt)


def test_chunks_may_not_overlap(folder: Path) -> None:
    def overlap(metadata: Metadata) -> None:
        chunks = metadata.state_dict_metadata["model.w"].chunks  # type: ignore[union-attr]
        chunks[0].sizes = torch.Size([5, 10])
        chunks.append(type(chunks[0])(torch.Size([4, 0]), torch.Size([5, 10])))

    _edit(folder, overlap)
    assert "overlap" in _fail_to_open(folder).message


def test_chunks_must_be_what_they_are_said_to_be(folder: Path) -> None:
    def swap(metadata: Metadata) -> None:
        places = {index.fqn: index for index in metadata.storage_data}
        data = metadata.storage_data
        data[places["model.w"]], data[places["model.b"]] = (
            data[places["model.b"]],
            data[places["model.w"]],
        )

    _edit(folder, swap)
    assert isinstance(_fail_to_open(folder), Corrupt)


@pytest.mark.parametrize(
    ("field", "value"), [("offset", -1), ("length", 1 << 60), ("offset", None)]
)
def test_places_must_be_inside_their_file(folder: Path, field: str, value: Any) -> None:
    def change(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            setattr(info, field, value)

    _edit(folder, change)
    assert isinstance(_fail_to_open(folder), Corrupt)


def test_a_missing_file_is_named(folder: Path) -> None:
    for file in folder.glob("*.distcp"):
        file.unlink()
    error = _fail_to_open(folder)
    assert isinstance(error, NotFound)
    assert ".distcp" in error.message


def test_a_cut_file_is_corrupt(folder: Path) -> None:
    for file in folder.glob("*.distcp"):
        os.truncate(file, file.stat().st_size // 2)
    assert isinstance(_fail_to_open(folder), Corrupt)


def test_cut_metadata_is_corrupt(folder: Path) -> None:
    content = (folder / ".metadata").read_bytes()
    for length in range(0, len(content), 29):
        (folder / ".metadata").write_bytes(content[:length])
        with pytest.raises(FwstoreError):
            open_foreign(folder)


@pytest.mark.parametrize(
    "state", [None, (), [], {"state_dict_metadata": 3}, {"storage_data": {}}, {1: 2}]
)
def test_metadata_of_another_shape_is_corrupt(folder: Path, state: Any) -> None:
    class Fake:
        def __reduce__(self) -> tuple[Any, ...]:
            return Metadata, ({},), state

    (folder / ".metadata").write_bytes(pickle.dumps(Fake()))
    with pytest.raises(Corrupt):
        open_foreign(folder)
