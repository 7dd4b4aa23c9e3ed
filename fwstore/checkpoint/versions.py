"""Notices tensors that were changed while they could still be read.

Invariant: a save whose tensors were changed, as far as their framework counts changes, before all of them were
copied fails; it is never committed with bytes of two steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fwstore.base.errors import Conflict
from fwstore.checkpoint.adapter import Adapters
from fwstore.format.paths import TensorPath, display_path


class Versions:
    """The versions of some tensors at one moment.

    Args:
        tensors: The tensors.
        adapters: Their frameworks.
    """

    def __init__(self, tensors: Mapping[TensorPath, Any], adapters: Adapters) -> None:
        owners = ((path, value, adapters.owner(value)) for path, value in tensors.items())
        self._noted = [(path, value, a, a.version(value)) for path, value, a in owners]

    @property
    def paths(self) -> frozenset[TensorPath]:
        """Which tensors these are."""
        return frozenset(path for path, *_ in self._noted)

    def check(self) -> None:
        """Compare the versions with those of now.

        Raises:
            Conflict: Some tensor was changed.
        """
        changed = [path for path, value, a, noted in self._noted if a.version(value) != noted]
        if changed:
            names = ", ".join(display_path(path) for path in changed[:8])
            raise Conflict(
                f"{len(changed)} tensors were changed while they were being copied, so this state is not saved: {names}; "
                "call wait_staged before anything changes them, or save with staging='eager'"
            )
