"""s5cmd, which copies between two endpoints in two hops."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common.bed import BUCKET, Bed
from benchmarks.movers.base import Mover, run_tool

_MEMORY = "/dev/shm"


class S5cmd(Mover):
    """`s5cmd cp` down and up, at its defaults or tuned for large objects."""

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        super().__init__(folder)
        self._workers = ["--numworkers", "64"] if tuned else []
        self._parts = ["--concurrency", "8"] if tuned else []

    def copy(self, bed: Bed) -> None:
        """Fetch everything, then put everything."""
        with tempfile.TemporaryDirectory(dir=_MEMORY) as hop:
            self._run(bed.far, f"s3://{BUCKET}/*", f"{hop}/")
            self._run(bed.target, f"{hop}/", f"s3://{BUCKET}/")

    def _run(self, endpoint: str, source: str, target: str) -> None:
        command = ["--endpoint-url", endpoint, *self._workers, "cp", *self._parts]
        run_tool("s5cmd", [*command, source, target])
