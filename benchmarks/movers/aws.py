"""aws s3 sync, which copies between two endpoints in two hops."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common.bed import BUCKET, Bed
from benchmarks.movers.base import Mover, run_tool

_MEMORY = "/dev/shm"
_TUNED = "[default]\ns3 =\n  max_concurrent_requests = 64\n  max_queue_size = 10000\n"


class Aws(Mover):
    """`aws s3 sync` down and up, at its defaults or tuned for large objects."""

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        super().__init__(folder)
        self._configuration = folder / "aws-configuration"
        self._configuration.write_text(_TUNED if tuned else "")

    def copy(self, bed: Bed) -> None:
        """Fetch everything, then put everything."""
        with tempfile.TemporaryDirectory(dir=_MEMORY) as hop:
            self._run(bed.far, f"s3://{BUCKET}", hop)
            self._run(bed.target, hop, f"s3://{BUCKET}")

    def _run(self, endpoint: str, source: str, target: str) -> None:
        command = ["--endpoint-url", endpoint, "s3", "sync", source, target, "--quiet"]
        run_tool("aws", command, {"AWS_CONFIG_FILE": str(self._configuration)})
