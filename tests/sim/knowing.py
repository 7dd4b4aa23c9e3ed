"""How the processes of a protocol play know the sites: through production, over the stores of the play.

Invariant: nobody is told a uuid that a store does not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from fwstore.base.topology import SiteConfig, Topology
from fwstore.wan.sites import Sites

if TYPE_CHECKING:
    from sim.process import Process
    from sim.world import World

_SCHEME = "memory://"


def sites_of(process: Process) -> Sites:
    """Return the sites as a process knows them that has met nobody yet."""
    world = process.world
    local = process.store.place.name
    configs = {
        name: SiteConfig(
            name=name,
            store=f"{_SCHEME}{name}",
            role="train" if name in world.topology.homes else "witness",
        )
        for name in world.topology.stores
    }
    topology = Topology(sites=configs, witnesses=world.topology.witnesses)
    return Sites(topology, configs[local], process.store, process.runtime, None)


@contextmanager
def doors(world: World) -> Iterator[None]:
    """Let whoever opens the store of a site get the one of the play."""

    def open_store(url: str, runtime: object, options: object) -> object:
        return world.process().stores[url.removeprefix(_SCHEME)]

    with mock.patch("fwstore.wan.sites.open_store", open_store):
        yield
