"""How the ranks of a DCP save learn what the coordinator decided, and tell it what they wrote.

Invariant: only what DCP itself sends travels: the ticket in the plans it scatters, the contributions in the
results it gathers. No rank waits for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.distributed.checkpoint.storage import WriteResult

from fwstore import SaveTicket

# A planner that caches plans hands `write_data` the plan of an earlier save, so the ticket cannot be read from
# there: it is noted when the scattered plan arrives, that is, when it is unpickled.
_arrived: dict[tuple[str, str, int], Assignment] = {}


@dataclass(frozen=True)
class Assignment:
    """What a rank needs in order to write its part.

    Attributes:
        url: The repository.
        run: The run.
        rank: The rank that this is for.
        ticket: Names the save.
        alone: This rank plans without others, so that it may hold only a part of a tensor.
    """

    url: str
    run: str
    rank: int
    ticket: SaveTicket
    alone: bool

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.announce()

    def announce(self) -> None:
        """Note that it has arrived in this process, unless a newer one has: old plans are copied too."""
        place = self.url, self.run, self.rank
        before = _arrived.get(place)
        if before is None or not self._is_older(before):
            _arrived[place] = self

    def _is_older(self, other: Assignment) -> bool:
        mine, theirs = self.ticket, other.ticket
        return mine.lineage == theirs.lineage and mine.term < theirs.term


def take_assignment(url: str, run: str, rank: int) -> Assignment | None:
    """Return the newest assignment that arrived for a rank, once."""
    return _arrived.pop((url, run, rank), None)


@dataclass(frozen=True)
class Contribution:
    """What one rank brought to a save.

    Attributes:
        part: The tensors it wrote, for `Run.commit_save`.
        plain: Plain values by DCP's name.
        opaque: Names whose bytes it wrote as a tensor.
    """

    part: bytes
    plain: Mapping[str, Any] = field(default_factory=dict)
    opaque: tuple[str, ...] = ()


def contributions(results: Iterable[Iterable[WriteResult]]) -> list[Contribution]:
    """Return what the ranks brought; a rank without items brings nothing."""
    return [
        result.storage_data
        for of_rank in results
        for result in of_rank
        if isinstance(result.storage_data, Contribution)
    ]
