"""The operator of a play with several sites: retires one that nobody hears, or a witness that was wiped.

Invariant: what was retired is known to the judge from the moment at which production said so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from fwstore.base.errors import FwstoreError, InvalidInput
from fwstore.wan.retire import retire
from sim.knowing import sites_of
from sim.process import Process
from sim.world import STORM_S, World

_TRIES = 4


def operator(name: str) -> Callable[[Process], None]:
    """Return one who gives a site up, as soon as it is silent and a majority can agree."""

    def operator(process: Process) -> None:
        for _ in range(_TRIES):
            process.pause(process.rng.uniform(0.1, 3))
            try:
                done = retire(sites_of(process), name, "simulated", process.runtime)
            except InvalidInput:
                # It answers.
                process.world.tally["not retired"] += 1
            except FwstoreError as error:
                process.world.suffer(process, error)
            else:
                process.world.judge.retire(name, done.uuid, process.world.baton.now)
                process.world.tally["retired"] += 1
                return

    return operator


def settle(world: World) -> None:
    """Bring to its end what an operator began, by force, for the site answers again; also where too few are left."""
    begun = {
        place.name
        for place in world.places.values()
        if any(f"_site/{place.uuid}.retired" in other._objects for other in world.places.values())
    }
    _force(world, begun - world.judge.retired.keys())
    left = {place.name for place in world.places.values() if place.says() is not None}
    left -= world.judge.retired.keys()
    if 2 * len(left) <= len(world.topology.witnesses):
        _force(world, world.places.keys() - left)


def _force(world: World, names: AbstractSet[str]) -> None:
    for name in sorted(names):
        at = next(home for home in world.homes() if home not in names)
        world.spawn(f"last operator of {name}", at, _forced(name))
        world.play()


def _forced(name: str) -> Callable[[Process], None]:
    def last_operator(process: Process) -> None:
        done = retire(sites_of(process), name, "simulated", process.runtime, force=True)
        process.world.judge.retire(name, done.uuid, process.world.baton.now)
        process.world.judge.forced |= done.forced
        process.world.tally["forced"] += done.forced

    return last_operator


def join(world: World) -> None:
    """Let an operator take part in some plays of several sites."""
    topology, rng = world.topology, random.Random(f"{world.seed} operator")
    begin, chance, length = rng.uniform(1, STORM_S * 0.6), rng.random(), rng.uniform(3, 30)
    lost = rng.choice(topology.stores)
    others = [home for home in topology.homes if home != lost]
    at = rng.choice(others or topology.homes)
    if len(topology.homes) < 2 or chance > 0.3 or not world.weather.strikes("retire0"):
        return
    world.given_up = lost
    if lost in topology.homes:
        everywhere = {*topology.sites, *topology.stores}
        pairs = {(a, b) for a in everywhere for b in everywhere if a != b and lost in (a, b)}
        world.cut_off(pairs, begin, length)
    else:
        world.baton.at(begin, world.places[lost].wipe)
    world.spawn("operator", at, operator(lost), begin)
