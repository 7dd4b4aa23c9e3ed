"""Every peer by the name that tables show, and what it needs to be installed."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import floors
from benchmarks.peers.base import Adapter, Peer
from benchmarks.peers.dcp import Dcp, DcpAsync
from benchmarks.peers.one_copy import OneCopy
from benchmarks.peers.orbax import Orbax
from benchmarks.peers.ours import Fwstore
from benchmarks.peers.safetensors import Safetensors
from benchmarks.peers.torch_checkpointing import TorchCheckpointing
from benchmarks.peers.torchsnapshot import Torchsnapshot


def _fwstore(**options: Any) -> Adapter[Peer]:
    return Adapter(lambda folder: Fwstore(str(folder / "store"), **options), "fwstore")


PEERS: dict[str, Adapter[Peer]] = {
    "fwstore async": _fwstore(),
    "fwstore async, 1 thread": _fwstore(threads=1),
    "fwstore sync": _fwstore(blocking=True),
    "fwstore cuda": _fwstore(),
    "fwstore cuda, lazy": _fwstore(staging="lazy"),
    "dcp sync": Adapter(Dcp, "torch"),
    "dcp async": Adapter(lambda folder: DcpAsync(folder, where="thread"), "torch"),
    "dcp process": Adapter(lambda folder: DcpAsync(folder, where="process"), "torch"),
    "dcp async, pinned": Adapter(
        lambda folder: DcpAsync(folder, where="thread", pinned=True), "torch"
    ),
    "safetensors": Adapter(Safetensors, "safetensors"),
    "torch_checkpointing": Adapter(
        TorchCheckpointing, "torch_checkpointing", "torch_checkpointing==0.1.1"
    ),
    "orbax": Adapter(Orbax, "orbax-checkpoint", "orbax-checkpoint==0.12.8"),
    "torchsnapshot": Adapter(Torchsnapshot, "torchsnapshot", "torchsnapshot==0.1.0"),
    "one copy": Adapter(OneCopy),
    "memcpy": Adapter(floors.Memcpy),
    "raw 2 threads": Adapter(floors.TwoThreads),
    "raw sequential": Adapter(floors.Sequential),
    "raw O_DIRECT": Adapter(floors.Direct),
}
