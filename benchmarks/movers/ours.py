"""fwstore: saves at the source, and the target fetches what it lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import fwstore
from benchmarks.common.bed import BUCKET, Bed
from benchmarks.movers.base import Mover
from benchmarks.peers.floors import Bytes

_RUN = "run"


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

    def check(self, bed: Bed, checkpoint: Sequence[Bytes], step: int) -> bool:
        """Load at the target alone."""
        with fwstore.open(_url(bed.target)) as repository:
            found = repository.run(_RUN)[step].load()
        return all(
            np.array_equal(found[str(number)], tensor) for number, tensor in enumerate(checkpoint)
        )

    def _open(self, bed: Bed, site: str) -> fwstore.Repository:
        # Whoever is at the source reaches it directly.
        source = bed.source if site == "source" else bed.far
        path = self.folder / f"{site}.toml"
        path.write_text(
            f'[sites.source]\nstore = "{_url(source)}"\n\n[sites.target]\nstore = "{_url(bed.target)}"\n'
        )
        return fwstore.open(path, site=site)


def _url(endpoint: str) -> str:
    return f"s3://{BUCKET}/store?endpoint={endpoint}"
