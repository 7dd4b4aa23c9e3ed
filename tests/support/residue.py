"""What a repository holds beside what its checkpoints need."""

from __future__ import annotations

import re
from contextlib import suppress

import fwstore
from support.lineages import keys_under

_STAYS = re.compile(
    r"fwstore\.json|catalog/.+|meta/_names/.+|meta/[^_]+/_(term|log|condemned|coord)/.+"
)


def offered(repository: fwstore.Repository) -> list[fwstore.Checkpoint]:
    """All checkpoints on offer; a run that was deleted a moment ago may still be listed."""
    found: list[fwstore.Checkpoint] = []
    for name in names_of(repository):
        with suppress(fwstore.NotFound):
            found += repository.run(name).checkpoints()
    return found


def unneeded(repository: fwstore.Repository) -> set[str]:
    """Objects that no checkpoint on offer needs, but for the memory of the log; all pins are those of forks."""
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
    assert needed <= set(keys)
    return {key for key in keys if key not in needed and not _STAYS.fullmatch(key)}


def names_of(repository: fwstore.Repository) -> list[str]:
    """The runs of a repository that may not exist yet."""
    try:
        return repository.runs()
    except fwstore.NotFound:
        return []
