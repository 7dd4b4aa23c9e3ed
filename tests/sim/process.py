"""One simulated process: its clock, its identifiers and its handles on the stores.

Invariant: a process that died never touches a store, a clock or a message again: no `finally` of it tidies up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fwstore.base.config import Environment, Limits
from fwstore.base.errors import FwstoreError, Unavailable
from fwstore.base.ids import SeededIds
from fwstore.log.site import Site
from fwstore.sched import InlineScheduler, Runtime
from fwstore.store.base import Store
from sim.background import Background
from sim.baton import Baton, Task
from sim.place import Place
from sim.weather import Sky, Stroke
from support.faults import Crash, Fault, FaultyStore, Operation

if TYPE_CHECKING:
    from sim.world import World

T = TypeVar("T")
V = TypeVar("V")

_TIMEOUT_S = 0.5


@dataclass
class DriftingClock:
    """Time as one process sees it: faster or slower than that of others, and of another day."""

    baton: Baton
    rate: float
    offset_s: float

    def wall(self) -> float:
        return 1_000_000.0 + self.offset_s + self.baton.now * self.rate

    def monotonic(self) -> float:
        return self.baton.now * self.rate

    def sleep(self, seconds: float) -> None:
        self.baton.wait(seconds / self.rate)


class AnyOrderScheduler(Background, InlineScheduler):
    """Does what is asked for side by side one after the other, in an order of its own; long work is a task.

    Args:
        rng: Chooses the order.
        process: Whose it is.
    """

    def __init__(self, rng: random.Random, process: Process) -> None:
        super().__init__(process)
        self._rng = rng

    def map(self, function: Callable[[V], T], values: Iterable[V], *, limit: int = 0) -> list[T]:
        if not isinstance(values, Sequence) or len(values) < 2:
            return super().map(function, values)
        order = self._rng.sample(range(len(values)), len(values))
        found = {number: function(values[number]) for number in order}
        return [found[number] for number in range(len(values))]


class Process:
    """A process at a site.

    Args:
        world: Where it lives.
        name: Unique in the play.
        site: Where it runs.
        main: What it does.
    """

    def __init__(self, world: World, name: str, site: str, main: Callable[[Process], None]) -> None:
        self.world = world
        self.name = name
        self.site = site
        self.tasks = [Task(name, lambda: world.live(self, main))]
        self.sky: Sky = world.weather.sky(name)
        self.rng = random.Random(f"{world.seed} {name} acts")
        rng = random.Random(f"{world.seed} {name} clock")
        self.clock = DriftingClock(world.baton, rng.uniform(0.8, 1.25), rng.uniform(-3600, 3600))
        patient = rng.random() < 0.6
        self.runtime = Runtime(
            clock=self.clock,
            ids=SeededIds(rng.getrandbits(60)),
            scheduler=AnyOrderScheduler(rng, self),
            limits=Limits(
                request_timeout_s=60.0 if patient else 0.01,
                commit_timeout_s=30.0,
                pack_bytes=6_000,
            ),
            environment=Environment({}),
        )
        # When every store answered last, by the own clock.
        self.heard: dict[str, float] = {}
        self.stores = {place.name: Handle(self, place) for place in world.places.values()}

    @property
    def store(self) -> Handle:
        """The store of its site; where that has none, the nearest."""
        return self.stores.get(self.site) or next(iter(self.stores.values()))

    def sites(self) -> dict[str, Site]:
        """Every store as a site."""
        return {name: Site(handle.place.uuid, name, handle) for name, handle in self.stores.items()}

    def pause(self, seconds: float) -> None:
        """Do nothing for a while."""
        self.clock.sleep(seconds)

    @property
    def dead(self) -> bool:
        """Whether it has died."""
        return self.tasks[0].dead

    def begin(self, name: str, main: Callable[[], None]) -> None:
        """Let another thread of it begin."""
        self.tasks.append(Task(f"{self.name} {name}", main))
        self.world.baton.start(self.world.baton.now, self.tasks[-1])

    def die(self) -> None:
        """End at once, without a word."""
        for task in self.tasks:
            task.dead = True
        for handle in self.stores.values():
            handle.kill()


class Handle(FaultyStore):
    """What one process has of one store; asking it for something lets others run.

    Args:
        process: Whose it is.
        place: The store and where it stands.
    """

    def __init__(self, process: Process, place: Place) -> None:
        super().__init__(place, self._plan)
        self.process = process
        self.place = place
        self._stroke = Stroke(0.0)

    def act(
        self,
        name: str,
        key: str,
        operation: Callable[[], T],
        partly: Callable[[], object] | None = None,
    ) -> T:
        process, world = self.process, self.process.world
        if process.dead:
            raise Crash(f"{process.name} is dead and called {name} {key}")
        self._stroke = stroke = process.sky.next(name)
        world.baton.wait(stroke.latency_s)
        here, there = process.site, self.place.name
        if not world.links.hears(here, there):
            world.baton.wait(_TIMEOUT_S)
            raise Unavailable(f"{there} was not reached by {name} {key}")
        try:
            result = super().act(name, key, operation, partly)
        except Crash:
            process.die()
            raise
        except Unavailable:
            world.baton.wait(_TIMEOUT_S)
            raise
        finally:
            world.note(process, name, key, stroke)
        if stroke.pause_s:
            world.baton.wait(stroke.pause_s)
        if self.dead:
            process.die()
        if not world.links.hears(there, here):
            world.baton.wait(_TIMEOUT_S)
            raise Unavailable(f"the answer of {there} to {name} {key} did not arrive")
        process.heard[there] = process.clock.monotonic()
        return result

    def source(self) -> Store:
        return self.place.past(self._stroke.age_s) if self._stroke.fault == "stale" else self.inner

    def defer(self, apply: Callable[[], object]) -> None:
        baton = self.process.world.baton

        def land() -> None:
            with suppress(FwstoreError):
                apply()

        baton.at(baton.now + self._stroke.delay_s, land)

    def _plan(self, operation: Operation) -> Fault | None:
        world = self.process.world
        if world.is_throttled(self.place.name):
            return "fail"
        if world.is_full(self.place.name) and operation.name in ("create", "overwrite", "commit"):
            return "full"
        fault = self._stroke.fault
        return None if fault == "stale" else fault

    @property
    def url(self) -> str:
        return f"memory://{self.place.name}"
