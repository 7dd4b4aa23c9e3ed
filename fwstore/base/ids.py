"""The one door for randomness.

Invariant: identifiers come from the operating system in production and from a seed in simulation;
nothing else in fwstore draws random numbers. A forked child draws from the operating system too, so
two processes never share an identifier.
"""

from __future__ import annotations

import os
import random
from typing import Protocol


class Ids(Protocol):
    """A source of identifiers and of jitter."""

    def token(self, size_bytes: int) -> str:
        """Return `size_bytes` random bytes in lower-case hexadecimal."""
        ...

    def uniform(self) -> float:
        """Return a number in [0, 1), for back-off jitter."""
        ...


class SystemIds:
    """Identifiers from the random source of the operating system."""

    def token(self, size_bytes: int) -> str:
        """Return `size_bytes` random bytes in lower-case hexadecimal."""
        return os.urandom(size_bytes).hex()

    def uniform(self) -> float:
        """Return a number in [0, 1), for back-off jitter."""
        return int.from_bytes(os.urandom(7), "little") / (1 << 56)


class SeededIds:
    """Identifiers that repeat for a seed, for tests and simulation."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, size_bytes: int) -> str:
        """Return `size_bytes` pseudo-random bytes in lower-case hexadecimal."""
        return self._random.randbytes(size_bytes).hex()

    def uniform(self) -> float:
        """Return a pseudo-random number in [0, 1)."""
        return self._random.random()


def write_id(ids: Ids) -> str:
    """Return a fresh 128-bit write id: it tells our own create from another's after a lost answer."""
    return ids.token(16)
