"""A run of several packs at several sites, damaged at one of them and healed from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fwstore.care.heal import Elsewhere, Healer
from fwstore.care.packcheck import Level
from fwstore.care.problems import VerifyReport
from fwstore.care.verify import VerifyOptions, verify_run
from fwstore.format.keys import QUARANTINE_PREFIX, LineageKeys
from fwstore.store.base import Store
from fwstore.store.memory import MemoryStore
from fwstore.wan.copy import Supply
from support.lineages import keys_under, make_store
from support.processes import copied, opened
from support.replicas import replicate
from support.through import inline_runtime, saved

KEYS = LineageKeys("run", 1)
SIZE_MAX = 1 << 20
NAMES = ("near", "third")
Contents = Mapping[str, bytes]


def replicated(*steps: int) -> tuple[MemoryStore, MemoryStore]:
    """A site that saved, and one that has a copy of it all."""
    near, far = make_store(), make_store()
    saved(near, *steps)
    replicate(far, near)
    return near, far


def again(store: Store) -> MemoryStore:
    """Another site with the same objects."""
    assert isinstance(store, MemoryStore)
    return copied(store)


def repair(
    far: Store,
    *sources: Store,
    level: Level = "data",
    silent: Mapping[str, str] | None = None,
    supplies: Sequence[Supply] = (),
) -> VerifyReport:
    """Verify and heal one site as a new process of it.

    Args:
        far: The store of the site.
        sources: Of the others, the nearest first.
        level: How deep.
        silent: Sites that cannot be asked.
        supplies: In place of sources.
    """
    repository = opened(far, inline_runtime())
    access = repository.find("run")
    assert access is not None
    found = supplies or [Supply(name, store) for name, store in zip(NAMES, sources, strict=False)]
    # Parts smaller than a pack, so that packs arrive in several.
    limits = replace(repository.runtime.limits, part_bytes=2_500, read_request_bytes=1_000)
    healer = Healer(
        access.log,
        replace(repository.runtime, limits=limits),
        access.content_hash,
        Elsewhere(tuple(found), silent or {}),
        repository.open_log,
    )
    return verify_run(access.origin, access.log, VerifyOptions(level=level), healer)


def kept(store: Store) -> dict[str, bytes]:
    """What is in quarantine."""
    return {k: v for k, v in everything(store).items() if k.startswith(QUARANTINE_PREFIX)}


def everything(store: Store) -> dict[str, bytes]:
    """All that a store holds."""
    return {info.key: store.get(info.key, limit_bytes=SIZE_MAX) for info in store.list("")}


def snapshots_and_packs(store: Store) -> dict[str, bytes]:
    """What checkpoints consist of."""
    found = everything(store)
    return {k: v for k, v in found.items() if k.startswith(("packs/", KEYS.snapshots))}


def flip(store: Store, key: str, place: int = -9) -> bytes:
    """Change a byte of an object; return what it was."""
    clean = store.get(key, limit_bytes=SIZE_MAX)
    content = bytearray(clean)
    content[place] ^= 0x20
    store.put(key, [content], mode="overwrite")
    return clean


def cut(store: Store, key: str) -> bytes:
    """Cut an object in the middle; return what it was."""
    clean = store.get(key, limit_bytes=SIZE_MAX)
    store.put(key, [clean[: len(clean) // 2]], mode="overwrite")
    return clean


def lose(store: Store, key: str) -> bytes:
    """Remove an object; return what it was."""
    clean = store.get(key, limit_bytes=SIZE_MAX)
    store.delete([key])
    return clean


def one_of(store: Store, part: str) -> str:
    """The first key of a kind of object."""
    prefix = "packs/" if part == "pack" else KEYS.snapshots
    wanted = "packs/" if part == "pack" else f"/{part}"
    return next(key for key in sorted(keys_under(store, prefix)) if wanted in key)
