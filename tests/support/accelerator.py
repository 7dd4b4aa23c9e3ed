"""The programming interface of a CUDA device, as far as fwstore uses it, over memory of this machine.

It notes in which order it is asked. What is not here, such as waiting for a whole stream or device, cannot be called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from support.pins import Driver


@dataclass(frozen=True)
class Moment:
    """A moment in a stream."""

    accelerator: Accelerator
    blocking: bool = False

    def record(self, stream: Queue) -> None:
        """Put it behind what is queued."""
        assert self.blocking, "who waits for it would spin"
        self.accelerator.calls.append(f"record in {stream.name}")

    def synchronize(self) -> None:
        """Wait for it."""
        self.accelerator.calls.append("wait for the copy")


@dataclass(frozen=True)
class Queue:
    """A queue of work."""

    accelerator: Accelerator
    name: str

    def record_event(self) -> Moment:
        """Return the moment behind what is queued."""
        self.accelerator.calls.append(f"note what is queued in {self.name}")
        return Moment(self.accelerator)

    def wait_event(self, event: Moment) -> None:
        """Queue what waits for an event."""
        assert event.accelerator is self.accelerator
        self.accelerator.calls.append(f"{self.name} waits for that")


class Accelerator:
    """A device module like `torch.cuda`.

    Attributes:
        calls: What was asked for, in order.
        driver: What is pinned.
        status: What the next call of the driver answers, or raises.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.driver = Driver()
        self.status: int | Exception = 0
        self.Event = partial(Moment, self)
        self.Stream = lambda device: Queue(self, "the side stream")
        self.cudaHostRegister, self.cudaHostUnregister = self._register, self._unregister

    def current_stream(self, device: Any) -> Queue:
        """Return the stream in which training works."""
        return Queue(self, "training")

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Make a device current."""
        self.calls.append("enter the device")
        yield
        self.calls.append("leave the device")

    @contextmanager
    def stream(self, stream: Queue) -> Iterator[None]:
        """Make a stream current."""
        self.calls.append(f"enter {stream.name}")
        yield
        self.calls.append(f"leave {stream.name}")

    def cudart(self) -> Accelerator:
        """Return the functions of the driver."""
        assert self.calls[-1] == "enter the device"
        return self

    def _answer(self) -> int:
        if isinstance(self.status, Exception):
            raise self.status
        return self.status

    def _register(self, address: int, size: int, flags: int) -> int:
        assert (address % 4096, flags) == (0, 1)
        if not self._answer():
            self.driver.register(address, size)
        return self._answer()

    def _unregister(self, address: int) -> int:
        if not self._answer():
            self.driver.unregister(address)
        return self._answer()
