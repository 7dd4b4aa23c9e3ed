"""torch.distributed.checkpoint with fsynced files: synchronous, or asynchronous in a thread or a process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait, done

_THREADS = 2


class Dcp(Peer):
    """DCP without other ranks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def writer(self, step: int) -> Any:
        """Return what writes a step."""
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        return FileSystemWriter(self._folder / str(step), thread_count=_THREADS, sync_files=True)

    def save(self, state: State, step: int) -> Wait:
        from torch.distributed.checkpoint.state_dict_saver import save

        save(state, storage_writer=self.writer(step), no_dist=True)
        return done

    def load(self, into: State, step: int) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(into, storage_reader=FileSystemReader(self._folder / str(step)), no_dist=True)


class DcpAsync(Dcp):
    """DCP that copies into a stager which is kept from save to save."""

    def __init__(
        self, folder: Path, *, where: Literal["thread", "process"], pinned: bool = False
    ) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        super().__init__(folder)
        self._type = AsyncCheckpointerType(f"{where}")
        _join_world_of_one()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=pinned,
                use_shared_memory=where == "process",
                use_async_staging=False,
                use_non_blocking_copy=pinned,
            )
        )

    def save(self, state: State, step: int) -> Wait:
        from torch.distributed.checkpoint.state_dict_saver import async_save

        future: Any = async_save(
            state,
            storage_writer=self.writer(step),
            async_stager=self._stager,
            async_checkpointer_type=self._type,
        )
        return lambda: getattr(future, "upload_completion", future).result()

    def close(self) -> None:
        self._stager.close()
        torch.distributed.destroy_process_group()


def _join_world_of_one() -> None:
    # By environment: the helper process of DCP finds the others there.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    torch.distributed.init_process_group("gloo")
