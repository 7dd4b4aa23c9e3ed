"""One snapshot from several sites: what was asked in vain is not asked again, what came is not read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fwstore.base.errors import Corrupt
from fwstore.care.gc import GcOptions, collect
from fwstore.codec.hashing import ContentHash
from fwstore.format.groups import GroupRange
from fwstore.format.record import Expire, Hold
from fwstore.store.base import Store
from fwstore.wan import pull
from fwstore.wan.copy import Supply
from fwstore.wan.pull import Puller
from support.faults import Fault, FaultyStore, Operation
from support.lineages import SITE, fresh_log, make_store, pack_keys
from support.replicas import THIRD, published, replicate
from support.through import inline_runtime, known, offers, saved


def puller(far: Store) -> Puller:
    log = fresh_log(far)
    return Puller(log, inline_runtime(), ContentHash())


def copies_of_one(step: int = 10) -> tuple[Store, Store]:
    """Two sites that have the same checkpoint under the same names."""
    near = saved(make_store(), step)
    third = make_store()
    replicate(third, near)
    return near, third


def lose_a_pack(*stores: Store) -> str:
    lost = max(pack_keys(stores[0], fresh_log(stores[0]).keys))
    for store in stores:
        store.delete([lost])
    return lost


def pull_in_vain(far: FaultyStore, *sources: Store) -> None:
    known(far.inner, getattr(sources[0], "inner", sources[0]))
    (entry,) = fresh_log(getattr(sources[0], "inner", sources[0])).fold.live()
    with pytest.raises(Corrupt, match="are missing"):
        puller(far).pull(offers(sources, entry.id))


def read_again(far: FaultyStore) -> list[str]:
    return [o.key for o in far.operations if o.key.startswith("packs/") and "get" in o.name]


def test_a_pack_that_nobody_has_is_asked_of_everybody_once() -> None:
    near, third = copies_of_one()
    lost = lose_a_pack(near, third)
    far, other = FaultyStore(make_store()), FaultyStore(third)
    pull_in_vain(far, near, other)
    assert len([o for o in other.operations if o.key == lost]) == 1
    assert not [o for o in other.operations if o.key.startswith("meta/")]
    assert read_again(far) == []


def test_who_holds_packs_for_one_of_those_alike_is_asked_too() -> None:
    near, third = copies_of_one()
    holder = saved_again(near)
    lose_a_pack(near, third)
    far = make_store()
    known(far, near)
    (entry,) = fresh_log(near).fold.live()
    first, second = offers([near, third], entry.id)
    second = replace(second, held=(Supply("holder", holder),))
    assert puller(far).pull([first, second]).source == SITE
    assert published(far) == [10]


def saved_again(store: Store) -> Store:
    """The same objects in another store."""
    copied = make_store()
    for info in store.list("packs/"):
        copied.put(info.key, [store.get(info.key, limit_bytes=1 << 20)], mode="create")
    return copied


def test_what_came_is_not_read_again_for_a_site_with_other_names() -> None:
    near, third = saved(make_store(), 10), make_store()
    replicate(third, near)
    # At the third site its packs were condemned once, so they have other names there.
    (entry,) = fresh_log(third).fold.live()
    fresh_log(third).append(lambda _: Expire((entry.id,), "simulated"))
    collect(fresh_log(third), GcOptions())
    saved(near, 20)
    replicate(third, near)
    (last,) = fresh_log(third).fold.live()
    near_offer = next(e for e in fresh_log(near).fold.live() if e.id == last.id)
    assert near_offer.root != last.root
    packs = 0

    def dies(operation: Operation) -> Fault | None:
        nonlocal packs
        packs += operation.name == "get_range"
        return "fail" if packs > 2 else None

    far, dying = FaultyStore(make_store()), FaultyStore(near, dies)
    known(far.inner, near)
    pulled = puller(far).pull(offers([dying, third], last.id))
    assert pulled.source == THIRD
    assert packs > 2
    assert read_again(far) == []


def test_intents_may_come_while_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread of the process appends to the same log while this one looks whether its own intent stands."""
    near, _ = copies_of_one()
    far = make_store()
    known(far, near)
    (entry,) = fresh_log(near).fold.live()
    made = puller(far)

    def append(name: str) -> None:
        made.log.append(
            lambda _: Hold(
                hold=name * 32,
                snapshot=entry.id,
                save=entry.save,
                home=offers([near], entry.id)[0].site,
                tables=(),
                groups=entry.groups,
                intent=True,
            ),
            term=entry.term,
        )

    append("1")
    append("2")
    names = iter("3456789")

    def covers(_: Sequence[GroupRange], __: Sequence[GroupRange]) -> bool:
        append(next(names))
        return False

    with monkeypatch.context() as patch:
        patch.setattr(pull, "groups_cover", covers)
        assert not made._stands(made.log.fold, entry, entry.groups)
    assert made._stands(made.log.fold, entry, entry.groups)
