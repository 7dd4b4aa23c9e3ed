"""fwstore for torch: `Saver` for training loops, and the storage of torch.distributed.checkpoint.

Importing this package imports nothing of torch: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwstore_torch.failures import SaveFailedWarning
    from fwstore_torch.parts import PerRank
    from fwstore_torch.saver import ResumeStatistics, Saver
    from fwstore_torch.signals import StopTraining
    from fwstore_torch.storage_reader import StorageReader
    from fwstore_torch.storage_writer import StorageWriter

__all__ = [
    "PerRank",
    "ResumeStatistics",
    "SaveFailedWarning",
    "Saver",
    "StopTraining",
    "StorageReader",
    "StorageWriter",
]

_MODULES = {
    "PerRank": "parts",
    "ResumeStatistics": "saver",
    "SaveFailedWarning": "failures",
    "Saver": "saver",
    "StopTraining": "signals",
    "StorageReader": "storage_reader",
    "StorageWriter": "storage_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
