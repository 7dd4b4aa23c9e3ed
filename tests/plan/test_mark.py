"""Marking: a kept key is never garbage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fwstore.format.keys import PackName
from fwstore.plan.mark import Garbage, KeySet, is_dead, next_incarnation, plan_garbage

keys = st.lists(st.text("abc", max_size=3), max_size=20)


def candidate(key: str) -> Garbage:
    return Garbage(key, 1, "test", "", 1, 1)


@given(keys, keys, keys)
def test_garbage_is_what_nobody_keeps(wanted: list[str], some: list[str], more: list[str]) -> None:
    one, other = KeySet(), KeySet()
    one.add(some)
    other.add(more[:3])
    other.add(more[3:])
    found = [garbage.key for garbage in plan_garbage(map(candidate, wanted), one, other)]
    assert found == sorted(set(wanted) - set(some) - set(more))


def test_keyset_errs_towards_keeping() -> None:
    """Keys of one hash are one key to the set: the second is kept, never deleted."""

    class Colliding(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return 7

    kept = KeySet()
    kept.add([Colliding("living")])
    assert plan_garbage([candidate(Colliding("dead"))], kept) == []


def test_what_may_still_be_committed_is_not_dead() -> None:
    saves = {3: 5}
    assert not is_dead(3, 6, 3, saves)
    assert is_dead(3, 5, 3, saves)
    assert is_dead(3, 6, 4, saves)
    assert not is_dead(4, 1, 4, saves)
    assert not is_dead(5, 1, 4, saves)


def test_h5_a_condemned_name_is_written_again_under_the_next_incarnation() -> None:
    pack = PackName("run", 1, 0, 1, 1, 0, 0, "a" * 16)
    gone = {pack}
    second = next_incarnation(pack, gone.__contains__)
    assert second.incarnation == 1
    gone.add(second)
    assert next_incarnation(pack, gone.__contains__).incarnation == 2
    assert next_incarnation(pack, set().__contains__) == pack
