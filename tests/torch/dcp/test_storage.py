"""DCP on fwstore in one process: the whole of what FileSystemWriter and FileSystemReader do."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import (
    _load_state_dict,
    _load_state_dict_from_keys,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

import fwstore
from fwstore import Conflict, InvalidInput, NotFound, UnsupportedValue
from fwstore_torch.storage_reader import StorageReader
from fwstore_torch.storage_writer import StorageWriter

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """DCP warns whenever there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "checkpoint")


def save(state: dict[str, Any], place: str, **kwargs: Any) -> Metadata:
    metadata: Metadata = dcp_save(state, storage_writer=StorageWriter(place), **kwargs)
    return metadata


def load(state: dict[str, Any], place: str, **kwargs: Any) -> dict[str, Any]:
    dcp_load(state, storage_reader=StorageReader(place), **kwargs)
    return state


def native(place: str) -> Any:
    with fwstore.open(place) as repository:
        return repository.run("checkpoint").latest().load()


class Counter:
    """A Stateful that counts."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "tensor": torch.full((2,), self.count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        assert state["tensor"].tolist() == [self.count] * 2


def test_every_kind_of_value_comes_back(place: str) -> None:
    state: dict[str, Any] = {
        "model": {
            "weight": torch.randn(4, 5).t(),
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 3),
            "half": torch.randn(3).bfloat16(),
            "expanded": torch.ones(1).expand(4),
        },
        "optimizer": {"groups": [torch.ones(2), 5, {"x": 1}], "betas": (0.9, 0.99)},
        "bytes": io.BytesIO(b"hello"),
        "dtype": torch.float16,
        "counter": Counter(3),
    }
    target: dict[str, Any] = {
        "model": {
            "weight": torch.zeros(4, 5).t(),
            "scalar": torch.tensor(0.0),
            "empty": torch.zeros(0, 3),
            "half": torch.zeros(3),
            "expanded": torch.zeros(4),
        },
        "optimizer": {"groups": [torch.zeros(2), 0, {"x": 0}], "betas": None},
        "bytes": None,
        "dtype": None,
        "counter": Counter(0),
    }
    weight = target["model"]["weight"]
    save(state, place)
    load(target, place)
    assert weight is target["model"]["weight"], "tensors are loaded in place"
    assert torch.equal(weight, state["model"]["weight"])
    assert target["model"]["scalar"].item() == 3.5
    assert torch.equal(target["model"]["half"], state["model"]["half"].float())
    assert target["model"]["expanded"].tolist() == [1.0] * 4
    assert target["optimizer"]["groups"][0].tolist() == [1.0, 1.0]
    assert target["optimizer"]["groups"][1:] == [5, {"x": 1}]
    assert target["optimizer"]["betas"] == (0.9, 0.99)
    assert target["bytes"].getvalue() == b"hello"
    assert target["dtype"] is torch.float16
    assert target["counter"].count == 3


def test_saving_again_replaces(place: str) -> None:
    save({"a": torch.zeros(3), "old": 1}, place)
    metadata = save({"a": torch.ones(3)}, place)
    assert load({"a": torch.zeros(3)}, place)["a"].tolist() == [1.0] * 3
    assert StorageReader(place).read_metadata().state_dict_metadata.keys() == {"a"}
    assert metadata.version == StorageReader(place).read_metadata().version
    with fwstore.open(place) as repository:
        assert len(repository.run("checkpoint").checkpoints()) == 1


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_replaced_checkpoints_do_not_pile_up(place: str) -> None:
    for value in range(6):
        save({"a": torch.randn(1 << 18), "n": value}, place)
    assert stored_bytes(Path(place)) < 2.5 * (4 << 18)
    assert load({"n": -1}, place) == {"n": 5}


def test_until_the_commit_readers_see_the_older_one(place: str) -> None:
    save({"a": torch.ones(2), "b": 1}, place)
    seen = []

    class Watched(StorageWriter):
        def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
            seen.append(load({"a": torch.zeros(2), "b": 0}, place))
            written = super().write_data(plan, planner)
            seen.append(load({"a": torch.zeros(2), "b": 0}, place))
            return written

        def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
            super().finish(metadata, results)
            seen.append(load({"a": torch.zeros(2), "b": 0}, place))

    dcp_save({"a": torch.full((2,), 2.0), "b": 2}, storage_writer=Watched(place))
    assert [(state["a"].tolist(), state["b"]) for state in seen] == [
        ([1.0, 1.0], 1),
        ([1.0, 1.0], 1),
        ([2.0, 2.0], 2),
    ]


def test_a_reader_ends_what_was_replaced_while_it_read(place: str) -> None:
    save({"a": torch.ones(1 << 18)}, place)
    reader = StorageReader(place)
    metadata = reader.read_metadata()
    save({"a": torch.zeros(1 << 18)}, place)
    planner, target = DefaultLoadPlanner(), {"a": torch.zeros(1 << 18)}
    planner.set_up_planner(target, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner).wait()
    assert target["a"].min().item() == 1.0


def test_overwrite_false_refuses_and_keeps(place: str) -> None:
    dcp_save({"a": torch.ones(2)}, storage_writer=StorageWriter(place, overwrite=False))
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp_save({"a": torch.zeros(2)}, storage_writer=StorageWriter(place, overwrite=False))
    assert load({"a": torch.zeros(2)}, place)["a"].tolist() == [1.0, 1.0]


def test_an_empty_state(place: str) -> None:
    save({}, place)
    assert load({}, place) == {}


def test_a_checkpoint_that_is_not_there(place: str) -> None:
    with pytest.raises(CheckpointException):
        load({"a": torch.zeros(1)}, place)
    save({"a": torch.zeros(1)}, place)
    with pytest.raises(NotFound):
        StorageReader(f"{place}#other").read_metadata()
    with pytest.raises(CheckpointException, match="Missing key"):
        load({"b": torch.zeros(1)}, place)


def test_partial_load(place: str) -> None:
    save({"a": torch.ones(2), "b": {"c": torch.ones(3), "d": 4}}, place)
    assert load({"b": {"d": 0}}, place) == {"b": {"d": 4}}
    planner = DefaultLoadPlanner(allow_partial_load=True)
    assert load({"a": torch.zeros(2), "x": 7}, place, planner=planner)["x"] == 7
    found = _load_state_dict_from_keys("b", storage_reader=StorageReader(place))
    assert found["b"]["c"].tolist() == [1.0] * 3
    assert found["b"]["d"] == 4


def test_a_state_made_from_the_metadata(place: str) -> None:
    state = {"a": {"b": [torch.ones(2), {"c": 1}]}, "x.y": 5}
    save(state, place)
    found: dict[str, Any] = {}
    _load_state_dict(
        found,
        StorageReader(place),
        planner=_EmptyStateDictLoadPlanner(),  # type: ignore[no-untyped-call]  # torch's own
        no_dist=True,
    )
    assert found["a"]["b"][0].tolist() == [1.0, 1.0]
    assert (found["a"]["b"][1], found["x.y"]) == ({"c": 1}, 5)


def test_metadata_survives(place: str) -> None:
    writer = StorageWriter(place)
    saved = dcp_save({"a": {"b": torch.zeros(2, 3)}, "c": 1}, storage_writer=writer)
    reader = StorageReader(place)
    read = reader.read_metadata()
    assert read.planner_data == saved.planner_data == {"a.b": ("a", "b"), "c": ("c",)}
    assert read.version == saved.version
    assert read.storage_meta is not None
    assert (read.storage_meta.checkpoint_id, read.storage_meta.save_id) == (
        Path(place),
        writer.save_id,
    )
    assert read.storage_meta.load_id == reader.load_id
    assert read.state_dict_metadata == saved.state_dict_metadata


class NotingPlanner(DefaultSavePlanner):
    """Stores data of its own with the plan."""

    notes: Any = ("written by", {"me": (1, 2)})

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = super().create_global_plan(all_plans)
        return plans, replace(metadata, planner_data=self.notes)


def test_data_of_a_custom_planner_survives(place: str) -> None:
    save({"a": {"x": 1}}, place, planner=NotingPlanner(flatten_state_dict=False))
    assert StorageReader(place).read_metadata().planner_data == NotingPlanner.notes
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    assert load({"a": {}}, place, planner=planner) == {"a": {"x": 1}}


def test_data_of_a_planner_that_cannot_be_stored_is_refused(place: str) -> None:
    planner = NotingPlanner(flatten_state_dict=False)
    planner.notes = object()
    with pytest.raises(CheckpointException) as caught:
        save({"a": 1}, place, planner=planner)
    assert isinstance(caught.value.failures[0][0], UnsupportedValue)
    with pytest.raises(CheckpointException):
        load({"a": 0}, place)


class LastRowsPlanner(DefaultSavePlanner):
    """Saves only the last two rows of every tensor, as a rank that saves its shard alone does."""

    def create_local_plan(self) -> SavePlan:
        return replace(super().create_local_plan(), items=[self._shard(n) for n in self.state_dict])

    def _shard(self, name: str) -> WriteItem:
        whole = self.state_dict[name]
        start, size = torch.Size([2, 0]), torch.Size([2, whole.shape[1]])
        entry = TensorWriteData(
            ChunkStorageMetadata(start, size),
            TensorProperties.create_from_tensor(whole),
            torch.Size(whole.shape),
        )
        return WriteItem(MetadataIndex(name, start), WriteItemType.SHARD, tensor_data=entry)

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.state_dict[index.fqn][2:]


def test_a_part_of_a_tensor(place: str) -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    save({"a": {"w": rows}}, place, planner=LastRowsPlanner())
    entry = StorageReader(place).read_metadata().state_dict_metadata["a.w"]
    assert isinstance(entry, TensorStorageMetadata)
    assert (entry.size, entry.chunks) == (
        torch.Size([4, 3]),
        [ChunkStorageMetadata(torch.Size([2, 0]), torch.Size([2, 3]))],
    )
    target = load({"a": {"w": torch.zeros(4, 3)}}, place)["a"]["w"]
    assert torch.equal(target, torch.cat([torch.zeros(2, 3), rows[2:]]))


def test_destinations_that_numpy_cannot_fill_in_place(place: str) -> None:
    save({"w": torch.arange(6.0), "c": torch.ones(2, dtype=torch.complex64)}, place)
    conjugate = torch.zeros(2, dtype=torch.complex64).conj()
    target = load({"w": torch.zeros(6, dtype=torch.float64), "c": conjugate}, place)
    assert target["w"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert target["c"].tolist() == [1, 1]


def test_many_checkpoints_of_one_trainer(tmp_path: Path) -> None:
    root = str(tmp_path)
    frozen = torch.randn(64, 1024)
    for step in (100, 200):
        dcp_save(
            {"frozen": frozen, "trained": torch.full((8,), float(step))},
            checkpoint_id=f"{root}/llama/step-{step}",
            storage_writer=StorageWriter(repository=root),
        )
    for step in (100, 200):
        for reader in (StorageReader(repository=root), StorageReader()):
            target = {"frozen": torch.zeros(64, 1024), "trained": torch.zeros(8)}
            below = reader._repository is not None
            place = f"{root}/llama/step-{step}" if below else f"{root}#llama@{step}"
            dcp_load(target, checkpoint_id=place, storage_reader=reader)
            assert torch.equal(target["frozen"], frozen)
            assert target["trained"].tolist() == [step] * 8
    assert stored_bytes(tmp_path) < 1.5 * frozen.nbytes, "what did not change is stored once"


def test_without_a_step_each_save_is_the_next_step(tmp_path: Path) -> None:
    place = f"{tmp_path}#run"
    for value in (1.0, 2.0):
        save({"a": torch.full((1,), value)}, place)
    assert load({"a": torch.zeros(1)}, place)["a"].item() == 2.0
    assert load({"a": torch.zeros(1)}, f"{place}@0")["a"].item() == 1.0


def test_another_store() -> None:
    place = "memory://dcp-test"
    save({"a": torch.ones(2)}, place)
    assert load({"a": torch.zeros(2)}, place)["a"].tolist() == [1.0, 1.0]


@pytest.mark.s3
def test_an_object_store(s3_bucket: str) -> None:
    root = f"s3://{s3_bucket}/job"
    for step in (1, 2):
        dcp_save(
            {"a": torch.full((2,), float(step))},
            checkpoint_id=f"{root}/step-{step}",
            storage_writer=StorageWriter(repository=root),
        )
    assert load({"a": torch.zeros(2)}, f"{root}#checkpoint@1")["a"].tolist() == [1.0, 1.0]
    save({"a": torch.ones(2)}, f"{root}/alone")
    save({"a": torch.zeros(2)}, f"{root}/alone")
    assert load({"a": torch.ones(2)}, f"{root}/alone")["a"].tolist() == [0.0, 0.0]


def test_the_native_door_reads_what_dcp_wrote(place: str) -> None:
    state = {
        "model": {"layers.0.weight": torch.randn(3, 2)},
        "optimizer": {"groups": [{"lr": 0.1, "betas": (0.9, 0.95)}], "step": [torch.ones(1), 2]},
        "dtype": torch.bfloat16,
        "stream": io.BytesIO(b"opaque"),
    }
    save(state, place)
    found = native(place)
    assert torch.equal(
        found["model"]["layers.0.weight"],
        state["model"]["layers.0.weight"],  # type: ignore[index]
    )
    assert found["optimizer"]["groups"] == [{"lr": 0.1, "betas": (0.9, 0.95)}]
    assert found["optimizer"]["step"][0].tolist() == [1.0]
    assert found["optimizer"]["step"][1] == 2
    assert found["dtype"] is torch.bfloat16
    assert isinstance(found["stream"], np.ndarray)
    assert b"opaque" in found["stream"].tobytes()


def test_dcp_reads_what_the_native_door_wrote(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    state = {
        "model": {"w": weight, "tied": weight, "array": np.arange(4.0)},
        "pair": (torch.ones(2), 3),
        "plain": {"lr": 0.1, "name": "x", "raw": b"bytes"},
        "list": [1, 2],
        7: torch.ones(1),
    }
    with fwstore.open(str(tmp_path)) as repository, repository.run("gpt").writer() as writer:
        writer.save(12, state).result()
    target: dict[Any, Any] = {
        "model": {
            "w": torch.zeros(5, 3),
            "tied": torch.zeros(5, 3),
            "array": torch.zeros(4).double(),
        },
        "pair": None,
        "plain": {"lr": 0, "name": "", "raw": b""},
        "list": [],
        "7": torch.zeros(1),
    }
    load(target, f"{tmp_path}#gpt@12")
    assert torch.equal(target["model"]["w"], weight)
    assert torch.equal(target["model"]["tied"], weight)
    assert target["model"]["array"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert target["pair"][0].tolist() == [1.0, 1.0]
    assert target["pair"][1] == 3
    assert target["plain"] == {"lr": 0.1, "name": "x", "raw": b"bytes"}
    assert target["list"] == [1, 2]
    assert target["7"].tolist() == [1.0]


def test_a_writer_pickles_and_a_reader_too(place: str) -> None:
    writer = pickle.loads(pickle.dumps(StorageWriter(place)))
    dcp_save({"a": torch.ones(1)}, storage_writer=writer)
    reader = StorageReader(place)
    reader.read_metadata()
    reader = pickle.loads(pickle.dumps(reader))
    target = {"a": torch.zeros(1)}
    dcp_load(target, storage_reader=reader)
    assert target["a"].item() == 1.0


def test_ranks_that_opened_different_snapshots_are_told(place: str) -> None:
    reader = StorageReader(place)
    with pytest.raises(Conflict, match="saved again"):
        reader.prepare_global_plan([LoadPlan([], "id-1"), LoadPlan([], "id-2")])


def test_a_save_that_breaks_off_leaves_the_older_one(place: str) -> None:
    save({"a": torch.ones(1)}, place)

    class Breaking(StorageWriter):
        def finish(self, metadata: Metadata, results: Any) -> None:
            raise OSError("the coordinator dies")

    with pytest.raises(CheckpointException):
        dcp_save({"a": torch.zeros(1)}, storage_writer=Breaking(place))
    assert load({"a": torch.zeros(1)}, place)["a"].item() == 1.0
    save({"a": torch.full((1,), 2.0)}, place)
    assert load({"a": torch.zeros(1)}, place)["a"].item() == 2.0


def test_tensors_that_cannot_be_stored_are_named(place: str) -> None:
    with pytest.raises(CheckpointException, match=r"model\.sparse: .*layout"):
        save({"model": {"sparse": torch.eye(2).to_sparse()}}, place)


def test_arguments(place: str) -> None:
    StorageWriter(place, thread_count=4, single_file_per_rank=False, sync_files=False)
    StorageWriter(place, _extensions=None, serialization_format=SerializationFormat.TORCH_SAVE)
    StorageReader(place, _extension_registry=None)
    for changed in (
        {"_extensions": [ZStandard()]},
        {"serialization_format": SerializationFormat.SAFETENSORS},
        {"unheard_of": 1},
    ):
        with pytest.raises(TypeError, match=next(iter(changed))):
            StorageWriter(place, **changed)
    with pytest.raises(InvalidInput):
        StorageWriter("abc://abc.abc")
    with pytest.raises(InvalidInput, match="checkpoint_id"):
        _ = StorageWriter().checkpoint_id
    with pytest.raises(InvalidInput, match="checkpoint_id"):
        _ = StorageReader().checkpoint_id
    assert StorageWriter.validate_checkpoint_id(place)
    assert not StorageReader.validate_checkpoint_id("abc://abc.abc")


def test_thread_async_save(place: str) -> None:
    state: dict[str, Any] = {"a": torch.ones(4), "b": 2}
    future: Any = async_save(state, storage_writer=StorageWriter(place), no_dist=True)
    state["a"].zero_()
    future.result()
    assert load({"a": torch.zeros(4), "b": 0}, place) == {"a": pytest.approx([1.0] * 4), "b": 2}
