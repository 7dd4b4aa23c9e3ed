"""One job's right to write, as one of its ranks holds it.

Invariant: every rank of a job has the same term and lineage; both came from the leader's election.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.coordinator import Coordinator
from fwstore.checkpoint.part import HOME
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.content.packing import PackNaming
from fwstore.format.paths import TensorPath
from fwstore.format.summary import SnapshotEntry

CodecChoice = Literal["raw", "zstd", "auto"]
Staging = Literal["eager", "lazy"] | Callable[[Any], bool]
"""When tensors are copied: before `save` returns, after it, or by tensor: those for which a function is true, after it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """A writing job on one rank.

    Attributes:
        access: The lineage and what reads it.
        coordinator: How the ranks talk; it knows rank and world size.
        term: The fencing number.
        codec: How chunks are encoded.
        site: Uuid of the site of this rank where that is not the home of the job.
        reads: Returns what reads a snapshot that was just committed.
    """

    access: Access
    coordinator: Coordinator
    term: int
    codec: CodecChoice = "raw"
    site: str = HOME
    reads: Callable[[SnapshotEntry], Access] | None = None

    @property
    def rank(self) -> int:
        """This process."""
        return self.coordinator.rank

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.coordinator.world_size

    def checkpoint(self, entry: SnapshotEntry) -> Checkpoint:
        """Return a snapshot of this job as this rank reads it."""
        return Checkpoint(self.access if self.reads is None else self.reads(entry), entry)

    def naming(self, save: int) -> PackNaming:
        """Return what the packs of this rank are called in one save."""
        limit = self.access.store.capabilities.spread_max
        return PackNaming(
            lineage=self.access.ref,
            term=self.term,
            save=save,
            rank=self.rank,
            spread=max(1, min(limit, 256, -(-self.world_size // 4))),
        )


@dataclass(frozen=True, eq=False)
class SaveRequest:
    """One call of `Writer.save`.

    Attributes:
        save: Its number in the term, from 1.
        step: The step of the user.
        state: The nested state.
        metrics: Numbers by name.
        position: Where the run stands in its data.
        per_rank: A plain value of this rank.
        blocking: Write from live memory instead of staging.
        staging: Which tensors may be copied after the call.
        annotations: Named byte strings, from the leader.
    """

    save: int
    step: int
    state: Any
    metrics: Mapping[str, float] | None = None
    position: Any = None
    per_rank: Any = None
    blocking: bool = False
    staging: Staging = "eager"
    annotations: Mapping[str, bytes] = field(default_factory=dict)

    def late(self, tensors: Mapping[TensorPath, Any]) -> Mapping[TensorPath, Any]:
        """Return the tensors that may be copied after the call."""
        if self.blocking or self.staging == "eager":
            return {}
        if self.staging == "lazy":
            return tensors
        return {path: value for path, value in tensors.items() if self.staging(value)}


def finite_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as they are stored; those that are not finite are left out.

    A loss that became NaN is no reason not to save the state.

    Raises:
        InvalidInput: They are no mapping, a name is no text, or a value no number.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise InvalidInput(f"metrics are numbers by name, such as {{'loss': 2.1}}, not {metrics!r}")
    found: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        # A loss of torch still carries its graph, and complains when it becomes a number with it.
        detach = getattr(value, "detach", None)
        try:
            number = float(value if detach is None else detach())
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"metric {name!r} must be a number, not {value!r}") from error
        if type(name) is not str:
            raise InvalidInput(f"the name of a metric must be text, not {name!r}")
        if math.isfinite(number):
            found[name] = number
    return found
