"""A run on a memory store, without checkpoints: what tests of the log and of the collector need.

Snapshots here have real roots, pack tables and small packs, so that collector and replicator see what they see in
life; only their leaves are stand-ins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from blake3 import blake3

from fwstore.base.config import Environment, Limits
from fwstore.base.ids import SeededIds
from fwstore.codec.hashing import ContentHash, xxh3_128
from fwstore.format.blocks import PackIdentity, Trailer, encode_header, encode_trailer
from fwstore.format.groups import group_ranges
from fwstore.format.keys import LineageKeys, SnapshotId
from fwstore.format.pack import ChunkEntry, PackEnd, PackLayout
from fwstore.format.packtable import PackInfo, encode_pack_table
from fwstore.format.record import Commit, ObjectRef
from fwstore.format.root import LeafRef, LineageRef, PackTableRef, Root, encode_root
from fwstore.format.summary import SnapshotEntry
from fwstore.format.tensor import TensorInfo
from fwstore.log.fold import uses_of
from fwstore.log.history import history
from fwstore.log.lineage import find
from fwstore.log.log import Log
from fwstore.log.packs import PackTables
from fwstore.log.site import Site, create_site
from fwstore.log.term import Term
from fwstore.log.terms import Candidate, take_term
from fwstore.sched import InlineScheduler, Runtime
from fwstore.sched.scheduler import Scheduler
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore

SITE = "5" * 32
_seeds = itertools.count(1000)
read_packs = PackTables(ContentHash())


@dataclass
class TestClock:
    """Time that passes only when someone sleeps."""

    __test__ = False
    now: float = 1_000_000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def make_runtime(seed: int = 0, scheduler: Scheduler | None = None) -> Runtime:
    """A runtime of one thread whose time passes only in sleeps."""
    return Runtime(
        clock=TestClock(),
        ids=SeededIds(seed),
        scheduler=scheduler or InlineScheduler(),
        limits=Limits(),
        environment=Environment({}),
    )


def make_store() -> MemoryStore:
    """A private memory store."""
    return MemoryStore(make_runtime())


def made_site(letter: str, store: Store | None = None) -> Site:
    """A site whose uuid is easily told; its store says who it is."""
    store = store or make_store()
    return create_site(store, make_runtime(), name=letter, uuid=letter * 32)


def candidate(store: Store, name: str = "run", holder: str = "job") -> Candidate:
    """A candidate at the only site."""
    site = Site(SITE, "here", store)
    return Candidate(name=name, home=site, witnesses=(site,), holder=holder, read_packs=read_packs)


def resume(
    store: Store, runtime: Runtime | None = None, *, name: str = "run", base: str | None = None
) -> Term:
    """Take the next term of a run."""
    return take_term(candidate(store, name), runtime or make_runtime(), base=base)


def open_run(store: Store, term: Term, runtime: Runtime | None = None) -> Log:
    """A second, independent view of the log of a term."""
    log = Log(store, term.keys, term.lineage, runtime or make_runtime(99), read_packs)
    log.refresh()
    return log


@dataclass
class Saver:
    """Writes snapshots as a job would: packs, manifest, record."""

    term: Term
    save: int = 0
    parent: SnapshotEntry | None = None
    packs: list[PackInfo] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parent = self.parent or self.term.base

    def write(
        self,
        step: int,
        *,
        fresh: int = 1,
        reuse: Sequence[PackInfo] = (),
        away: Callable[[], Sequence[PackInfo]] = tuple,
        **metrics: float,
    ) -> tuple[Commit, list[PackInfo]]:
        """Write packs and manifest; return the commit that would make them a snapshot.

        Args:
            step: Its step.
            fresh: How many packs are written.
            reuse: Packs that are used again.
            away: Writes the packs at another site.
            metrics: Of the snapshot.
        """
        self.save += 1
        log, keys = self.term.log, self.term.keys
        ids = log.runtime.ids
        name = SnapshotId(step, self.term.number, self.save, ids.token(8))
        packs = [*reuse, *[self.pack(rank, log.store) for rank in range(fresh)], *away()]
        leaf = put(log.store, keys.leaf(name, 0), b"leaf of " + str(name).encode())
        table = put(log.store, keys.pack_table(name, 0), encode_pack_table(0, packs))
        root = put(
            log.store, keys.root(name), encode_root(self._root(name, leaf, table, len(packs)))
        )
        return Commit(
            snapshot=str(name),
            step=step,
            save=self.save,
            parent=self.parent.id if self.parent else None,
            root=root,
            tables=(table,),
            groups=group_ranges((pack.term, pack.save) for pack in packs),
            bytes_written=sum(pack.size for pack in packs[len(reuse) :]),
            metrics=metrics,
        ), packs

    def commit(
        self, step: int, *, fresh: int = 1, reuse: Sequence[PackInfo] = (), **metrics: float
    ) -> SnapshotEntry:
        """Save a snapshot."""
        commit, packs = self.write(step, fresh=fresh, reuse=reuse, away=tuple, **metrics)
        self.parent = self.term.commit(commit)
        self.packs = packs
        return self.parent

    def _root(self, name: SnapshotId, leaf: ObjectRef, table: ObjectRef, packs: int) -> Root:
        lineage = LineageRef(self.term.keys.label, self.term.lineage)
        paths = (("w",), ("w",))
        return Root(
            lineage=lineage,
            snapshot=str(name),
            step=name.step,
            term=name.term,
            save=name.save,
            leaves=(LeafRef(0, 1, *paths, leaf.size, bytes.fromhex(leaf.digest)),),
            pack_tables=(PackTableRef(0, packs, table.size, bytes.fromhex(table.digest)),)
            if packs
            else (),
            lineages=(lineage,),
        )

    def pack(self, rank: int, store: Store) -> PackInfo:
        """Write a pack of the save under way."""
        log = self.term.log
        identity = PackIdentity(
            lineage=self.term.lineage,
            term=self.term.number,
            save=self.save,
            rank=rank,
            number=0,
            token=log.runtime.ids.token(8),
        )
        pack, content = small_pack(identity)
        put(store, pack.key([self.term.keys]), content)
        return pack


@cache
def _template() -> tuple[bytes, PackEnd]:
    """A pack of one chunk: its bytes before the footer, and its end; whose it is stands in its headers alone."""
    info = TensorInfo(("w",), "uint8", (512,), ((1, 512),))
    layout = PackLayout(_NOBODY, [info], ContentHash().digest)
    content = bytes(range(256)) * 2
    entry = ChunkEntry(blake3(content).digest(), xxh3_128(content), 0, 512, 512, 0, 0)
    place = layout.append(entry)
    return b"".join([layout.header, place.header, content, place.padding]), layout.finish()


_NOBODY = PackIdentity(lineage="0" * 32, term=0, save=0, rank=0, number=0, token="0" * 16)


def small_pack(identity: PackIdentity) -> tuple[PackInfo, bytes]:
    """A real pack of one chunk, and how a pack table tells of it."""
    front, end = _template()
    nobody, own = encode_header(_NOBODY), encode_header(identity)
    footer = end.footer.replace(nobody, own)
    digest = blake3(footer).digest()
    trailer = encode_trailer(Trailer(len(front), len(footer), digest, 1))
    content = front.replace(nobody, own) + footer + trailer
    pack = PackInfo(
        lineage=0,
        spread=identity.rank % 4,
        term=identity.term,
        save=identity.save,
        rank=identity.rank,
        number=identity.number,
        token=identity.token,
        size=len(content),
        footer_length=len(footer),
        footer_digest=digest,
        chunks=1,
    )
    return pack, content


def put(store: Store, key: str, content: bytes) -> ObjectRef:
    """Write an object and refer to it."""
    store.put(key, [content], mode="overwrite")
    return ObjectRef(blake3(content).hexdigest(), len(content))


def keys_under(store: Store, prefix: str) -> list[str]:
    """Every key with a prefix."""
    return [info.key for info in store.list(prefix)]


def pack_keys(store: Store, keys: LineageKeys) -> set[str]:
    """Every pack of a run."""
    return set(keys_under(store, keys.packs))


def fresh_log(store: Store, name: str = "run") -> Log:
    """The log of a run as a new process reads it, with identifiers of its own."""
    lineage = find(store, name)
    assert lineage is not None
    log = Log(store, lineage.keys, lineage.lineage, make_runtime(next(_seeds)), read_packs)
    log.refresh()
    return log


def missing_of_roots(log: Log) -> list[str]:
    """Every key that a root refers to and the store does not have: must be empty at all times."""
    fold = log.refresh()
    present = set(keys_under(log.store, ""))
    missing = []
    for name in fold.roots():
        manifest = [log.keys.root(name), log.keys.leaf(name, 0), log.keys.pack_table(name, 0)]
        missing += [key for key in manifest if key not in present]
        if not missing:
            packs = read_packs(log.store, log.keys, uses_of(fold.entries[name]))
            missing += [key for key, _ in packs if key not in present]
    return missing


def trained(saves: int = 6) -> tuple[MemoryStore, Saver]:
    """A run whose saves share one frozen pack and write two of their own."""
    store = make_store()
    saver = Saver(resume(store))
    saver.commit(0, fresh=3)
    frozen = saver.packs[:1]
    for number in range(1, saves):
        saver.commit(number * 10, fresh=2, reuse=frozen, loss=1.0 / number)
    saver.packs = frozen
    return store, saver


def canonical_steps(store: Store) -> list[int]:
    """The canonical steps, newest first, as a new process sees them."""
    return [entry.step for entry in history(fresh_log(store).fold)]
