"""Import and export through the program: round trips, refusals, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_saver import save

import fwstore
from fwstore_cli.exits import ExitCode
from fwstore_migrate.imports import ImportOptions, import_checkpoint
from fwstore_migrate.states import open_foreign
from support.commands import Command


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "layers.0.w": torch.randn(300, 700),
        "layers.0.b": torch.randn(7).bfloat16(),
        "f8": torch.randn(5).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
    }


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _assert_equal(found: Any, tensors: dict[str, torch.Tensor]) -> None:
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert _bits(found[name]) == _bits(tensor)


def _load(repository: str, name: str) -> Any:
    with fwstore.open(repository) as opened:
        return opened.run(name).latest().load()


def test_safetensors_go_in_and_out(
    command: Command, repository: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt", "by": "me"})
    done = command("import", tmp_path / "in.safetensors", "new@7", "--json").value
    assert (done["format"], done["step"], done["tensors"]) == ("safetensors", 7, 5)
    state = _load(repository, "new")
    assert state.pop("__metadata__") == {"format": "pt", "by": "me"}
    _assert_equal(state, tensors)
    assert command("export", "new@7", tmp_path / "out.safetensors").code == 0
    _assert_equal(load_file(tmp_path / "out.safetensors"), tensors)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}


def test_a_sharded_export_can_be_imported(
    command: Command, repository: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "in.safetensors")
    assert command("import", tmp_path / "in.safetensors", "new", "--under", "model").code == 0
    folder = tmp_path / "out"
    done = command("export", "new", folder, "--shard-size", "1kB", "--json").value
    assert len(done["written"]["files"]) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    merged: dict[str, torch.Tensor] = {}
    for file in set(index["weight_map"].values()):
        merged |= load_file(folder / file)
    _assert_equal(merged, {f"model.{name}": tensor for name, tensor in tensors.items()})
    assert command("import", folder, "again").code == 0
    again = _load(repository, "again")
    del again["__metadata__"]
    _assert_equal(again, merged)


def test_torch_files_go_in(command: Command, repository: str, tmp_path: Path) -> None:
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "tied": [model.weight, model.weight],
        "transposed": model.weight.detach().t(),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "array": np.arange(3),
    }
    torch.save(value, tmp_path / "x.pt")
    assert command("import", tmp_path / "x.pt", "new").code == 0
    state = _load(repository, "new")
    _assert_equal(state["model"], dict(model.state_dict()))
    exp_avg = optimizer.state_dict()["state"][0]["exp_avg"]
    assert _bits(state["optimizer"]["state"][0]["exp_avg"]) == _bits(exp_avg)
    assert state["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert state["tied"][0] is state["tied"][1]
    assert torch.equal(state["transposed"], model.weight.t())
    assert (state["dtype"], state["size"]) == (torch.bfloat16, torch.Size([2, 3]))
    assert state["device"] == torch.device("cpu")
    assert (state["array"] == np.arange(3)).all()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_dcp_directories_go_in(command: Command, repository: str, tmp_path: Path) -> None:
    weight = torch.randn(40, 50)
    save({"model": {"w": weight}, "steps": [1, 2]}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert command("import", tmp_path / "dcp", "new").code == 0
    state = _load(repository, "new")
    assert torch.equal(state["model"]["w"], weight)
    assert state["steps"] == [1, 2]


def _objects(repository: str) -> set[str]:
    return {str(path) for path in Path(repository).rglob("*") if path.is_file()}


def test_hostile_files_change_nothing(command: Command, repository: str, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"a": torch.ones(3), "b": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    before = _objects(repository)
    refused = command("import", tmp_path / "evil.pt", "new")
    assert refused.code == ExitCode.USAGE
    assert "system" in refused.errors
    assert command("import", tmp_path / "cut.safetensors", "new").code == ExitCode.CORRUPT
    assert command("import", tmp_path / "none.pt", "new").code == ExitCode.NOT_FOUND
    assert not (tmp_path / "executed").exists()
    assert _objects(repository) == before


def test_a_file_that_fails_midway_leaves_nothing_visible(
    command: Command, repository: str, tmp_path: Path
) -> None:
    dcp_folder = tmp_path / "dcp"
    with pytest.warns(UserWarning, match="torch.distributed"):
        save({"a": torch.ones(10), "b": torch.ones(10)}, checkpoint_id=dcp_folder, no_dist=True)
    (data,) = dcp_folder.glob("*.distcp")
    content = bytearray(data.read_bytes())
    content[content.rindex(b"PK\x03\x04")] ^= 0xFF
    data.write_bytes(content)
    assert command("import", dcp_folder, "new").code != 0
    assert [row["run"] for row in command("ls", "--json").value] == ["gpt"]
    assert command("import", dcp_folder, "gpt@40", "--append").code != 0
    assert [row["step"] for row in command("ls", "gpt", "--json").value] == [10, 20, 30]


def test_a_run_that_exists_is_safe(command: Command, repository: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    refused = command("import", tmp_path / "a.safetensors", "gpt@40")
    assert refused.code == ExitCode.CONFLICT
    assert "--append" in refused.errors
    assert (
        command("import", tmp_path / "a.safetensors", "gpt@20", "--append").code
        == ExitCode.CONFLICT
    )
    assert command("import", tmp_path / "a.safetensors", "gpt@40", "--append").code == 0
    assert [row["step"] for row in command("ls", "gpt", "--json").value] == [10, 20, 30, 40]


def test_an_export_replaces_nothing_unasked(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"mine")
    refused = command("export", "gpt", target)
    assert refused.code == ExitCode.CONFLICT
    assert target.read_bytes() == b"mine"
    assert command("export", "gpt", target, "--overwrite").code == 0
    assert load_file(target).keys() == {"model.frozen", "model.trained"}
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    assert command("export", "gpt", folder).code == ExitCode.CONFLICT
    assert command("export", "gpt", folder, "--overwrite").code == 0
    assert not (folder / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_export_selects_and_refuses(command: Command, repository: str, tmp_path: Path) -> None:
    assert command("export", "gpt", tmp_path / "a.safetensors", "--only", "*/frozen").code == 0
    assert load_file(tmp_path / "a.safetensors").keys() == {"model.frozen"}
    nothing = command("export", "gpt", tmp_path / "b.safetensors", "--only", "nothing")
    assert nothing.code == ExitCode.NOT_FOUND
    with fwstore.open(repository) as opened, opened.run("odd").writer() as writer:
        state = {"a.b": np.ones(1), "a": {"b": np.ones(2)}, "c": np.ones(1, np.complex128)}
        writer.save(0, state).result()
    clash = command("export", "odd", tmp_path / "c.safetensors", "--only", "a*")
    assert clash.code == ExitCode.USAGE
    assert "'a.b'" in clash.errors
    assert command("export", "odd", tmp_path / "c.safetensors", "--only", "c").code == (
        ExitCode.UNSUPPORTED
    )
    assert not (tmp_path / "c.safetensors").exists()


_IMPORT = [sys.executable, "-m", "fwstore_cli", "import"]


@pytest.mark.slow
def test_a_killed_import_leaves_nothing_visible(
    command: Command, repository: str, tmp_path: Path
) -> None:
    save_file({f"t{n}": torch.randn(1 << 20) for n in range(32)}, tmp_path / "a.safetensors")
    for pause in (0.6, 0.9, 1.2):
        target = f"new{pause}".replace(".", "-")
        process = subprocess.Popen(
            [*_IMPORT, str(tmp_path / "a.safetensors"), target, "-C", repository],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(pause)
        process.kill()
        process.wait()
        rows = {row["run"]: row["checkpoints"] for row in command("ls", "--json").value}
        assert rows.get(target, 0) in (0, 1)
        if rows.get(target):
            assert command("verify", target, "--data").code == 0


@pytest.mark.parametrize("target", [ImportOptions(), ImportOptions(step=40, append=True)])
def test_an_import_that_is_fenced_leaves_the_newer_job_alone(
    repository: str, tmp_path: Path, target: ImportOptions
) -> None:
    save_file({f"t{n}": torch.randn(1 << 18) for n in range(4)}, tmp_path / "a.safetensors")
    name = "gpt" if target.append else "new"
    fences: list[int] = []

    def fence(count: int) -> None:
        if not fences:
            fences.append(count)
            with fwstore.open(repository) as other, other.run(name).writer() as writer:
                writer.save(target.step, {"mine": np.ones(3)}).result()

    with fwstore.open(repository) as opened:
        run, foreign = opened.run(name), open_foreign(tmp_path / "a.safetensors")
        with pytest.raises(fwstore.Fenced):
            import_checkpoint(run, foreign, target, fence)
        assert run[target.step].load()["mine"].sum() == 3


def test_a_run_that_a_killed_import_left_is_told_from_one_with_checkpoints(
    command: Command, repository: str, tmp_path: Path
) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with fwstore.open(repository) as opened:
        opened.run("new").writer().close()
    refused = command("import", tmp_path / "a.safetensors", "new")
    assert refused.code == ExitCode.CONFLICT
    assert "it has no checkpoint yet" in refused.errors
    assert command("import", tmp_path / "a.safetensors", "new", "--append").code == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(repository: str, tmp_path: Path) -> None:
    peaks = []
    for count in (1, 12):
        path = tmp_path / f"{count}.safetensors"
        save_file({f"t{n}": torch.randn(1 << 24) for n in range(count)}, path)
        command = [*_IMPORT, str(path), f"run{count}", "-C", repository]
        with psutil.Popen(command, stdout=subprocess.DEVNULL) as process:
            peak = 0
            while process.poll() is None:
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.01)
            assert process.returncode == 0
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 400 << 20
