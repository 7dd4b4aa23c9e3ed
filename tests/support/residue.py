"""What a repository holds beside what its checkpoints need."""

from __future__ import annotations

from contextlib import suppress

import fwstore
from support.lineages import keys_under


def offered(repository: fwstore.Repository) -> list[fwstore.Checkpoint]:
    """All checkpoints on offer; a run that was deleted a moment ago may still be listed."""
    found: list[fwstore.Checkpoint] = []
    for name in names_of(repository):
        with suppress(fwstore.NotFound):
            found += repository.run(name).checkpoints()
    return found


def unneeded(repository: fwstore.Repository) -> set[str]:
    """Packs and manifests that no checkpoint on offer needs; all pins are those that forks need."""
    needed: set[str] = set()
    borrowed: set[str] = set()
    for checkpoint in offered(repository):
        manifest = checkpoint.access.keys.snapshot(checkpoint.id)
        needed |= {pack.key for pack in checkpoint.packs()}
        needed |= set(keys_under(repository.store, manifest))
        borrowed |= {foreign.pin for foreign in checkpoint.entry.foreign}
    pins = {pin.id for name in names_of(repository) for pin in repository.run(name).pins()}
    assert pins == borrowed
    keys = keys_under(repository.store, "")
    stored = {key for key in keys if key.startswith("packs/") or "/_snap/" in key}
    assert needed <= stored
    return stored - needed


def names_of(repository: fwstore.Repository) -> list[str]:
    """The runs of a repository that may not exist yet."""
    try:
        return repository.runs()
    except fwstore.NotFound:
        return []
