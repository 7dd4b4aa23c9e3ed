"""Several sites in the memory of this process, any of which can be cut off, wiped or given another's place.

Invariant: a site that is cut off is heard by its own processes alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import fwstore
from fwstore.sched import Runtime
from fwstore.store.address import open_store
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.faults import Fault, FaultyStore, Operation
from support.lineages import make_runtime

_numbers = itertools.count()
# No test waits seconds for a site that is cut off.
QUICK = fwstore.Limits(site_timeout_s=0.02, hashing_processes=0)


@dataclass
class Places:
    """Sites and the file that names them.

    Attributes:
        file: The topology.
        urls: Of the stores, by name of the site.
        cut: Names of the sites that other sites do not hear.
        deleted: Names of the sites whose bucket is not there any more, to other sites.
        asked: How many requests each site got from processes of others.
    """

    file: Path
    urls: dict[str, str]
    cut: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    asked: dict[str, int] = field(default_factory=dict)

    def open(self, site: str) -> fwstore.Repository:
        """A new process at a site."""
        return fwstore.open(self.file, site=site, limits=QUICK)

    def store(self, name: str) -> MemoryStore:
        """What a site holds."""
        store = open_store(self.urls[name], make_runtime())
        assert isinstance(store, MemoryStore)
        return store

    def wipe(self, name: str) -> None:
        """Let a site lose everything."""
        store = self.store(name)
        store.delete([info.key for info in store.list("")])

    def write(self, more: str = "", roles: Mapping[str, str] | None = None) -> None:
        """Write the topology file."""
        lines = [more]
        for name, url in self.urls.items():
            lines += [f"[sites.{name}]", f'store = "{url}"']
            lines += [f'role = "{roles[name]}"'] if roles and name in roles else []
        self.file.write_text("\n".join(lines))

    def far(self, url: str, runtime: Runtime, options: object = None) -> Store:
        """The store of another site, as it is heard from here."""
        name = next(name for name, known in self.urls.items() if known == url)

        def plan(operation: Operation) -> Fault | None:
            self.asked[name] = self.asked.get(name, 0) + 1
            return "fail" if name in self.cut else "refuse" if name in self.deleted else None

        return FaultyStore(open_store(url, runtime), plan)


@contextmanager
def places(
    folder: Path, names: tuple[str, ...] = ("a", "b", "w"), roles: Mapping[str, str] | None = None
) -> Iterator[Places]:
    """Sites for one test: two that train and a witness, unless told otherwise."""
    number = next(_numbers)
    made = Places(folder / "topology.toml", {n: f"memory://places-{number}-{n}" for n in names})
    made.write(roles={"w": "witness"} if roles is None else roles)
    with ExitStack() as stack:
        stack.enter_context(mock.patch("fwstore.wan.sites.open_store", made.far))
        yield made
