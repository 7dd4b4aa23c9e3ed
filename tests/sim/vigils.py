"""Jobs of a play with several sites that are to stop where they are cut off from their witnesses.

Invariant: whether a witness was heard is known from its answers alone, not from what production makes of them.
"""

from __future__ import annotations

import random

from fwstore.base.errors import Fenced
from fwstore.log.term import Term
from fwstore.wan.vigil import Vigil
from sim.knowing import sites_of
from sim.process import Process


class Watched(Vigil):
    """A vigil that remembers when it asked.

    Args:
        process: Of the job.
        after_s: How long it may be cut off.
    """

    def __init__(self, process: Process, after_s: float) -> None:
        self._process = process
        # When askings began, and when they had ended.
        self._asked: list[tuple[float, float]] = []
        sites = sites_of(process)
        super().__init__(sites, sites.home(), process.runtime, after_s)

    def check(self) -> None:
        try:
            super().check()
        except Fenced as error:
            self._process.world.tally["stopped"] += "was cut off" in error.message
            raise

    def _ask(self) -> None:
        began = self._process.clock.monotonic()
        super()._ask()
        self._asked.append((began, self._process.clock.monotonic()))

    def judge(self, called: float) -> None:
        """Refuse a commit that was called for when the job knew that it had been cut off for too long."""
        ended = [asked for asked in self._asked if asked[1] < called]
        for first, _ in ended:
            if any(last - first >= self._after_s for last, _ in ended) and self._alone(first):
                self._process.world.accuse(f"{self._process.name} goes on although it is cut off")

    def _alone(self, since: float) -> bool:
        """Say whether less than a majority of the witnesses has answered anything since then."""
        world, own = self._process.world, self._process.store.place.name
        heard = {name for name, when in self._process.heard.items() if when >= since}
        witnesses = world.topology.witnesses
        return 2 * len((heard | {own}) & set(witnesses)) <= len(witnesses)


def watch_over(process: Process, term: Term) -> Watched | None:
    """Let some jobs be such that stop, where there is more than one site."""
    rng = random.Random(f"{process.world.seed} {process.name} vigil")
    if len(process.world.topology.homes) < 2 or rng.random() < 0.5:
        return None
    vigil = Watched(process, rng.choice((0.2, 0.5, 2.0)))
    term.guard = vigil.check
    begin, length, chance = rng.uniform(0, 0.5), rng.uniform(1, 10), rng.random()
    if chance < 0.5 and process.world.weather.strikes(f"{process.name}.cut"):
        process.world.cut_off(_around(process), process.world.baton.now + begin, length)
    return vigil


def _around(process: Process) -> set[tuple[str, str]]:
    """Return the links that lead to the site of a process and from it."""
    own, topology = process.site, process.world.topology
    others = {*topology.sites, *topology.stores} - {own}
    return {pair for other in others for pair in ((own, other), (other, own))}
