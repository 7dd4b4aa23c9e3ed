"""What is garbage, decided without I/O.

Invariant: a key that a root lists is never garbage. Where memory forces an approximation, it errs towards
keeping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fwstore.format.keys import PackName

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Garbage:
    """A key that nothing needs.

    Attributes:
        key: The object key.
        size: Its bytes.
        reason: Why it is garbage.
        snapshot: The snapshot that was given up with it, or "" for an orphan.
        term: Term of the group it belongs to.
        save: Save of the group it belongs to.
    """

    key: str
    size: int
    reason: str
    snapshot: str
    term: int
    save: int


class KeySet:
    """Very many keys, at 8 bytes each.

    Keys are compared by a 64-bit hash: an absent key may rarely seem present, never the reverse.
    """

    def __init__(self) -> None:
        self._hashes: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._fresh: list[npt.NDArray[np.uint64]] = []

    def add(self, keys: Iterable[str]) -> None:
        """Take in keys."""
        self._fresh.append(_hashes(keys))

    def contains(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return for every key whether it is in the set."""
        if self._fresh:
            self._hashes = np.unique(np.concatenate([self._hashes, *self._fresh]))
            self._fresh = []
        return np.isin(_hashes(keys), self._hashes)


def plan_garbage(candidates: Iterable[Garbage], *kept: KeySet) -> list[Garbage]:
    """Return the candidates that no set of kept keys has, each key once, in order of keys."""
    unique = {candidate.key: candidate for candidate in candidates}
    keys = sorted(unique)
    needed = np.zeros(len(keys), bool)
    for keyset in kept:
        needed |= keyset.contains(keys)
    return [unique[key] for key, stays in zip(keys, needed.tolist(), strict=True) if not stays]


def is_dead(term: int, save: int, newest_term: int, saves: Mapping[int, int]) -> bool:
    """Return whether what a save left behind, named by no record, can never be named by one.

    Its writer is fenced, or has recorded this save or a later one.
    """
    return term < newest_term or saves.get(term, 0) >= save


def next_incarnation(pack: PackName, condemned: Callable[[PackName], bool]) -> PackName:
    """Return the name under which a pack may be written at a site: the first that was never condemned."""
    while condemned(pack):
        pack = replace(pack, incarnation=pack.incarnation + 1)
    return pack


def _hashes(keys: Iterable[str]) -> npt.NDArray[np.uint64]:
    # The hash of the interpreter is keyed per process and 64 bits wide; sets never leave the process.
    return np.fromiter((hash(key) & _MASK for key in keys), np.uint64)
