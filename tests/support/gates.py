"""A store whose operations wait at a gate, so that a test decides when a background save goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from fwstore.store.base import Store
from support.faults import FaultyStore

T = TypeVar("T")

_PATIENCE_S = 60.0


def packs(name: str, key: str) -> bool:
    """Hold the first bytes of every pack."""
    return name == "begin" and key.startswith("packs/")


def commits(name: str, key: str) -> bool:
    """Hold every record of the log."""
    return name == "create" and "/_log/" in key


class GatedStore(FaultyStore):
    """A store around a store; operations that are held wait until the gate is open.

    Args:
        inner: The store that keeps the objects.
        held: Says by name and key which operations wait.
    """

    def __init__(self, inner: Store, held: Callable[[str, str], bool] = packs) -> None:
        super().__init__(inner)
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()
        self._held = held

    def shut(self) -> None:
        """Let held operations wait from now on."""
        self.arrived.clear()
        self.gate.clear()

    def open(self) -> None:
        """Let everything pass."""
        self.gate.set()

    def wait_arrival(self) -> None:
        """Wait until some operation stands at the gate."""
        assert self.arrived.wait(_PATIENCE_S), "nothing came to the gate"

    def act(
        self,
        name: str,
        key: str,
        operation: Callable[[], T],
        partly: Callable[[], object] | None = None,
    ) -> T:
        if not self.gate.is_set() and self._held(name, key):
            self.arrived.set()
            assert self.gate.wait(_PATIENCE_S), "the gate was never opened"
        return super().act(name, key, operation, partly)
