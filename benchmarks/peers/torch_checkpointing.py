"""torch_checkpointing, the successor of DCP, as its documents say for a machine without CUDA.

It does not fsync, so that is done for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.cache import sync_folder
from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait


class TorchCheckpointing(Peer):
    def __init__(self, folder: Path) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.config import AsyncCheckpointSaverConfig
        from torch_checkpointing.staging import CheckpointStagerConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        staging = CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False)
        save = AsyncCheckpointSaverConfig(staging_config=staging)
        self._folder = folder
        # Its writes past the page cache are not aligned, which ext4 refuses.
        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        config = CheckpointManager.Config(save=save, storage_config=storage)
        self._manager: Any = CheckpointManager(config)

    def prepare(self, state: State) -> None:
        self._manager.prewarm_staging({"state": state})

    def save(self, state: State, step: int) -> Wait:
        folder = self._folder / str(step)
        future = self._manager.save(str(folder), {"state": state})
        with self._manager.lock():
            # The lock is free again once the state is staged.
            pass

        def wait() -> None:
            future.result()
            sync_folder(folder)

        return wait

    def load(self, into: State, step: int) -> None:
        self._manager.load(str(self._folder / str(step)), into={"state": into})

    def close(self) -> None:
        self._manager.close()
