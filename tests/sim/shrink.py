"""From a play that failed to the fewest faults that make it fail, and to the one command that repeats it.

Invariant: what is printed was played: the command fails where it is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from sim.world import World

Play = Callable[[int, Container[str] | None], World]


class Failed(AssertionError):
    """A play that did not hold what was promised."""


def check(play: Play, seed: int, *, bug: str = "") -> World:
    """Play a seed; when it fails, tell so with the fewest faults that matter.

    Raises:
        Failed: With seed, faults and command.
    """
    played: list[World] = []
    first = failure_of(lambda seed, only: played.append(play(seed, only)), seed)
    if first is None:
        return played[0]
    faults, last = shrink(play, seed, first)
    kept = ",".join(faults) or "none"
    name = f" --bug '{bug}'" if bug else ""
    told = str(last) if isinstance(last, AssertionError) else repr(last)
    raise Failed(
        f"seed {seed}: {told}\n  faults that matter: {kept}\n"
        f'  repeat it: make sim SEED={seed} SIM="--only {kept}{name}"'
    ) from last


def shrink(play: Play, seed: int, error: Exception) -> tuple[list[str], Exception]:
    """Return faults without which the play would hold, none of which can be left out, and how it fails with them."""
    faults = drawn(play, seed)
    size = max(1, len(faults) // 2)
    while True:
        start, shorter = 0, False
        while start < len(faults):
            fewer = faults[:start] + faults[start + size :]
            failure = failure_of(play, seed, fewer)
            if failure is None:
                start += size
            else:
                faults, error, shorter = fewer, failure, True
        if size == 1 and not shorter:
            return faults, error
        size = max(1, size // 2)


def drawn(play: Play, seed: int) -> list[str]:
    """Return the faults that strike in the play of a seed, up to its end or failure."""
    struck: list[str] = []

    class Noting:
        def __contains__(self, name: object) -> bool:
            struck.append(str(name))
            return True

    failure_of(play, seed, Noting())
    return struck


def failure_of(
    play: Callable[[int, Container[str] | None], object],
    seed: int,
    only: Container[str] | None = None,
) -> Exception | None:
    """Return how a play fails when only some faults may strike, None when it holds."""
    try:
        play(seed, only)
    except Exception as error:  # noqa: BLE001 - whatever ends a play is a failure
        return error
    return None
