"""aws s3 sync, which copies between two endpoints by way of a folder."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.bed import Bed, Place
from benchmarks.movers.base import Mover, run_tool

_TUNED = "[default]\ns3 =\n  max_concurrent_requests = 64\n  max_queue_size = 10000\n"


class Aws(Mover):
    """`aws s3 sync` down and up, at its defaults or tuned for large objects."""

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        super().__init__(folder)
        self._configuration = folder / "aws-configuration"
        self._configuration.write_text(_TUNED if tuned else "")

    def copy(self, bed: Bed) -> None:
        """Fetch everything, then put everything."""
        # What is killed goes on from there.
        hop = str(self.folder / bed.target.bucket)
        self._run(bed.far, f"s3://{bed.far.bucket}", hop)
        self._run(bed.target, hop, f"s3://{bed.target.bucket}")

    def _run(self, place: Place, source: str, target: str) -> None:
        command = ["--endpoint-url", place.endpoint, "s3", "sync", source, target, "--quiet"]
        run_tool("aws", command, {"AWS_CONFIG_FILE": str(self._configuration)})
