"""One play: a topology, processes, a storm of faults, then quiet, and what must hold in the end.

Invariant: a play is a function of its seed, its grain and the faults that may strike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from fwstore.base.errors import (
    Conflict,
    Corrupt,
    FwstoreError,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from sim.baton import Baton, one_core
from sim.judge import Judge, Violation
from sim.place import Place
from sim.process import Process
from sim.topology import ALONE, Links, Topology
from sim.weather import Stroke, Weather
from support.faults import Crash

STORM_S = 15.0
_SIDE_BY_SIDE_S = 0.008
_LYING = ("flip", "truncate", "stale")
# What a process may be told while stores fail, die and lie, and while others do what they do.
_STORMY = (Unavailable, Conflict, NotFound, LimitExceeded)


@dataclass
class World:
    """Everything there is in one play.

    Args:
        seed: Decides everything.
        topology: Sites and witnesses.
        only: Names of the faults that may strike.
        facade: Processes go through the public names.

    Attributes:
        tally: How often what happened, errors included.
        trace: Every operation, in order.
    """

    seed: int
    topology: Topology = ALONE
    only: Container[str] | None = None
    facade: bool = False
    tally: Counter[str] = field(default_factory=Counter)
    trace: list[tuple[float, str, str, str, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed} world")
        self.weather = Weather(self.seed) if self.only is None else Weather(self.seed, self.only)
        if len(self.topology.homes) > 1:
            # What production asks several sites side by side is asked one after the other here.
            self.weather.median_latency_s = _SIDE_BY_SIDE_S
        self.baton = Baton()
        self.links = Links()
        self.keep_last = self.rng.choice((1, 1, 2))
        self.judge = Judge(self.accuse, self.keep_last)
        if not self.facade:
            self.judge.witnesses = frozenset(self.topology.witnesses)
        metadata = self.rng.random() < 0.7
        self.places = {
            name: Place(name, self.baton, self.judge, metadata=metadata)
            for name in self.topology.stores
        }
        if not self.facade:
            # Through the facade the first writer makes the site.
            for place in self.places.values():
                place.found()
        # Through the facade a base that cannot be read is passed over, and here reads may lie.
        damage = self.facade and not self.weather.rates.keys().isdisjoint(_LYING)
        self.judge.strict_base = len(self.topology.homes) == 1 and not damage
        # Which site an operator means to retire.
        self.given_up = ""
        self.processes: list[Process] = []
        self._throttled: Counter[str] = Counter()
        self._full: Counter[str] = Counter()

    def homes(self) -> list[str]:
        """Return the homes that were not retired."""
        return [name for name in self.topology.homes if name not in self.judge.retired]

    def accuse(self, what: str) -> None:
        """End the play: something does not hold."""
        if self.baton.failure is None:
            here = self.baton.running.name if self.baton.running else "a late write"
            self.baton.fail(Violation(f"at {self.baton.now:.2f} s, by {here}: {what}"))
        raise Crash(what)

    def spawn(
        self, name: str, site: str, main: Callable[[Process], None], when: float = 0.0
    ) -> Process:
        """Let a process begin."""
        process = Process(self, name, site, main)
        self.processes.append(process)
        self.baton.start(when, process.tasks[0])
        return process

    def process(self) -> Process:
        """Return the process that runs now."""
        return next(p for p in reversed(self.processes) if self.baton.running in p.tasks)

    def live(self, process: Process, main: Callable[[Process], None]) -> None:
        """Do what a process does; what it may raise is part of the game."""
        try:
            main(process)
            self.tally[f"{main.__name__} done"] += 1
        except FwstoreError as error:
            self.suffer(process, error)
            if process.name.startswith("last"):
                self.accuse(f"{process.name} cannot go on although all is quiet: {error!r}")
        except Crash:
            self.tally["deaths"] += 1
            raise

    def suffer(self, process: Process, error: FwstoreError) -> None:
        """Count an error that a process was told of; some can have no fault as their cause."""
        self.tally[type(error).__name__] += 1
        expected = isinstance(error, _STORMY)
        if isinstance(error, Corrupt):
            expected = not self.weather.rates.keys().isdisjoint(_LYING)
        if not expected:
            self.accuse(f"{process.name} was told what no fault explains: {error!r}")

    def note(self, process: Process, name: str, key: str, stroke: Stroke) -> None:
        """Write an operation down."""
        self.trace.append((self.baton.now, process.name, name, key, stroke.fault))

    def is_throttled(self, place: str) -> bool:
        """Say whether a store answers that there are too many requests."""
        return self._throttled[place] > 0

    def is_full(self, place: str) -> bool:
        """Say whether a store has no room."""
        return self._full[place] > 0

    def storm(self) -> None:
        """Draw what befalls sites and links, and when it ends."""
        rng = random.Random(f"{self.seed} storm")
        places = self.topology.stores
        for number in range(rng.choice((0, 0, 1, 2))):
            self._spell(rng, f"throttle{number}", self._throttled, rng.choice(places), 1.0)
        for number in range(rng.choice((0, 0, 0, 1))):
            self._spell(rng, f"full{number}", self._full, rng.choice(places), 3.0)
        others = sorted({*self.topology.sites, *places})
        pairs = [(a, b) for a in others for b in others if a != b]
        for number in range(rng.choice((0, 1, 3)) if pairs else 0):
            self._cut(rng, f"cut{number}", rng.choice(pairs))
        if len(self.topology.homes) > 1:
            self._far_storm(random.Random(f"{self.seed} far storm"))
        self.baton.at(STORM_S, self._calm)

    def _far_storm(self, rng: random.Random) -> None:
        """Draw which sites nobody hears for a while, and which witness loses everything."""
        everywhere = sorted({*self.topology.sites, *self.topology.stores})
        for number in range(rng.choice((0, 0, 1, 2))):
            mute = rng.choice(everywhere)
            pairs = {(a, b) for a in everywhere for b in everywhere if a != b and mute in (a, b)}
            begin, end = rng.uniform(0, STORM_S), rng.expovariate(0.1)
            if self.weather.strikes(f"mute{number}"):
                self.cut_off(pairs, begin, end)
        mere = [name for name in self.topology.witnesses if name not in self.topology.homes]
        begin, chance = rng.uniform(0, STORM_S), rng.random()
        if mere and chance < 0.3 and self.weather.strikes("wipe0"):
            self.baton.at(begin, self.places[mere[0]].wipe)

    def kill(self, process: Process, when: float, name: str) -> None:
        """Let a process die from outside, wherever it stands."""

        def strike() -> None:
            if self.weather.strikes(name):
                process.die()

        self.baton.at(when, strike)

    def play(self) -> None:
        """Run until nothing is left to come.

        Raises:
            Violation: Something did not hold.
        """
        with one_core():
            self.baton.run()
        if self.baton.failure is not None:
            raise self.baton.failure

    def _calm(self) -> None:
        self.weather.calm = True
        self.links.cut.clear()
        self._throttled.clear()
        self._full.clear()

    def _spell(
        self, rng: random.Random, name: str, counts: Counter[str], place: str, mean_s: float
    ) -> None:
        begin, end = rng.uniform(0, STORM_S), rng.expovariate(1 / mean_s)

        def change(by: int) -> Callable[[], None]:
            def happen() -> None:
                if not self.weather.calm:
                    counts[place] += by

            return happen

        if self.weather.strikes(name):
            self.baton.at(begin, change(1))
            self.baton.at(begin + end, change(-1))

    def _cut(self, rng: random.Random, name: str, pair: tuple[str, str]) -> None:
        begin, end, both = rng.uniform(0, STORM_S), rng.expovariate(0.3), rng.random() < 0.5
        pairs = {pair, pair[::-1]} if both else {pair}

        if self.weather.strikes(name):
            self.cut_off(pairs, begin, end)

    def cut_off(self, pairs: set[tuple[str, str]], begin: float, end: float) -> None:
        """Let some links carry nothing for a while."""

        def cut() -> None:
            if not self.weather.calm:
                self.links.cut |= pairs

        self.baton.at(begin, cut)
        self.baton.at(begin + end, lambda: self.links.cut.difference_update(pairs))
