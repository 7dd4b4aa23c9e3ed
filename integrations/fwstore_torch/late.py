"""Copies that go on while training does, until an optimizer is about to change what they read.

Invariant: only memory that nothing but an optimizer's step changes is read after a save returned, and no optimizer
steps before that has ended. How it ended is told like the end of any save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fwstore import FwstoreError, InvalidInput, SaveHandle
from fwstore_torch.optimizers import OptimizerPart
from fwstore_torch.tensors import adapter


class LateCopies:
    """Lets optimizers wait for the saves that still read their tensors.

    Args:
        optimizers: All that are parts of the run; each gets a hook before its step.

    Raises:
        InvalidInput: There is none, so nothing would wait.
    """

    def __init__(self, optimizers: Sequence[OptimizerPart]) -> None:
        if not optimizers:
            raise InvalidInput(
                "staging='lazy' copies what an optimizer owns until its next step, and no part is an optimizer: add "
                "it to the parts, or use staging='eager'"
            )
        self._optimizers = optimizers
        self._handles: tuple[SaveHandle, ...] = ()
        self._hooks = [part.before_step(self.wait) for part in optimizers]

    def is_late(self) -> Callable[[Any], bool]:
        """Return what says of the tensors of a state, as it is now, which may be copied late."""
        # Not by storage alone: one that holds parameters may hold buffers too, which the forward pass changes.
        owned = {adapter.identity(tensor) for part in self._optimizers for tensor in part.owned()}
        owned.discard(None)
        return lambda value: adapter.owns(value) and adapter.identity(value) in owned

    def watch(self, handle: SaveHandle) -> None:
        """Let the next step of an optimizer wait for a save."""
        self._handles = (*self._handles, handle)

    def wait(self) -> None:
        """Wait until no save reads the tensors any more."""
        handles = self._handles
        for handle in handles:
            # What fails here is a failed save: whoever watches the handle tells it, and training goes on.
            with suppress(FwstoreError):
                handle.wait_staged()
        # Backward passes may step optimizers in several threads; what another one has done stays done.
        if self._handles is handles:
            self._handles = ()

    def close(self) -> None:
        """Wait, and take the hooks off; a second call does nothing."""
        try:
            self.wait()
        finally:
            for hook in self._hooks:
                hook.remove()
