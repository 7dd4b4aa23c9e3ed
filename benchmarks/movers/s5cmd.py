"""s5cmd, which copies between two endpoints by way of a folder."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.bed import Bed, Place
from benchmarks.movers.base import Mover, run_tool


class S5cmd(Mover):
    """`s5cmd sync` down and up, at its defaults or tuned for large objects."""

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        super().__init__(folder)
        self._workers = ["--numworkers", "64"] if tuned else []
        self._parts = ["--concurrency", "8"] if tuned else []

    def copy(self, bed: Bed) -> None:
        """Fetch everything, then put everything."""
        # What is killed goes on from there.
        hop = str(self.folder / bed.target.bucket)
        self._run(bed.far, f"s3://{bed.far.bucket}/*", f"{hop}/")
        self._run(bed.target, f"{hop}/", f"s3://{bed.target.bucket}/")

    def _run(self, place: Place, source: str, target: str) -> None:
        command = ["--endpoint-url", place.endpoint, *self._workers, "sync", *self._parts]
        run_tool("s5cmd", [*command, source, target])
