"""How do several ranks save, and load in another number? ``python -m benchmarks.ranks``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import fwstore
from benchmarks.common.backing import back_memory
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.ranks import on_ranks, together
from benchmarks.common.series import run
from benchmarks.common.state import State, allocate, change, empty_like, fill
from benchmarks.common.trial import Figures, Trial

OURS, DCP = "fwstore sync", "dcp sync"
STEPS = (1, 2)
Save = Callable[[State, int], object]

QUESTION = Question(
    name="ranks",
    title="How do several ranks save, and load in another number?",
    subjects=(OURS, DCP),
    figures=(
        Figure("save_s", "2 ranks save, durable"),
        Figure("load_4_2_s", "load 4 -> 2 ranks"),
        Figure("load_2_4_s", "load 2 -> 4 ranks"),
        Figure("load_2_1_s", "load 2 -> 1 rank"),
    ),
    marks=(
        Mark(OURS, "save_s", 0.8, (DCP,)),
        Mark(OURS, "load_4_2_s", 1 / 3, (DCP,)),
        Mark(OURS, "load_2_4_s", 1 / 3, (DCP,)),
        Mark(OURS, "load_2_1_s", 1 / 3, (DCP,)),
    ),
    note=(
        "Every tensor is cut by rows over the ranks (DTensor, gloo). The second save counts, from the moment all "
        "begin until it is durable for all. Loads are warm and into existing tensors; every byte is compared."
    ),
)


def measure(trial: Trial) -> Figures:
    """Save on 2 and on 4 ranks; load across."""
    job = (trial.subject, trial.folder, trial.size_bytes, trial.socket)
    save = max(on_ranks(2, save_on_rank, *job, "two"))
    on_ranks(4, save_on_rank, *job, "four")
    return {
        "save_s": save,
        "load_4_2_s": max(on_ranks(2, load_on_rank, *job, "four")),
        "load_2_4_s": max(on_ranks(4, load_on_rank, *job, "two")),
        "load_2_1_s": max(on_ranks(1, load_on_rank, *job, "two")),
    }


def save_on_rank(subject: str, folder: Path, size_bytes: int, socket: Path, name: str) -> float:
    """Save twice; return the seconds of the second."""
    state = sharded(size_bytes)
    save, close = savers(subject, folder / name)
    seconds = 0.0
    for step in STEPS:
        change(state)
        _back(socket)
        seconds = together(partial(save, state, step))
    close()
    return seconds


def load_on_rank(subject: str, folder: Path, size_bytes: int, socket: Path, name: str) -> float:
    """Load the last step; return the seconds."""
    state = sharded(size_bytes)
    for _ in STEPS:
        change(state)
    into = empty_like(state)
    load = loader(subject, folder / name)
    _back(socket)
    seconds = together(lambda: load(into, STEPS[-1]))
    for key, tensor in into.items():
        if not torch.equal(_local(tensor), _local(state[key])):
            raise RuntimeError(f"{subject} did not give back {key} as it was")
    return seconds


def sharded(size_bytes: int) -> State:
    """Return this rank's rows of the state."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state: State = {}
    for name, tensor in allocate(size_bytes):
        fill(name, tensor)
        rows = tensor.chunk(mesh.size())[mesh.get_local_rank()].clone()
        state[name] = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False)
    return state


def savers(subject: str, folder: Path) -> tuple[Save, Callable[[], None]]:
    """Return what saves durably on every rank, and what ends it."""
    if subject == OURS:
        repository = fwstore.open(folder)
        writer = repository.run("bench").writer()

        def close() -> None:
            writer.close()
            repository.close()

        return lambda state, step: writer.save(step, state, blocking=True), close

    def save(state: State, step: int) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = FileSystemWriter(folder / str(step), thread_count=2, sync_files=True)
        save(state, storage_writer=writer)

    return save, lambda: None


def loader(subject: str, folder: Path) -> Save:
    """Return what fills a state on every rank."""
    if subject == OURS:
        checkpoints = fwstore.open(folder).run("bench")
        return lambda into, step: checkpoints[step].load(into=into)

    def load(into: State, step: int) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(into, storage_reader=FileSystemReader(folder / str(step)))

    return load


def _back(socket: Path) -> None:
    if dist.get_rank() == 0:
        back_memory(socket)
    dist.barrier()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


if __name__ == "__main__":
    run(QUESTION)
