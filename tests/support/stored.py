"""One example of every stored object of the log, the same on every day: golden files are made of these."""

from __future__ import annotations

from fwstore.format.condemned import CondemnedKey, CondemnedList, encode_condemned
from fwstore.format.groups import GroupRange
from fwstore.format.lease import WorkClaim, encode_claim
from fwstore.format.lineage import Lineage, NameClaim, encode_lineage
from fwstore.format.record import (
    Anchors,
    AnyBody,
    Close,
    Commit,
    Condemn,
    Expire,
    Fence,
    Foreign,
    Held,
    Hold,
    ObjectRef,
    Open,
    Pin,
    Publish,
    Record,
    Swept,
    Tag,
    Unpin,
    encode_record,
)
from fwstore.format.site import KnownSite, RetiredSite, SiteObject, encode_site
from fwstore.format.summary import Hint, Summary, encode_hint, encode_summary
from fwstore.format.vote import Receipt, Vote, encode_vote
from fwstore.log.fold import Fold

LINEAGE = "1" * 32
SITE = "5" * 32
SNAPSHOT = "000000001200-t3-s12-00112233445566ff"
OLDER = "000000001100-t3-s11-00112233445566ee"
_REF = ObjectRef("ab" * 32, 1234)
_GROUPS = (GroupRange((1, 1), (1, 1)), GroupRange((3, 2), (3, 12)))

BODIES: dict[str, AnyBody] = {
    "open": Open("host 7, job 12", SITE, OLDER),
    "commit": Commit(
        snapshot=SNAPSHOT,
        step=1200,
        save=12,
        parent=OLDER,
        root=_REF,
        tables=(_REF, _REF),
        groups=_GROUPS,
        foreign=(Foreign(label="base@2", lineage="2" * 32, snapshot=OLDER, pin="3" * 32),),
        bytes_logical=10**13,
        bytes_written=10**12,
        metrics={"loss": 2.5, "tiny": 1e-300},
        position="cd" * 32,
        holds=(Held(SITE, "4" * 32, (_REF,)),),
    ),
    "publish": Publish(
        snapshot=SNAPSHOT, step=1200, save=12, root=_REF, tables=(), groups=(), source=SITE
    ),
    "hold": Hold(
        hold="4" * 32, snapshot=SNAPSHOT, save=12, home=SITE, tables=(_REF,), groups=_GROUPS
    ),
    "pin": Pin(
        pin="3" * 32,
        snapshot=OLDER,
        reason="paper, table 2",
        borrower="sft@1",
        borrower_term=4,
    ),
    "unpin": Unpin("3" * 32),
    "fence": Fence(),
    "expire": Expire((OLDER,), "Keep(last=1)"),
    "condemn": Condemn(
        token="6" * 32, listing=_REF, count=2, bytes=99, groups=_GROUPS, snapshots=(OLDER,)
    ),
    "swept": Swept("6" * 32),
    "tag": Tag("best", SNAPSHOT),
    "close": Close("deleted by its owner"),
}


def record(body: AnyBody, *, seq: int = 7, term: int = 3) -> Record:
    """A record of that body."""
    return Record(
        seq=seq,
        term=term,
        lineage=LINEAGE,
        write_id="9" * 32,
        previous="ef" * 32,
        anchors=Anchors(open=1, commit=6, fence=3),
        time=1.75e9,
        body=body,
    )


def summary() -> Summary:
    """The summary of a short log."""
    fold = Fold(LINEAGE)
    for seq, body in enumerate((Fence(), Open("host", SITE, None), BODIES["commit"])):
        fold.apply(_following(fold, seq, body), lambda uses, entry: False)
    return Summary(LINEAGE, fold.seq, fold.digest, fold.export())


def examples() -> dict[str, bytes]:
    """Every kind of object of the log in its stored form, by the name of its golden file."""
    voters = (SITE, "7" * 32)
    vote = Vote(
        term=3, lineage=LINEAGE, holder="job", home=SITE, witnesses=voters, write_id="8" * 32
    )
    receipt = Receipt(term=3, lineage=LINEAGE, home=SITE, base=OLDER, write_id="8" * 32)
    lineage = Lineage(
        name="org/run", generation=2, lineage=LINEAGE, kind="run", witnesses=voters, time=1.75e9
    )
    site = SiteObject(
        format="fwstore", major=1, minor=0, site=SITE, name="wisconsin", write_id="8" * 32
    )
    rows = (CondemnedKey("packs/run@1/00/x", 1000, "orphan"),)
    return {
        **{f"record-{kind}-1.json": encode_record(record(body)) for kind, body in BODIES.items()},
        "vote-1.json": encode_vote(vote),
        "receipt-1.json": encode_vote(receipt),
        "lineage-1.json": encode_lineage(lineage),
        "name-1.json": encode_lineage(NameClaim("org/Run", "8" * 32)),
        "site-1.json": encode_site(site),
        "known-site-1.json": encode_site(
            KnownSite(name="wisconsin", site=SITE, time=1.75e9, write_id="8" * 32)
        ),
        "retired-site-1.json": encode_site(
            RetiredSite(
                name="wisconsin",
                site=SITE,
                reason="burnt down",
                witnesses=voters,
                time=1.75e9,
                write_id="8" * 32,
            )
        ),
        "claim-1.json": encode_claim(WorkClaim(holder="8" * 32, turn=7, lasts_ms=30000)),
        "condemned-1.bin": encode_condemned(CondemnedList(LINEAGE, "6" * 32, rows)),
        "summary-1.bin": encode_summary(summary()),
        "hint-1.bin": encode_hint(Hint(LINEAGE, 640, 639)),
    }


def _following(fold: Fold, seq: int, body: AnyBody) -> Record:
    return Record(
        seq=seq,
        term=3,
        lineage=LINEAGE,
        write_id="9" * 32,
        previous=fold.digest,
        anchors=fold.anchors,
        time=1.75e9,
        body=body,
    )
