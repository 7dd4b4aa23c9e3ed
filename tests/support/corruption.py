"""What comes of damage: every kind of object, every way to damage it, everything that users do with it.

Invariant: an outcome is one of `OUTCOMES`, judged against what a whole repository gives; "wrong" is the one that must
not come: other values than those that were saved, a deletion of what is needed, damage that verification passes over
though a load meets it, a save that was acknowledged and cannot be loaded.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import numpy as np

import fwstore
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from fwstore_migrate.imports import ImportOptions, import_checkpoint
from fwstore_migrate.states import ForeignState
from support.faults import FaultyStore
from support.gallery import RUN, STEPS, URL, Sight, load, look, state
from support.oracle import same
from support.processes import copied

Outcome = Literal["detected", "repaired", "harmless", "wrong"]
OUTCOMES: tuple[Outcome, ...] = ("detected", "repaired", "harmless", "wrong")
KINDS = {
    "site": r"fwstore\.json",
    "lineage": r"catalog/.*@1",
    "closed": r"catalog/.*\.closed",
    "name": r"meta/_names/.*",
    "vote": r"meta/.*/_term/\d+",
    "receipt": r"meta/.*/_term/\d+\.open",
    "slot": r"meta/.*/_log/\d+/\d+",
    "summary": r"meta/.*/_log/sum/\d+",
    "hint": r"meta/.*/_log/hint",
    "condemned": r"meta/.*/_condemned/.*",
    "message": r"meta/.*/_coord/.*",
    "root": r"meta/.*/_snap/.*/root",
    "leaf": r"meta/.*/_snap/.*/leaf-\d+",
    "table": r"meta/.*/_snap/.*/packs-\d+",
    "pack": r"packs/.*",
}
# What readers do without: damage to these must not even be noticed.
UNNEEDED = ("closed", "name", "vote", "receipt", "summary", "hint", "condemned", "message")
_STEP = 9
SIZE_MAX = 20 * 1024
# Objects that hold other bytes than they should, or are gone.
Damage = Mapping[str, bytes | None]


def inspect(repository: fwstore.Repository) -> Sight:
    """Return what `fwstore inspect`, `show`, `du` and `log` show."""
    run = repository.run(RUN)
    return {
        "log": list(run.log()),
        "checkpoints": [
            (
                found.describe(),
                found.packs(),
                [(t.name, t.dtype, t.shape, t.alias) for t in found.tensors.values()],
                [_chunks(found, path) for path in sorted({t.name for t in found.tensors.values()})],
            )
            for found in run.checkpoints()
        ],
    }


def _chunks(found: fwstore.Checkpoint, path: str) -> Any:
    table = found.chunks(path)
    fields = type(table).__dataclass_fields__
    return [_plain(getattr(table, name)) for name in fields]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


# What someone who only reads may do.
READS: Mapping[str, Callable[[fwstore.Repository], Sight]] = {
    "list": look,
    **{f"step {step}": lambda repository, step=step: load(repository, step) for step in STEPS},  # type: ignore[misc]
    "inspect": inspect,
}


@dataclass
class Gallery:
    """The gallery, what its objects hold, what every read gives while they are whole, and which objects it reads."""

    store: MemoryStore
    objects: dict[str, bytes] = field(default_factory=dict)
    expected: dict[str, Sight] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    garbage: frozenset[str] = frozenset()
    ids: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objects = _objects(self.store)
        self.readers = {key: [] for key in self.objects}
        for name, read in READS.items():
            watched = FaultyStore(self.store)
            with _on(watched) as repository:
                self.expected[name] = read(repository)
            for key in {operation.key for operation in watched.operations} & set(self.objects):
                self.readers[key].append(name)
        self.ids = {row[0]: row[1] for row in self.expected["list"]["checkpoints"]}
        whole = copied(self.store)
        _collect(whole)
        self.garbage = frozenset(self.objects.keys() - _objects(whole).keys())

    def keys(self, kind: str) -> list[str]:
        """Return the objects of a kind."""
        return [key for key in self.objects if re.fullmatch(KINDS[kind], key)]

    def readings(self, damage: Damage) -> set[Outcome]:
        """Do all loads and listings that touch damage: they are functions of the objects that they read."""
        names = {name for key in damage for name in self.loads(key)}
        with self.damaged(damage):
            return {self.read(name) for name in names or ["list"]}

    def loads(self, key: str) -> set[str]:
        """Return the loads and listings that read an object."""
        return set(self.readers[key]) - {"inspect"}

    def read(self, name: str) -> Outcome:
        """Do a read in a new process, as it were."""
        try:
            with fwstore.open(URL) as repository:
                seen = READS[name](repository)
        except fwstore.Corrupt:
            return "detected"
        return "harmless" if seen == self.expected[name] else "wrong"

    @contextmanager
    def damaged(self, damage: Damage) -> Iterator[None]:
        """Have objects hold other bytes for a while."""
        _apply(self.store, damage)
        try:
            yield
        finally:
            for key in damage:
                self.store.put(key, [self.objects[key]], mode="overwrite")

    def copy(self, damage: Damage) -> MemoryStore:
        """Return a damaged copy, to be changed."""
        store = copied(self.store)
        _apply(store, damage)
        return store


def _apply(store: Store, damage: Damage) -> None:
    for key, content in damage.items():
        if content is None:
            store.delete([key])
        else:
            store.put(key, [content], mode="overwrite")


def _objects(store: Store) -> dict[str, bytes]:
    return {i.key: store.get(i.key, limit_bytes=SIZE_MAX) for i in store.list("")}


@contextmanager
def _on(store: Store) -> Iterator[fwstore.Repository]:
    with (
        mock.patch("fwstore.repository.open_store", return_value=store),
        fwstore.open(URL) as repository,
    ):
        yield repository


def _collect(store: Store) -> None:
    with _on(store) as repository:
        repository.gc()


# What users do, and what comes of it.


def do_load(gallery: Gallery, damage: Damage) -> Outcome:
    """List and load everything that the damage touches."""
    return _worst(gallery.readings(damage))


def do_inspect(gallery: Gallery, damage: Damage) -> Outcome:
    """Look at log, manifests and chunk tables."""
    with gallery.damaged(damage):
        return gallery.read("inspect")


def do_verify(gallery: Gallery, damage: Damage) -> Outcome:
    """Verify every byte; what a load trips over must be found."""
    with gallery.damaged(damage):
        try:
            with fwstore.open(URL) as repository:
                found = bool(repository.verify(level="data").problems)
        except fwstore.Corrupt:
            found = True
    if found:
        return "detected"
    return "wrong" if "detected" in gallery.readings(damage) else "harmless"


def do_collect(gallery: Gallery, damage: Damage) -> Outcome:
    """Collect garbage; once the damage is undone, nothing that was needed may be missing."""
    store = gallery.copy(damage)
    detected = False
    try:
        _collect(store)
    except fwstore.Corrupt:
        detected = True
    left = _objects(store)
    lost = gallery.objects.keys() - left.keys() - gallery.garbage
    if any(gallery.readers[key] for key in lost):
        return "wrong"
    return "detected" if detected else _mended(damage, left)


def do_resume(gallery: Gallery, damage: Damage) -> Outcome:
    """Continue the run as the next job; what it is told must hold for the one after it."""

    def save(repository: fwstore.Repository) -> None:
        with repository.run(RUN).writer() as writer:
            assert writer.base is None or writer.base.step in STEPS
            writer.save(_STEP, state()).result()

    return _add(gallery, damage, save, state())


def do_import(gallery: Gallery, damage: Damage) -> Outcome:
    """Import a foreign checkpoint as a step of the run."""
    weights = {"weight": np.arange(8, dtype=np.float32), "note": "foreign"}
    foreign = ForeignState("torch", weights, 1, 32)

    def bring(repository: fwstore.Repository) -> None:
        options = ImportOptions(step=_STEP, append=True)
        import_checkpoint(repository.run(RUN), foreign, options)

    return _add(gallery, damage, bring, weights)


def _add(
    gallery: Gallery,
    damage: Damage,
    act: Callable[[fwstore.Repository], None],
    expected: Mapping[str, Any],
) -> Outcome:
    """Add a step to a damaged run; look at it, and at what was there before, with new eyes."""
    store = gallery.copy(damage)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* does not continue step")
        try:
            with _on(store) as repository:
                act(repository)
        except (fwstore.Corrupt, fwstore.Conflict):
            # Votes of another run, for instance, are sound and contradict the catalog.
            return "detected"
    try:
        with _on(store) as repository:
            added = repository.run(RUN)[_STEP]
            if not same(added.load(), expected):
                return "wrong"
            # A job that finds the newest checkpoint damaged says so and goes on from the one before it.
            kept = [step for step in STEPS if gallery.ids[step] <= (added.parent or "")]
            for step in kept:
                with suppress(fwstore.Corrupt):
                    if load(repository, step) != gallery.expected[f"step {step}"]:
                        return "wrong"
    except fwstore.FwstoreError:
        # It was acknowledged.
        return "wrong"
    return _mended(damage, _objects(store)) if len(kept) == len(STEPS) else "repaired"


def _mended(damage: Damage, left: Mapping[str, bytes]) -> Outcome:
    """Tell whether objects that were damaged were written anew, which only derived ones are."""
    return (
        "harmless"
        if all(left.get(key) == content for key, content in damage.items())
        else "repaired"
    )


Act = Callable[[Gallery, Damage], Outcome]
ACTS: Mapping[str, Act] = {
    "load": do_load,
    "resume": do_resume,
    "verify": do_verify,
    "gc": do_collect,
    "inspect": do_inspect,
    "import": do_import,
}


def _worst(found: set[Outcome]) -> Outcome:
    return next((o for o in ("wrong", "detected", "repaired") if o in found), "harmless")


def flips(gallery: Gallery, kind: str) -> Iterator[Damage]:
    """Yield every byte of every object of a kind changed once: one bit, another bit, or all of it in turn."""
    for key in gallery.keys(kind):
        stored = gallery.objects[key]
        for place in range(len(stored)):
            change = (0x01, 0xFF, 0x80)[place % 3]
            yield {key: stored[:place] + bytes([stored[place] ^ change]) + stored[place + 1 :]}


def cuts(gallery: Gallery, kind: str) -> Iterator[Damage]:
    """Yield every shorter length of every object of a kind."""
    for key in gallery.keys(kind):
        for length in range(len(gallery.objects[key])):
            yield {key: gallery.objects[key][:length]}


def swaps(gallery: Gallery, kind: str) -> Iterator[Damage]:
    """Yield every pair of objects of a kind, each with the bytes of the other."""
    for left, right in itertools.combinations(gallery.keys(kind), 2):
        contents = gallery.objects[left], gallery.objects[right]
        # A fork's leaf is that of its base, byte for byte.
        if contents[0] != contents[1]:
            yield {left: contents[1], right: contents[0]}


WAYS: Mapping[str, Callable[[Gallery, str], Iterator[Damage]]] = {
    "flip": flips,
    "cut": cuts,
    "swap": swaps,
}


def tabulate(gallery: Gallery, kind: str, way: str, act: str, every: int = 1) -> Counter[Outcome]:
    """Count what comes of damage to a kind of object; one flip or cut in so many is tried, and more of the swaps."""
    step = max(1, every // 10) if way == "swap" else every
    chosen = itertools.islice(WAYS[way](gallery, kind), 0, None, step)
    return Counter(ACTS[act](gallery, damage) for damage in chosen)
