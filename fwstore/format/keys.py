"""Every object key of a store, made and parsed in this one place.

Invariant: keys are injective: two different things never share a key, and what `parse_pack_key` and
`parse_snapshot_id` accept is exactly what this module makes. The layout is section "Keys" of
docs/spec/format.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fwstore.base.errors import Corrupt

SITE_KEY = "fwstore.json"
KNOWN_SITES_PREFIX = "sites/"
CATALOG_PREFIX = "catalog/"
LINK_PREFIX = "_link/"
META_PREFIX = "meta/"
PACKS_PREFIX = "packs/"
QUARANTINE_PREFIX = "quarantine/"
RETIRED_PREFIX = "_site/"
STAGED_PREFIX = "staged/"
_SLOTS_PER_FOLDER = 1000

_LINEAGE = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._/-]*)@(?P<generation>[1-9][0-9]*)"
_PACK = re.compile(
    rf"packs/{_LINEAGE}/(?P<spread>[0-9a-f]{{2}})/t(?P<term>[0-9]+)-s(?P<save>[0-9]+)"
    r"-r(?P<rank>[0-9]{6,})-(?P<number>[0-9]+)-(?P<token>[0-9a-f]{16})(?:\.(?P<incarnation>[1-9][0-9]*))?"
)
_SNAPSHOT = re.compile(
    r"(?P<step>[0-9]{12,})-t(?P<term>[0-9]+)-s(?P<save>[0-9]+)-(?P<token>[0-9a-f]{16})"
)
_HOLD_TABLE = re.compile(r"t(?P<term>[0-9]+)-s(?P<save>[0-9]+)-(?P<hold>[0-9a-f]{16,64})-[0-9]{5}")
_CATALOG = re.compile(rf"catalog/{_LINEAGE}")
_RETIRED = re.compile(r"_site/(?P<site>[0-9a-f]{32})\.(?P<how>retired|lost)")


@dataclass(frozen=True, slots=True)
class PackName:
    """The parts of a pack key."""

    name: str
    generation: int
    spread: int
    term: int
    save: int
    rank: int
    number: int
    token: str
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotId:
    """The parts of a snapshot id: `step` orders for people, `term` and `save` for the protocol."""

    step: int
    term: int
    save: int
    token: str

    def __str__(self) -> str:
        return f"{self.step:012d}-t{self.term}-s{self.save}-{self.token}"


@dataclass(frozen=True, slots=True)
class LineageKeys:
    """The keys of one generation of a lineage."""

    name: str
    generation: int

    @property
    def label(self) -> str:
        """The name with its generation, as it stands in keys."""
        return f"{self.name}@{self.generation}"

    @property
    def catalog(self) -> str:
        """Key of the create-once lineage object."""
        return f"{CATALOG_PREFIX}{self.label}"

    @property
    def meta(self) -> str:
        """Prefix of all metadata of the lineage."""
        return f"{META_PREFIX}{self.label}/"

    @property
    def packs(self) -> str:
        """Prefix of all packs of the lineage."""
        return f"{PACKS_PREFIX}{self.label}/"

    @property
    def staged(self) -> str:
        """Prefix of the parts of packs that are being copied here."""
        return f"{STAGED_PREFIX}{self.label}/"

    @property
    def terms(self) -> str:
        """Prefix of votes and receipts."""
        return f"{self.meta}_term/"

    @property
    def log(self) -> str:
        """Prefix of the slots, summaries and the hint."""
        return f"{self.meta}_log/"

    @property
    def snapshots(self) -> str:
        """Prefix of the manifests of all snapshots."""
        return f"{self.meta}_snap/"

    @property
    def holds(self) -> str:
        """Prefix of the lists of packs that holds keep."""
        return f"{self.meta}_hold/"

    @property
    def hint(self) -> str:
        """Key of the advisory object that names a recent slot."""
        return f"{self.log}hint"

    def vote(self, term: int) -> str:
        """Key of this witness's vote in a term."""
        return f"{self.terms}{term:08d}"

    def receipt(self, term: int) -> str:
        """Key of the receipt that the winner of a term leaves before it opens."""
        return f"{self.terms}{term:08d}.open"

    def slot(self, sequence: int) -> str:
        """Key of a log slot."""
        return f"{self.log}{sequence // _SLOTS_PER_FOLDER:06d}/{sequence % _SLOTS_PER_FOLDER:03d}"

    def summary(self, sequence: int) -> str:
        """Key of the summary that follows a slot."""
        return f"{self.log}sum/{sequence:012d}"

    def condemned(self, token: str) -> str:
        """Key of a list of condemned keys."""
        return f"{self.meta}_condemned/{token}"

    def heard(self, site: str) -> str:
        """Key of what was heard of the log at another site, by the uuid of that."""
        return f"{self.meta}_heard/{site}"

    def coordination(self, job: str) -> str:
        """Prefix of the small objects through which ranks without another channel meet."""
        return f"{self.meta}_coord/{job}/"

    def snapshot(self, snapshot: SnapshotId | str) -> str:
        """Prefix of the manifests of one snapshot."""
        return f"{self.snapshots}{snapshot}/"

    def snapshot_of(self, key: str) -> str | None:
        """Return the id of the snapshot whose manifest an object is a part of, or None."""
        inside = key.removeprefix(self.snapshots)
        return None if inside == key else inside.partition("/")[0]

    def snapshot_of_staged(self, key: str) -> str | None:
        """Return the id of the snapshot whose manifest somebody claims to copy, or None."""
        return self.snapshot_of(f"{META_PREFIX}{key.removeprefix(STAGED_PREFIX)}")

    def root(self, snapshot: SnapshotId | str) -> str:
        """Key of a snapshot's root."""
        return f"{self.snapshot(snapshot)}root"

    def leaf(self, snapshot: SnapshotId | str, number: int) -> str:
        """Key of one leaf of a snapshot."""
        return f"{self.snapshot(snapshot)}leaf-{number:05d}"

    def pack_table(self, snapshot: SnapshotId | str, number: int) -> str:
        """Key of one part of a snapshot's pack table."""
        return f"{self.snapshot(snapshot)}packs-{number:05d}"

    def hold_table(self, snapshot: SnapshotId | str, hold: str, number: int) -> str:
        """Key of one part of the list of packs that a hold keeps for a snapshot."""
        found = parse_snapshot_id(str(snapshot))
        return f"{self.holds}t{found.term}-s{found.save}-{hold}-{number:05d}"

    def pack(self, pack: PackName) -> str:
        """Key of a pack of this lineage."""
        suffix = f".{pack.incarnation}" if pack.incarnation else ""
        return (
            f"{self.packs}{pack.spread:02x}/t{pack.term}-s{pack.save}"
            f"-r{pack.rank:06d}-{pack.number}-{pack.token}{suffix}"
        )


