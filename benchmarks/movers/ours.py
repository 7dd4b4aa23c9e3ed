"""fwstore: saves at the source, and the target fetches what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fwstore
from benchmarks.common.bed import Bed
from benchmarks.movers.base import Mover, sizes_at
from benchmarks.peers.floors import Bytes

_RUN = "run"
_PACKS = "store/packs/"


class Fwstore(Mover):
    """`Repository.replicate`, once."""

    def save(self, bed: Bed, checkpoint: Sequence[Bytes], step: int) -> None:
        """Save as a run of the source, which ends before anything is copied."""
        state = {str(number): tensor for number, tensor in enumerate(checkpoint)}
        with self._open(bed, "source") as repository, repository.run(_RUN).writer() as writer:
            writer.save(step, state).result()

    def copy(self, bed: Bed) -> None:
        """Let the target fetch."""
        with self._open(bed, "target") as repository:
            repository.replicate()

    def take_over(self, bed: Bed) -> tuple[int, Bytes] | None:
        """Load as the job does that goes on at the target, while bytes are still missing there."""
        with self._open(bed, "target") as repository, repository.run(_RUN).writer() as writer:
            return _loaded(writer.base)

    def newest(self, bed: Bed) -> tuple[int, Bytes] | None:
        """Load at the target alone."""
        with fwstore.open(bed.target.url) as repository:
            try:
                return _loaded(repository.run(_RUN).latest())
            except fwstore.NotFound:
                return None

    def strangers(self, bed: Bed) -> int:
        """Return the packs that the source does not have; logs are of their own site."""
        here, there = (
            {item for item in sizes_at(place).items() if item[0].startswith(_PACKS)}
            for place in (bed.target, bed.source)
        )
        return len(here - there)

    def _open(self, bed: Bed, site: str) -> fwstore.Repository:
        # Whoever is at the source reaches it directly.
        source = bed.source if site == "source" else bed.far
        path = self.folder / f"{site}.toml"
        path.write_text(
            f'[sites.source]\nstore = "{source.url}"\n\n[sites.target]\nstore = "{bed.target.url}"\n'
        )
        return fwstore.open(path, site=site)


def _loaded(checkpoint: fwstore.Checkpoint | None) -> tuple[int, Bytes] | None:
    if checkpoint is None:
        return None
    state: Mapping[str, Any] = checkpoint.load()
    return checkpoint.step, np.concatenate([state[name] for name in sorted(state, key=int)])
