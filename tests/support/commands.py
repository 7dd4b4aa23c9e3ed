"""What tests of the command line share: the outcome of a command, and a small state."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    output: str
    errors: str

    @property
    def value(self) -> Any:
        """The JSON document on standard output."""
        assert self.code == 0, self.errors
        return json.loads(self.output)


Command = Callable[..., Outcome]


def make_state(step: int) -> dict[str, Any]:
    """A state of which only half the bytes change with the step; no two chunks are alike."""
    trained = np.random.default_rng(step).random((400, 500), np.float32)
    frozen = np.arange(200_000, dtype=np.float32).reshape(400, 500)
    return {
        "model": {"frozen": frozen, "trained": trained},
        "step": step,
    }
