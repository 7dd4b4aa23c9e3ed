"""rclone, from store to store."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.bed import Bed
from benchmarks.movers.base import Mover, run_tool

_TUNED = "--transfers 32 --multi-thread-streams 8 --s3-chunk-size 16M --s3-upload-concurrency 8 --checksum --fast-list"


class Rclone(Mover):
    """`rclone copy`, at its defaults or tuned for large objects."""

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        super().__init__(folder)
        self._options = _TUNED.split() if tuned else []

    def copy(self, bed: Bed) -> None:
        """Copy between two remotes."""
        remotes = {"SOURCE": bed.far, "TARGET": bed.target}
        environment = {
            f"RCLONE_CONFIG_{remote}_{name}": value
            for remote, place in remotes.items()
            for name, value in {
                "TYPE": "s3",
                "PROVIDER": "Ceph",
                "ENV_AUTH": "true",
                "ENDPOINT": place.endpoint,
                "FORCE_PATH_STYLE": "true",
            }.items()
        }
        places = [f"{name.lower()}:{place.bucket}" for name, place in remotes.items()]
        run_tool("rclone", ["copy", *places, "--config", "", *self._options], environment)
