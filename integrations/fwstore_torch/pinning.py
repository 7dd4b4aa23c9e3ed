"""Host memory that a CUDA device copies to and from by itself, at the full speed of its link.

Invariant: what is registered here is registered once, as a whole, and is taken back before it is unmapped.
Registered is memory of fwstore's own pool and not memory of torch's: that is never given back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device, not only for the one that is current."""


def pin_memory(device: torch.device, memory: memoryview) -> Callable[[], None]:
    """Pin memory; return what undoes it.

    The driver remembers a failure as the last error of the calling thread, where the next kernel launch would
    report it: call it in a thread that does nothing else.

    Raises:
        OSError: The driver does not pin it.
    """
    address = int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])
    _call(device, "cudaHostRegister", address, memory.nbytes, _PORTABLE)
    return functools.partial(_call, device, "cudaHostUnregister", address)


def _call(device: torch.device, name: str, *arguments: Any) -> None:
    module = torch.get_device_module(device)
    # Without its device a thread would make a context on the first one, which costs memory there.
    try:
        with module.device(device):
            status = int(getattr(module.cudart(), name)(*arguments))
    except RuntimeError as error:
        raise OSError(f"{name}: {error}") from error
    if status:
        raise OSError(f"{name} ended with CUDA error {status}")
