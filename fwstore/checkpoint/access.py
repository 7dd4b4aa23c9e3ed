"""What readers and writers of one lineage share.

Invariant: everything that belongs to one generation of a lineage - its keys, uuid, log and caches - is in one
value, so no call can mix two generations of a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwstore.checkpoint.adapter import Adapters
from fwstore.codec.hashing import ContentHash
from fwstore.content.footers import FooterCache
from fwstore.content.read import ContentReader
from fwstore.content.verified import Origin
from fwstore.format.keys import LineageKeys
from fwstore.format.root import LineageRef
from fwstore.log.log import Log
from fwstore.sched import Runtime
from fwstore.store.base import Store


@dataclass(frozen=True, eq=False, kw_only=True)
class Access:
    """One lineage at one site.

    Attributes:
        keys: Where its objects stand.
        lineage: Its uuid.
        log: Its log at this site.
        origin: Where its bytes are read from.
        footers: Footers of packs that were read before.
        reader: Reads chunks, verified.
        adapters: How values of numpy, torch and others become shards.
    """

    keys: LineageKeys
    lineage: str
    log: Log
    origin: Origin
    footers: FooterCache
    reader: ContentReader
    adapters: Adapters

    @property
    def runtime(self) -> Runtime:
        """Time, ids, threads and limits."""
        return self.origin.runtime

    @property
    def store(self) -> Store:
        """The store of this site."""
        return self.origin.stores[0]

    @property
    def content_hash(self) -> ContentHash:
        """The hash that names chunks and objects."""
        return self.origin.content_hash

    @property
    def ref(self) -> LineageRef:
        """The lineage as roots name it."""
        return LineageRef(self.keys.label, self.lineage)
