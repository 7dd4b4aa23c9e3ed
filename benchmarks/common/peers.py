"""Every peer behind one face: save a flat dict of tensors so that it is durable, and load it again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

State = dict[str, torch.Tensor]
Wait = Callable[[], object]


class Peer(Protocol):
    """One way to keep checkpoints in a directory."""

    def save(self, state: State, step: int) -> Wait:
        """Save; returns when the tensors may change, and what waits until the save is durable."""
        ...

    def load(self, into: State, step: int) -> None:
        """Fill existing tensors."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Fwstore:
    """fwstore, asynchronous or blocking."""

    def __init__(self, folder: Path, *, blocking: bool) -> None:
        import fwstore

        self._repository = fwstore.open(str(folder / "store"))
        self._run = self._repository.run("bench")
        self._writer = self._run.writer()
        self._blocking = blocking

    def save(self, state: State, step: int) -> Wait:
        handle = self._writer.save(step, state, blocking=self._blocking)
        return handle.result

    def load(self, into: State, step: int) -> None:
        self._run[step].load(into=into)

    def close(self) -> None:
        self._writer.close()
        self._repository.close()


class Dcp:
    """torch.distributed.checkpoint with fsynced files: synchronous, or asynchronous with a kept stager."""

    def __init__(self, folder: Path, *, asynchronous: bool, threads: int = 2) -> None:
        self._folder = folder
        self._threads = threads
        self._stager: Any = None
        if asynchronous:
            from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
            )
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=False,
                    use_shared_memory=False,
                    use_async_staging=False,
                    use_non_blocking_copy=False,
                )
            )

    def save(self, state: State, step: int) -> Wait:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save, save

        writer = FileSystemWriter(
            self._folder / str(step), thread_count=self._threads, sync_files=True
        )
        if self._stager is None:
            save(state, storage_writer=writer, no_dist=True)
            return lambda: None
        future: Any = async_save(state, storage_writer=writer, async_stager=self._stager)
        return lambda: getattr(future, "upload_completion", future).result()

    def load(self, into: State, step: int) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = FileSystemReader(self._folder / str(step))
        load(into, storage_reader=reader, no_dist=True)

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()
            torch.distributed.destroy_process_group()


class Safetensors:
    """One file of safetensors, fsynced; nothing is verified on load."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> Wait:
        from safetensors.torch import save_file

        path = self._folder / f"{step}.safetensors"
        save_file(state, path)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return lambda: None

    def load(self, into: State, step: int) -> None:
        from safetensors import safe_open

        with safe_open(self._folder / f"{step}.safetensors", framework="pt") as stored:
            for name, tensor in into.items():
                tensor.copy_(stored.get_tensor(name))

    def close(self) -> None:
        return


PEERS: dict[str, Callable[[Path], Peer]] = {
    "fwstore async": lambda folder: Fwstore(folder, blocking=False),
    "fwstore sync": lambda folder: Fwstore(folder, blocking=True),
    "dcp async": lambda folder: Dcp(folder, asynchronous=True),
    "dcp sync": lambda folder: Dcp(folder, asynchronous=False),
    "safetensors": Safetensors,
}
