"""One log as the protocol has it, written down a second time and independently of `fwstore.log`.

Invariant: nothing here is shared with what is judged, but for the parsers of stored bytes; a rule that production loses
is still held here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Saved:
    """A snapshot as its record told of it.

    Attributes:
        id: Its id.
        term: Term of its record.
        save: Number within the term.
        parent: Id of the one before it.
        keys: Everything that must be there for it to load, packs of other lineages included.
    """

    id: str
    term: int
    save: int
    parent: str | None
    keys: frozenset[str]


@dataclass
class Ledger:
    """The state of one log after its slots."""

    label: str
    slots: int = 0
    digest: str = "0" * 64
    fence: int = 0
    closed: bool = False
    opens: dict[int, str | None] = field(default_factory=dict)
    saved: dict[str, Saved] = field(default_factory=dict)
    newest: dict[int, int] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    pins: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    condemned: set[str] = field(default_factory=set)
    published: set[str] = field(default_factory=set)
    partial: set[str] = field(default_factory=set)
    holds: dict[str, Saved] = field(default_factory=dict)

    def live(self) -> dict[str, Saved]:
        """What is on offer."""
        if self.closed:
            return {}
        return {name: saved for name, saved in self.saved.items() if name not in self.expired}

    def roots(self) -> dict[str, Saved]:
        """What must stay."""
        roots = self.live()
        if self.opens and not self.closed:
            base = self.opens[max(self.opens)]
            if base in self.saved and base not in self.ended:
                roots[base] = self.saved[base]
        for pin in self.pins.values():
            roots[pin["snapshot"]] = self.saved[pin["snapshot"]]
        return roots | {f"hold {name}": saved for name, saved in self.holds.items()}

    def awaits(self, saved: Saved) -> bool:
        """Whether this log may still need what another site holds for one of its snapshots."""
        if self.closed:
            return False
        if saved.id in self.saved:
            gone = saved.id in self.expired or saved.id in self.ended
            return saved.id in self.partial and not gone
        return self.fence <= saved.term and self.newest.get(saved.term, 0) < saved.save

    def chain(self) -> list[str]:
        """The canonical ids, newest first, expired ones included.

        What was published of a term shows that it was opened, at a home elsewhere.
        """
        told = {self.saved[name].term for name in self.published - self.ended}
        term = max([*self.opens, *told], default=0)
        of_term = [saved for saved in self.saved.values() if saved.term == term]
        here = max(of_term, key=lambda saved: saved.save).id if of_term else self.opens.get(term)
        chain: list[str] = []
        while here is not None and here in self.saved:
            chain.append(here)
            here = self.saved[here].parent
        return chain

    def objection(self, term: int, body: dict[str, Any], saved: Saved | None) -> str | None:
        """Return why a record does not count in the next slot."""
        kind = body["kind"]
        writing = kind in ("open", "commit") or (kind == "hold" and not body["intent"])
        if writing and self.fence > term:
            return f"it is of term {term} and stands behind the fence of term {self.fence}"
        if kind in ("open", "commit", "publish", "hold", "tag") and self.closed:
            return "the lineage was deleted before"
        if kind == "open" and term in self.opens:
            return "the term was opened before"
        if kind == "commit" and (
            body["snapshot"] in self.saved or body["save"] <= self.newest.get(term, 0)
        ):
            return "the save was recorded before"
        if kind == "pin" and (body["snapshot"] not in self.saved or body["snapshot"] in self.ended):
            return "the snapshot is not there"
        if saved is not None and kind in ("commit", "publish", "hold", "pin", "open"):
            condemned = saved.keys & self.condemned
            if condemned:
                return f"it refers to condemned keys: {sorted(condemned)[:2]}"
        return None

    def take(self, term: int, body: dict[str, Any], saved: Saved | None) -> None:
        """Take in a record that counts, but for what it condemns."""
        kind = body["kind"]
        if kind == "fence":
            self.fence = max(self.fence, term)
        elif kind == "open":
            self.opens[term] = body["base"]
        elif kind in ("commit", "publish") and saved is not None:
            self.saved[saved.id] = saved
            self.newest[term] = max(self.newest.get(term, 0), saved.save)
            if kind == "publish":
                self.published.add(saved.id)
                self.partial.discard(saved.id)
            elif body["holds"]:
                self.partial.add(saved.id)
        elif kind == "hold":
            # It was recorded elsewhere, or nobody would copy it; or all that its writer writes here is written.
            self.newest[term] = max(self.newest.get(term, 0), body["save"])
            if saved is not None:
                self.holds[body["hold"]] = saved
        elif kind == "expire":
            self.expired |= {name for name in body["snapshots"] if name in self.saved}
        elif kind == "close":
            self.closed = True
        else:
            self._take_reference(body)

    def _take_reference(self, body: dict[str, Any]) -> None:
        kind = body["kind"]
        if kind == "pin":
            self.pins[body["pin"]] = body
        elif kind == "unpin":
            self.pins.pop(body["pin"], None)
            self.holds.pop(body["pin"], None)
        elif kind == "tag":
            self.tags.pop(body["tag"], None)
            if body["snapshot"] is not None:
                self.tags[body["tag"]] = body["snapshot"]
