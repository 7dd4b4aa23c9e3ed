"""A protection of production that is switched off on purpose.

Invariant: what stood in place of it stands there again when its test has ended.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Bug:
    """A protection that is missing.

    Attributes:
        name: What is wrong.
        patches: Names of attributes, and makers of what stands in their place, given what stood there.
        seeds: The simulator finds it within so many; 0 where others have to.
        facade: Only plays through the public names can find it.
        suites: Tests that fail, beside the simulator.
        holes: Of ../shared/protocol/HOLES.md.
    """

    name: str
    patches: Sequence[tuple[str, Callable[[Any], Any]]]
    seeds: int = 500
    facade: bool = False
    suites: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()


def nothing(original: Any) -> Any:
    """Make a function that does nothing in place of one."""
    return lambda *args, **options: None


@contextmanager
def switched_on(bug: Bug) -> Iterator[None]:
    """Run with a bug."""
    with ExitStack() as stack:
        for target, make in bug.patches:
            stack.enter_context(mock.patch(target, make(_resolve(target))))
        yield


def _resolve(target: str) -> Any:
    owner, _, name = target.rpartition(".")
    found = pkgutil.resolve_name(owner)
    return vars(found).get(name, getattr(found, name))
