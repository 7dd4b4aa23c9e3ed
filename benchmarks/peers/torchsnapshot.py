"""torchsnapshot, asynchronous. It does not fsync, so that is done for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.cache import sync_folder
from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait


class Torchsnapshot(Peer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> Wait:
        from torchsnapshot import Snapshot, StateDict

        folder = self._folder / str(step)
        pending: Any = Snapshot.async_take(str(folder), {"state": StateDict(**state)})

        def wait() -> None:
            pending.wait()
            sync_folder(folder)

        return wait

    def load(self, into: State, step: int) -> None:
        from torchsnapshot import Snapshot, StateDict

        Snapshot(str(self._folder / str(step))).restore({"state": StateDict(**into)})
