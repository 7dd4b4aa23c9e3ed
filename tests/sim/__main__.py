"""Play seeds from the command line: `make sim SEED=7` repeats one with all that it did, `SEED=0 SEEDS=500` plays many.

PYTHONPATH=tests python -m sim SEED [--seeds N] [--only FAULT,FAULT] [--bug NAME] [--trace]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import ExitStack

from sim import bugs, plays, shrink
from sim.world import World


def main() -> int:
    """Play what was asked for; the exit code tells whether it held."""
    parser = argparse.ArgumentParser(prog="sim", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="how many, beginning with SEED")
    parser.add_argument("--only", help="names of the faults that may strike; none for no fault")
    parser.add_argument("--bug", help="switch a protection off: part of a name in sim/bugs.py")
    parser.add_argument("--trace", action="store_true", help="show every operation")
    given = parser.parse_args()
    with ExitStack() as stack:
        for bug in bugs.BUGS:
            if given.bug and given.bug in bug.name:
                stack.enter_context(bugs.switched_on(bug))
        return _play_all(given)


def _play_all(given: argparse.Namespace) -> int:
    tally: Counter[str] = Counter()
    for seed in range(given.seed, given.seed + given.seeds):
        world: World | None = None
        try:
            if given.only is None and not given.trace:
                world = shrink.check(plays.play, seed, bug=given.bug or "")
            else:
                only = None if given.only is None else frozenset(given.only.split(","))
                world = plays.prepare(seed, only)
                plays.perform(world)
        except AssertionError as error:
            print(error)
            return 1
        finally:
            if given.trace and world is not None:
                for line in world.trace:
                    print(*line)
        tally += world.tally
    print(f"{given.seeds} plays held:", dict(sorted(tally.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
