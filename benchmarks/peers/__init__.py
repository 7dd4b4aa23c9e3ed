"""Every peer by the name that tables show, and what it needs to be installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import floors
from benchmarks.peers.base import Peer
from benchmarks.peers.dcp import Dcp, DcpAsync
from benchmarks.peers.one_copy import OneCopy
from benchmarks.peers.orbax import Orbax
from benchmarks.peers.ours import Fwstore
from benchmarks.peers.safetensors import Safetensors
from benchmarks.peers.torch_checkpointing import TorchCheckpointing
from benchmarks.peers.torchsnapshot import Torchsnapshot


@dataclass(frozen=True)
class Adapter:
    """How to get a peer.

    Attributes:
        make: It, with the folder it may use.
        distribution: Whose version is reported; empty for the raw machine.
        requirement: What to install into an environment of its own; empty when the project's has it.
    """

    make: Callable[[Path], Peer]
    distribution: str = ""
    requirement: str = ""


def _fwstore(**options: Any) -> Adapter:
    return Adapter(lambda folder: Fwstore(str(folder / "store"), **options), "fwstore")


PEERS: dict[str, Adapter] = {
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