def known_site_key(name: str, after: str | None = None) -> str:
    """Return the key under which a site remembers another one, or the one that came after one that was retired."""
    return f"{KNOWN_SITES_PREFIX}{name}" + ("" if after is None else f"@{after}")


def retired_key(site: str, *, lost: bool = False) -> str:
    """Return the key of the retirement of a site, or of the word of an operator that nobody will hear of it again."""
    return f"{RETIRED_PREFIX}{site}.{'lost' if lost else 'retired'}"


def parse_retired_key(key: str) -> tuple[str, bool] | None:
    """Return whose retirement a key is of and whether it is the operator's word; None for a key of another kind."""
    match = _RETIRED.fullmatch(key)
    return (match["site"], match["how"] == "lost") if match else None


def link_leases(source: str) -> str:
    """Prefix of the leases of all workers that fetch from a site, by its uuid."""
    return f"{LINK_PREFIX}{source}/"


def link_lease(source: str, name: str) -> str:
    """Key of the share of one worker in the cap of a link, which is told by its name."""
    return f"{link_leases(source)}{name}"


def work_claims(key: str) -> str:
    """Prefix of the claims of those who fetch an object of a lineage for the whole site."""
    return f"{STAGED_PREFIX}{key.removeprefix(PACKS_PREFIX).removeprefix(META_PREFIX)}/claim-"


def work_claim(key: str, number: int) -> str:
    """Key of one of them; the highest number is in force."""
    return f"{work_claims(key)}{number:06d}"


def parse_pack_key(key: str) -> PackName:
    """Return the parts of a pack key.

    Raises:
        Corrupt: The key is not one that `LineageKeys.pack` makes.
    """
    match = _PACK.fullmatch(key)
    if match is None:
        raise Corrupt(f"{key[:200]!r} is not the key of a pack")
    numbers = {part: int(match[part]) for part in ("generation", "term", "save", "rank", "number")}
    pack = PackName(
        name=match["name"],
        spread=int(match["spread"], 16),
        token=match["token"],
        incarnation=int(match["incarnation"] or 0),
        **numbers,
    )
    if LineageKeys(pack.name, pack.generation).pack(pack) != key:
        raise Corrupt(f"{key[:200]!r} is not the canonical key of a pack")
    return pack


def parse_hold_table(key: str) -> tuple[int, int, str]:
    """Return term, save and token of the hold to which a part of a list of packs belongs.

    Raises:
        Corrupt: It is not the key of one.
    """
    match = _HOLD_TABLE.fullmatch(key.rpartition("/")[2])
    if match is None:
        raise Corrupt(f"{key[:200]!r} is not the key of a list of held packs")
    return int(match["term"]), int(match["save"]), match["hold"]


def staged_part(pack_key: str, offset: int, length: int) -> str:
    """Return the key under which a part of a pack waits for the others."""
    return f"{STAGED_PREFIX}{pack_key.removeprefix(PACKS_PREFIX)}/{offset:012d}-{length}"


def pack_key_of_staged(key: str) -> str:
    """Return the key of the pack that a staged object is a part of; any text for any other key."""
    return PACKS_PREFIX + key.removeprefix(STAGED_PREFIX).rpartition("/")[0]


def quarantined_copies(key: str) -> str:
    """Prefix of what was kept of the bad bytes of an object."""
    return f"{QUARANTINE_PREFIX}{key}/"


def quarantined_copy(key: str, digest: bytes) -> str:
    """Return the key under which bad bytes of an object are kept, by what they are."""
    return f"{quarantined_copies(key)}{digest.hex()}"


def run_of_quarantined(key: str) -> str:
    """Return the name of the run that kept bytes are of; any text for any other key."""
    inside = key.removeprefix(QUARANTINE_PREFIX).partition("@")[0]
    return inside.removeprefix(PACKS_PREFIX).removeprefix(META_PREFIX)


def parse_snapshot_id(text: str) -> SnapshotId:
    """Return the parts of a snapshot id.

    Raises:
        Corrupt: The text is not a snapshot id.
    """
    match = _SNAPSHOT.fullmatch(text)
    parsed = match and SnapshotId(
        int(match["step"]), int(match["term"]), int(match["save"]), match["token"]
    )
    if parsed is None or str(parsed) != text:
        raise Corrupt(f"{text[:200]!r} is not a snapshot id")
    return parsed


def parse_catalog_key(key: str) -> LineageKeys | None:
    """Return the lineage that a catalog key names, or None for a key of another kind."""
    match = _CATALOG.fullmatch(key)
    return LineageKeys(match["name"], int(match["generation"])) if match else None
