"""Where things stand: sites, who votes, and which of them hear each other.

Invariant: a topology is plain values; whether one site hears another at a moment is a set of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Sites and witnesses of one play.

    Attributes:
        sites: Where processes run.
        stores: Sites that have a store; a process elsewhere uses the first one.
        witnesses: Stores that vote; some may be no more than witnesses.
    """

    sites: tuple[str, ...] = ("a",)
    stores: tuple[str, ...] = ("a",)
    witnesses: tuple[str, ...] = ("a",)

    @property
    def homes(self) -> tuple[str, ...]:
        """Stores in which a job may have its log."""
        return tuple(name for name in self.stores if name in self.sites)


ALONE = Topology()
THREE = Topology(sites=("a", "b", "c"), stores=("a", "b", "c"), witnesses=("a", "b", "c"))
TWO_AND_A_WITNESS = Topology(sites=("a", "b"), stores=("a", "b", "w"), witnesses=("a", "b", "w"))
# Processes far from the only store: links between the two may break in either direction.
REMOTE = Topology(sites=("a", "far"))


@dataclass
class Links:
    """Which requests do not arrive: pairs of (from, to); an answer goes the other way."""

    cut: set[tuple[str, str]] = field(default_factory=set)

    def hears(self, here: str, there: str) -> bool:
        """Return whether what `here` sends arrives `there`."""
        return here == there or (here, there) not in self.cut
