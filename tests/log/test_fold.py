"""What counts: a pure function of the slots, written down as examples and as properties."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.base.errors import Corrupt
from fwstore.format.groups import group_ranges
from fwstore.format.record import (
    Anchors,
    AnyBody,
    Close,
    Commit,
    Condemn,
    Expire,
    Fence,
    Hold,
    ObjectRef,
    Open,
    Pin,
    Publish,
    Record,
    Swept,
    Tag,
    Unpin,
)
from fwstore.format.summary import CondemnEntry, FoldState
from fwstore.log.fold import GONE_MAX, Fold, Refusal, Uses
from support.stored import LINEAGE, SITE

REF = ObjectRef("ab" * 32, 10)
CONDEMN = "c" * 32


def name(save: int, term: int = 1) -> str:
    return f"{save * 10:012d}-t{term}-s{save}-{save:016x}"


def commit(save: int, term: int = 1, groups: Sequence[tuple[int, int]] = ()) -> Commit:
    return Commit(
        snapshot=name(save, term),
        step=save * 10,
        save=save,
        root=REF,
        tables=(REF,),
        groups=group_ranges([(term, save), *groups]),
    )


def condemn(*groups: tuple[int, int], snapshots: Sequence[str] = ()) -> Condemn:
    return Condemn(
        token=CONDEMN,
        listing=REF,
        count=1,
        bytes=1,
        groups=group_ranges(groups),
        snapshots=tuple(snapshots),
    )


def meets(uses: Uses, entry: CondemnEntry) -> bool:
    return True


def misses(uses: Uses, entry: CondemnEntry) -> bool:
    return False


def following(fold: Fold, body: AnyBody, term: int = 1, anchors: Anchors | None = None) -> Record:
    """The record that a process that read everything would append."""
    return Record(
        seq=fold.seq + 1,
        term=term,
        lineage=LINEAGE,
        write_id="9" * 32,
        previous=fold.digest,
        anchors=anchors or fold.anchors,
        time=1.0 * (fold.seq + 1),
        body=body,
    )


def folded(*bodies: tuple[AnyBody, int]) -> Fold:
    fold = Fold(LINEAGE)
    for body, term in bodies:
        fold.apply(following(fold, body, term), misses)
    return fold


def verdict(fold: Fold, body: AnyBody, term: int = 1) -> Refusal | None:
    """What a writer is told before it appends, where keys are shared wherever groups are."""
    return fold.refusal(following(fold, body, term), meets, trust_anchor=False)


@pytest.mark.parametrize("body", [commit(3), Open("job", SITE, None)])
def test_behind_a_higher_fence_nothing_of_a_writer_counts(body: AnyBody) -> None:
    fold = folded((commit(1), 1), (Fence(), 2))
    assert verdict(fold, body, 1) is Refusal.FENCED
    record = following(fold, body, 1)
    assert not fold.apply(record, misses)
    assert fold.seq == record.seq
    assert name(3) not in fold.entries


def test_h12_a_fence_of_the_same_or_a_lower_term_is_an_ordinary_record() -> None:
    fold = folded((Fence(), 3), (Fence(), 2))
    assert fold.fence == 3
    assert verdict(fold, commit(1, 3), 3) is None
    assert verdict(fold, commit(1, 4), 4) is None


def test_a_second_commit_of_a_snapshot_does_not_count() -> None:
    fold = folded((commit(1), 1), (commit(2), 1))
    assert verdict(fold, commit(2)) is Refusal.DUPLICATE
    assert verdict(fold, commit(1)) is Refusal.DUPLICATE
    assert verdict(fold, commit(3)) is None


def test_a_second_open_of_a_term_does_not_count() -> None:
    fold = folded((Open("job", SITE, None), 1))
    assert verdict(fold, Open("twin", SITE, None), 1) is Refusal.DUPLICATE


def condemned_base() -> Fold:
    """Snapshot 1 expired and was condemned, packs and manifest; snapshot 2 lives."""
    return folded(
        (commit(1), 1),
        (commit(2), 1),
        (Expire((name(1),), "test"), 0),
        (condemn((1, 1), snapshots=[name(1)]), 0),
    )


@pytest.mark.parametrize(
    "body",
    [
        commit(3, groups=[(1, 1)]),
        Publish(
            snapshot=name(9), step=90, save=9, root=REF, tables=(), source=SITE,
            groups=group_ranges([(1, 1)]),
        ),
        Hold(
            hold="4" * 32, snapshot=name(9), save=9, home=SITE, tables=(REF,),
            groups=group_ranges([(1, 1)]),
        ),
        Open("job", SITE, name(1)),
    ],
)  # fmt: skip
def test_h4_nothing_that_refers_to_condemned_bytes_counts(body: AnyBody) -> None:
    """A publish, hold, pin or open behind the condemn of its packs is refused like a commit."""
    fold = condemned_base()
    assert verdict(fold, body) is Refusal.CONDEMNED
    stale = msgspec.structs.replace(fold.anchors, condemn=-1)
    assert not fold.apply(following(fold, body, 1, stale), meets)


def test_h4_a_pin_of_a_collected_snapshot_does_not_count() -> None:
    fold = condemned_base()
    assert verdict(fold, Pin(pin="3" * 32, snapshot=name(1), reason="")) is Refusal.UNKNOWN
    assert verdict(fold, Pin(pin="3" * 32, snapshot=name(2), reason="")) is None


def test_groups_that_are_apart_need_no_look_at_the_lists() -> None:
    fold = condemned_base()

    def never(uses: Uses, entry: CondemnEntry) -> bool:
        raise AssertionError("the lists need not be read")

    record = following(fold, commit(3, groups=[(1, 2)]))
    assert fold.refusal(record, never, trust_anchor=False) is None


def test_a_record_whose_writer_knew_every_condemn_is_not_checked_again() -> None:
    """Its anchor proves what its writer had read; the tables may be long gone when it is folded."""
    fold = condemned_base()
    record = following(fold, commit(3, groups=[(1, 1)]))
    assert fold.refusal(record, meets) is None
    stale = following(fold, commit(3, groups=[(1, 1)]), 1, Anchors())
    assert fold.refusal(stale, meets) is Refusal.CONDEMNED


def test_a_closed_lineage_takes_only_collection() -> None:
    fold = folded((commit(1), 1), (Close("test"), 0))
    assert fold.live() == []
    refused: list[AnyBody] = [
        commit(2),
        Open("j", SITE, None),
        Tag("a", name(1)),
        Pin(pin="3" * 32, snapshot=name(1), reason=""),
    ]
    assert {verdict(fold, body) for body in refused} == {Refusal.CLOSED}
    assert verdict(fold, condemn((1, 1), snapshots=[name(1)])) is None
    assert verdict(fold, Swept(CONDEMN)) is None
    lent = Pin(pin="4" * 32, snapshot=name(1), reason="", borrower="fork@1")
    fold = folded((commit(1), 1), (lent, 0), (Close("test"), 0))
    assert verdict(fold, Pin(pin="3" * 32, snapshot=name(1), reason="")) is None


def test_roots() -> None:
    fold = folded(
        *[(commit(save), 1) for save in (1, 2, 3, 4)],
        (Pin(pin="3" * 32, snapshot=name(1), reason="paper"), 0),
        (Open("job", SITE, name(2)), 2),
        (Expire((name(1), name(2), name(3)), "test"), 0),
    )
    assert fold.roots() == {
        name(4): "on offer",
        name(2): "base of the open term",
        name(1): "pinned: paper",
    }
    fold.apply(following(fold, Unpin("3" * 32)), misses)
    fold.apply(following(fold, Open("job", SITE, name(4)), 3), misses)
    assert set(fold.roots()) == {name(4)}


def test_a_publish_ends_the_intent_and_makes_a_snapshot() -> None:
    intent = Hold(
        hold="4" * 32, snapshot=name(1), save=1, home=SITE, tables=(), groups=(), intent=True
    )
    publish = Publish(
        snapshot=name(1), step=10, save=1, root=REF, tables=(), groups=(), source=SITE
    )
    fold = folded((intent, 1), (publish, 1))
    assert not fold.holds
    assert fold.entries[name(1)].source == SITE
    assert verdict(fold, publish) is Refusal.DUPLICATE


def test_expiry_forgets_tags_and_tags_need_a_snapshot_on_offer() -> None:
    fold = folded((commit(1), 1), (commit(2), 1), (Tag("best", name(1)), 0))
    fold.apply(following(fold, Expire((name(1), name(7)), "test")), misses)
    assert fold.tags == {}
    assert list(fold.expired) == [name(1)]
    assert verdict(fold, Tag("best", name(1))) is Refusal.UNKNOWN


def test_what_was_collected_is_remembered_for_a_while() -> None:
    fold = Fold(LINEAGE)
    for save in range(1, GONE_MAX + 50):
        fold.apply(following(fold, commit(save)), misses)
        ended = msgspec.structs.replace(
            condemn((1, save), snapshots=[name(save)]), token=f"{save:032x}"
        )
        fold.apply(following(fold, ended), misses)
    assert len(fold.gone) == GONE_MAX
    assert name(GONE_MAX) in fold.gone
    assert not fold.entries


@pytest.mark.parametrize(
    "change", [{"seq": 5}, {"lineage": "f" * 32}, {"previous": "0" * 63 + "1"}]
)
def test_a_record_that_does_not_follow_is_corrupt(change: dict[str, object]) -> None:
    fold = folded((commit(1), 1))
    record = msgspec.structs.replace(following(fold, commit(2)), **change)
    with pytest.raises(Corrupt):
        fold.apply(record, misses)


bodies = st.one_of(
    st.builds(
        commit,
        st.integers(1, 6),
        st.just(1),
        st.lists(st.tuples(st.just(1), st.integers(1, 6)), max_size=2),
    ),
    st.builds(commit, st.integers(1, 6), st.just(2)),
    st.just(Fence()),
    st.builds(Open, st.just("job"), st.just(SITE), st.none() | st.builds(name, st.integers(1, 6))),
    st.builds(lambda save: Expire((name(save),), "x"), st.integers(1, 6)),
    st.builds(lambda save: condemn((1, save), snapshots=[name(save)]), st.integers(1, 6)),
    st.builds(lambda save: Pin(pin="3" * 32, snapshot=name(save), reason="x"), st.integers(1, 6)),
    st.just(Unpin("3" * 32)),
    st.just(Swept(CONDEMN)),
    st.builds(lambda save: Tag("tag", name(save)), st.integers(1, 6)),
    st.just(Close("x")),
)


@given(st.lists(st.tuples(bodies, st.integers(1, 3)), max_size=25), st.integers(0, 25))
def test_a_summary_stands_for_the_slots_before_it(
    script: list[tuple[AnyBody, int]], cut: int
) -> None:
    """Folding all slots, and folding from a summary anywhere, give the same state and verdicts."""
    whole, resumed = Fold(LINEAGE), Fold(LINEAGE)
    for index, (body, drawn) in enumerate(script):
        term = _term_of(body, drawn)
        record = following(whole, body, term)
        assert whole.apply(record, misses) == resumed.apply(record, misses)
        if index == cut:
            state = msgspec.json.decode(msgspec.json.encode(resumed.export()), type=FoldState)
            resumed = Fold.restore(LINEAGE, resumed.seq, resumed.digest, state)
    assert whole.export() == resumed.export()
    assert whole.digest == resumed.digest


@given(st.lists(st.tuples(bodies, st.integers(1, 3)), max_size=25))
def test_invariants_hold_after_any_script(script: list[tuple[AnyBody, int]]) -> None:
    fold = Fold(LINEAGE)
    fence = 0
    for body, drawn in script:
        term = _term_of(body, drawn)
        counts = fold.apply(following(fold, body, term), misses)
        if isinstance(body, Open | Commit) and term < fence:
            assert not counts
        fence = max(fence, term if isinstance(body, Fence) else 0)
        assert fold.fence == fence
        assert fold.expired.keys() <= fold.entries.keys()
        assert set(fold.tags.values()) <= {entry.id for entry in fold.live()} or fold.closed
        assert not fold.gone.keys() & fold.entries.keys()


def _term_of(body: AnyBody, drawn: int) -> int:
    return int(body.snapshot.split("-t")[1][0]) if isinstance(body, Commit) else drawn
