"""What must hold after every single change of a store, whoever made it.

Invariant: the judge sees the bytes themselves and nothing of what processes believe; it is told only what was
acknowledged to a user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import inf
from typing import Any

from blake3 import blake3

from fwstore.base.errors import Corrupt, FwstoreError
from fwstore.format.condemned import parse_condemned
from fwstore.format.keys import LineageKeys, parse_pack_key, parse_retired_key
from fwstore.format.packtable import parse_pack_table
from fwstore.format.root import parse_root
from sim.ledger import Ledger, Saved
from sim.place import Place

_SLOT = re.compile(r"meta/(.+@[0-9]+)/_log/([0-9]{6})/([0-9]{3})")
_ONCE = re.compile(
    r"fwstore\.json|_site/.+|sites/.+|catalog/.+|meta/_names/.+|meta/.+/_(term|condemned)/.+"
)
_VOTE = re.compile(r"meta/.+/_term/[0-9]+")
_BORN = re.compile(r"catalog/[^@]+@[0-9]+")
# An answer may be so old; whoever got one may not have heard of a retirement.
_STALE_S = 6.0
_GARBAGE = re.compile(r"packs/.+|meta/.+/_(snap|hold)/.+")


class Violation(AssertionError):
    """Something that was promised does not hold."""


class Judge:
    """Holds every change of every store against the protocol.

    Args:
        accuse: Called with what does not hold; the play ends there.
        keep_last: How many of the newest snapshots no retention may expire.

    Attributes:
        ledgers: By store and lineage.
        acked: Where every snapshot that was acknowledged has its record.
        held: Pins that nobody may lift now.
        asked: Snapshots from which somebody asked to go on.
        retired: By name of a store, the uuid of the site that was retired there and since when.
        forced: Somebody was retired by less than a majority, so that nobody can promise much.
        witnesses: Names of the stores that voted when everything began; none where nobody counts votes.
        strict_base: A term must begin from the newest snapshot there is, because everybody hears everybody and reads
            what is there.
    """

    def __init__(self, accuse: Callable[[str], None], keep_last: int) -> None:
        self._accuse = accuse
        self._keep_last = keep_last
        self.ledgers: dict[tuple[str, str], Ledger] = {}
        self.acked: dict[str, tuple[str, str]] = {}
        self.asked: set[str] = set()
        self.held: set[str] = set()
        self.strict_base = True
        self.retired: dict[str, tuple[str, float]] = {}
        self.forced = False
        self.witnesses: frozenset[str] = frozenset()
        self._voters: dict[str, str | None] = {}
        # By term, holder and home: by whom a candidate was voted for, and when.
        self._votes: dict[tuple[int, str, str], dict[str, float]] = {}
        self._opened: dict[tuple[str, int], str] = {}
        self._born: dict[str, str] = {}
        self._names: dict[str, str] = {}
        # Sites that somebody began to retire.
        self._given_up: set[str] = set()
        self._homes: dict[str, str] = {}

    def ledger(self, place: str, label: str) -> Ledger:
        """Return the log of a lineage at a store as it is."""
        return self.ledgers.setdefault((place, label), Ledger(label))

    def written(self, place: Place, key: str, content: bytes, before: bytes | None) -> None:
        """Look at an object that has just appeared or changed."""
        found = _SLOT.fullmatch(key)
        if found is not None:
            if before is not None:
                self._accuse(f"slot {key} was written again")
            else:
                ledger = self.ledger(place.name, found[1])
                self._record(place, ledger, int(found[2]) * 1000 + int(found[3]), content)
        elif before is not None and before != content and _ONCE.fullmatch(key):
            self._accuse(f"{key} was written again with other bytes")
        elif _VOTE.fullmatch(key):
            self._voted(place, json.loads(content))
        elif _BORN.fullmatch(key):
            uuid = json.loads(content)["lineage"]
            if self._born.setdefault(key, uuid) != uuid:
                self._accuse(f"{key} at {place.name} is another lineage than elsewhere")
        elif (given_up := parse_retired_key(key)) is not None:
            self._given_up.add(given_up[0])

    def deleted(self, place: Place, key: str) -> None:
        """Look at what has just gone."""
        if not _GARBAGE.fullmatch(key):
            if _ONCE.fullmatch(key) or "/_log/" in key:
                self._accuse(f"{key} was deleted")
            return
        for (name, label), ledger in self.ledgers.items():
            if name == place.name:
                for root in ledger.roots().values():
                    if key in root.keys:
                        self._accuse(f"{key} was deleted, but {root.id} of {label} needs it")
                if key.startswith((f"packs/{label}/", f"meta/{label}/")):
                    self._check_condemned(place, ledger, key)

    def acknowledge(self, place: str, label: str, snapshot: str) -> None:
        """Take note that a user was told that a snapshot is safe."""
        ledger = self.ledger(place, label)
        if snapshot not in ledger.saved:
            self._accuse(f"{snapshot} was acknowledged and no record of it counts")
        self.acked[snapshot] = (place, label)

    def retire(self, name: str, uuid: str, when: float) -> None:
        """Take note that a site was retired."""
        self.retired.setdefault(name, (uuid, when))

    def lost(self) -> list[str]:
        """Return what was acknowledged and is neither on offer nor was expired."""
        return [
            snapshot
            for snapshot, (place, label) in self.acked.items()
            if snapshot not in self.ledger(place, label).saved
        ]

    def _record(self, place: Place, ledger: Ledger, seq: int, content: bytes) -> None:
        record = json.loads(content)
        body, term = record["body"], record["term"]
        what = f"slot {seq} of {ledger.label} at {place.name} ({body['kind']})"
        if seq != ledger.slots:
            self._accuse(f"{what} was created, but the log has {ledger.slots} slots")
        if record["previous"] != ledger.digest:
            self._accuse(f"{what} does not follow the record before it")
        self._names[place.uuid] = place.name
        saved = self._referred(place, ledger, term, body)
        objection = ledger.objection(term, body, saved)
        if objection is not None:
            self._accuse(f"{what} does not count: {objection}")
        if saved is not None and body["kind"] in ("commit", "publish", "pin", "open", "hold"):
            missing = sorted(key for key in saved.keys if key not in place._objects)
            if missing:
                self._accuse(f"{what} refers to {len(missing)} absent objects: {missing[:2]}")
        self._check_held(ledger, body, what)
        self._check_unheld(ledger, body, what)
        self._check_open(ledger, term, body, what)
        self._check_expired(ledger, body, what)
        if body["kind"] == "unpin" and body["pin"] in self.held:
            self._accuse(f"{what} lifts a pin that its owner has not lifted")
        ledger.take(term, body, saved)
        ledger.slots, ledger.digest = seq + 1, blake3(content).hexdigest()
        if body["kind"] == "condemn":
            self._condemn(place, ledger, body, what)
        if body["kind"] == "hold":
            self._homes[body["hold"]] = body["home"]

    def _referred(
        self, place: Place, ledger: Ledger, term: int, body: dict[str, Any]
    ) -> Saved | None:
        kind = body["kind"]
        if kind in ("commit", "publish"):
            try:
                keys = manifest_keys(place, ledger.label, body)
            except (FwstoreError, KeyError) as error:
                self._accuse(f"the manifest of {body['snapshot']} cannot be read: {error!r}")
                keys = frozenset()
            return Saved(body["snapshot"], term, body["save"], body["parent"], keys)
        if kind == "hold" and not body["intent"]:
            parts = len(body["tables"])
            packs = held_keys(place, ledger.label, body["snapshot"], body["hold"], parts)
            return Saved(body["snapshot"], term, body["save"], None, frozenset(packs))
        if kind == "pin":
            return ledger.saved.get(body["snapshot"])
        if kind == "open" and body["base"] is not None:
            return ledger.saved.get(body["base"])
        return None

    def _check_open(self, ledger: Ledger, term: int, body: dict[str, Any], what: str) -> None:
        if body["kind"] != "open":
            return
        if ledger.fence != term:
            self._accuse(f"{what} stands where the fence is that of term {ledger.fence}")
        opener = f"{body['holder']} at {body['home']}"
        if self._opened.setdefault((ledger.label, term), opener) != opener:
            self._accuse(f"{what} is the second of its term")
        self._check_votes(term, body, what)
        kept = {label for name, label in self.acked.values() if name not in self.retired}
        if body["base"] is None and ledger.label in kept:
            self._accuse(f"{what} begins anew, and something of the run was acknowledged")
        if not self.strict_base or body["base"] in self.asked:
            return
        chain = [name for name in ledger.chain() if name not in ledger.expired]
        newest = chain[0] if chain else None
        if body["base"] != newest:
            self._accuse(f"{what} begins after {body['base']}, and {newest} is canonical")

    def _check_held(self, ledger: Ledger, body: dict[str, Any], what: str) -> None:
        """Refuse a commit that counts on packs at another site which no record there keeps."""
        for site, hold, _ in body["holds"] if body["kind"] == "commit" else ():
            there = self.ledger(self._names.get(site, ""), ledger.label)
            if hold not in there.holds:
                self._accuse(f"{what} counts on hold {hold} at site {site}, which does not stand")

    def _check_unheld(self, ledger: Ledger, body: dict[str, Any], what: str) -> None:
        """Refuse to end a hold on which its home still counts."""
        saved = ledger.holds.get(body["pin"]) if body["kind"] == "unpin" else None
        # A site that is given up takes along what it counted on.
        if saved is None or self._homes[body["pin"]] in self._given_up:
            return
        home = self.ledger(self._names[self._homes[body["pin"]]], ledger.label)
        if home.awaits(saved):
            self._accuse(f"{what} ends a hold of {saved.id}, which is not complete at its home")

    def _voted(self, place: Place, vote: dict[str, Any]) -> None:
        # What was founded anew after a wipe is another site than the one that has voted there.
        if self._voters.setdefault(place.name, place.says()) == place.says():
            who = (vote["term"], vote["holder"], vote["home"])
            self._votes.setdefault(who, {})[place.name] = place.now()

    def _check_votes(self, term: int, body: dict[str, Any], what: str) -> None:
        """Refuse a term that was not won by a majority of those who voted when everything began."""
        votes = self._votes.get((term, body["holder"], body["home"]), {})
        counted = {
            name
            for name, when in votes.items()
            if name not in self.retired or when < self.retired[name][1] + _STALE_S
        }
        majority = 2 * len(counted & self.witnesses) > len(self.witnesses)
        if self.witnesses and not majority and not self.forced:
            self._accuse(f"{what} was voted for by {sorted(counted)} alone")
        uuid_since = dict(self.retired.values())
        if min(votes.values(), default=0.0) > uuid_since.get(body["home"], inf) + _STALE_S:
            self._accuse(f"{what} stands at a site that was retired before")

    def _check_expired(self, ledger: Ledger, body: dict[str, Any], what: str) -> None:
        if body["kind"] != "expire" or ledger.closed:
            return
        chain = [name for name in ledger.chain() if name not in ledger.expired]
        safe = {*chain[: self._keep_last], *(pin["snapshot"] for pin in ledger.pins.values())}
        safe |= set(ledger.tags.values())
        taken = safe & set(body["snapshots"])
        if taken:
            self._accuse(f"{what} expires what must stay: {sorted(taken)[:2]}")

    def _condemn(self, place: Place, ledger: Ledger, body: dict[str, Any], what: str) -> None:
        stored = place._objects.get(LineageKeys(*_parts(ledger.label)).condemned(body["token"]))
        if stored is None:
            self._accuse(f"{what} names a list that is not there")
            return
        keys = {row.key for row in parse_condemned(stored.content).keys}
        for root in ledger.roots().values():
            if keys & root.keys:
                self._accuse(
                    f"{what} condemns what {root.id} needs: {sorted(keys & root.keys)[:2]}"
                )
        self._check_flight(ledger, keys, what)
        ledger.condemned |= keys
        ledger.ended |= set(body["snapshots"]) - ledger.roots().keys()

    def _check_flight(self, ledger: Ledger, keys: set[str], what: str) -> None:
        """Refuse to condemn what a save under way may still commit."""
        if ledger.closed:
            return
        term = max([ledger.fence, *ledger.opens, *ledger.newest])
        for key in keys:
            if key.startswith("packs/"):
                group = parse_pack_key(key)
                if group.term >= term and group.save > ledger.newest.get(group.term, 0):
                    self._accuse(f"{what} condemns {key}, which its writer may be about to commit")

    def _check_condemned(self, place: Place, ledger: Ledger, key: str) -> None:
        if key in ledger.condemned or "/_hold/" in key:
            return
        if key.startswith("packs/"):
            group = parse_pack_key(key)
            known = (group.term, group.save)
            if any((saved.term, saved.save) == known for saved in ledger.saved.values()):
                self._accuse(f"{key} was deleted and never condemned")
        else:
            self._accuse(f"{key} was deleted and never condemned")

    def unneeded(self, place: Place) -> list[str]:
        """Return the packs and manifests that no root needs."""
        needed: set[str] = set()
        for (name, _), ledger in self.ledgers.items():
            if name == place.name:
                needed |= {key for root in ledger.roots().values() for key in root.keys}
        return sorted(
            key for key in place._objects if _GARBAGE.fullmatch(key) and key not in needed
        )


def manifest_keys(place: Place, label: str, body: dict[str, Any]) -> frozenset[str]:
    """Return the root, leaves, pack tables and packs of a snapshot, read from the stored bytes."""
    keys, snapshot = LineageKeys(*_parts(label)), body["snapshot"]
    found = {keys.root(snapshot)}
    root_bytes = place._objects[keys.root(snapshot)].content
    lineages = [keys]
    try:
        root = parse_root(root_bytes)
    except Corrupt:
        # A stand-in of protocol plays, which have one leaf and no foreign packs.
        leaves = 1
    else:
        leaves = len(root.leaves)
        lineages = [LineageKeys(*_parts(lineage.label)) for lineage in root.lineages]
    found |= {keys.leaf(snapshot, number) for number in range(leaves)}
    for number in range(len(body["tables"])):
        key = keys.pack_table(snapshot, number)
        found.add(key)
        _, rows = parse_pack_table(place._objects[key].content)
        found |= {row.key(lineages) for row in rows}
    for _, hold, tables in body.get("holds", ()):
        packs = held_keys(place, label, snapshot, hold, len(tables))
        # What another site holds is not here; the list of it is.
        found = {key for key in found if key not in packs}
        found |= {key for key in packs if "/_hold/" in key}
    return frozenset(found)


def held_keys(place: Place, label: str, snapshot: str, hold: str, parts: int) -> set[str]:
    """Return the packs that a hold keeps, and the parts of the list of them."""
    keys = LineageKeys(*_parts(label))
    found = set()
    for number in range(parts):
        key = keys.hold_table(snapshot, hold, number)
        _, rows = parse_pack_table(place._objects[key].content)
        found |= {key, *(row.key([keys]) for row in rows)}
    return found


def _parts(label: str) -> tuple[str, int]:
    name, _, generation = label.rpartition("@")
    return name, int(generation)
