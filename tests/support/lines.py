"""A client's line to a real S3 server, with a proxy on it, and states that are laid there and taken away again.

Invariant: a prefix is used once, so what is found under it is what was laid there and what one process did.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import fwstore
from fwstore.store.address import open_store
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from support.lineages import make_runtime, make_store
from support.processes import contents, opened
from support.proxy import Proxy

_prefixes = itertools.count()
_AT_ONCE = 8


@dataclass(frozen=True)
class Line:
    """One way to a server.

    Attributes:
        endpoint: Of the server.
        bucket: Where on the server.
        options: Credentials.
        proxy: What stands between.
    """

    endpoint: str
    bucket: str
    options: dict[str, str]
    proxy: Proxy

    def lay(self, store: Store) -> str:
        """Bring all objects of a store to a new prefix; return that."""
        prefix = f"state-{next(_prefixes)}"
        straight = self._open(self.endpoint, prefix)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for key, content in contents(store):
                pool.submit(straight.put, key, [content], mode="overwrite")
        return prefix

    def take(self, prefix: str) -> MemoryStore:
        """Return all objects under a prefix as a store in memory."""
        straight, taken = self._open(self.endpoint, prefix), make_store()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sizes = {info.key: info.size for info in straight.list("")}
            found = pool.map(lambda key: straight.get(key, limit_bytes=sizes[key]), sizes)
            for key, content in zip(sizes, found, strict=True):
                taken.put(key, [content], mode="overwrite")
        return taken

    @contextmanager
    def process(
        self, prefix: str, seed: int, limits: fwstore.Limits, *, straight: bool = False
    ) -> Iterator[fwstore.Repository]:
        """A process whose requests go through the proxy, or straight to the server."""
        runtime = replace(make_runtime(seed), limits=limits)
        endpoint = self.endpoint if straight else self.proxy.endpoint
        with opened(self._open(endpoint, prefix, limits), runtime) as repository:
            yield repository

    def _open(self, endpoint: str, prefix: str, limits: fwstore.Limits | None = None) -> Store:
        runtime = replace(make_runtime(), limits=limits or fwstore.Limits())
        url = f"s3://{self.bucket}/{prefix}?endpoint={endpoint}&region=us-east-1"
        return open_store(url, runtime, self.options)
