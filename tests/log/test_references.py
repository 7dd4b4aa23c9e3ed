"""Sites, the catalog, pins and tags."""

from __future__ import annotations

import pytest

from fwstore.base.errors import Conflict, Corrupt, Expired, InvalidInput, NotFound, Unsupported
from fwstore.format.lineage import Lineage
from fwstore.format.record import Expire
from fwstore.log.lineage import birth, find, list_lineages, newest_generation
from fwstore.log.pins import pin, tag, unpin
from fwstore.log.site import create_site, open_site
from support.lineages import Saver, fresh_log, make_runtime, make_store, resume


def test_a_site_keeps_its_uuid() -> None:
    store = make_store()
    with pytest.raises(NotFound, match="no repository"):
        open_site(store)
    made = create_site(store, make_runtime(1), name="atlanta")
    assert create_site(store, make_runtime(2), name="other") == made
    assert open_site(store) == made
    with pytest.raises(Unsupported, match="key"):
        open_site(store, hash_key="k1")


def test_generations_are_compared_as_numbers() -> None:
    store = make_store()
    for generation in (2, 9, 10):
        made = Lineage(
            name="a", generation=generation, lineage="1" * 32, kind="run", witnesses=(), time=0.0
        )
        birth(store, made, make_runtime())
    found = newest_generation(store, "a")
    assert found is not None
    assert found.generation == 10
    assert [keys.label for keys in list_lineages(store)] == ["a@10"]


def test_another_uuid_under_a_name_is_a_conflict() -> None:
    store = make_store()
    made = Lineage(name="a", generation=1, lineage="1" * 32, kind="run", witnesses=(), time=0.0)
    birth(store, made, make_runtime())
    birth(store, made, make_runtime())
    twin = Lineage(name="a", generation=1, lineage="2" * 32, kind="run", witnesses=(), time=0.0)
    with pytest.raises(Conflict, match=f"{'1' * 32}.*{'2' * 32}"):
        birth(store, twin, make_runtime())
    store.put("catalog/b@1", [store.get("catalog/a@1", limit_bytes=1000)], mode="create")
    with pytest.raises(Corrupt, match="describes a@1"):
        find(store, "b")


@pytest.mark.parametrize("name", ["", "../x", "a@1", "_x", "x" * 500, "a//b", "a\x00"])
def test_bad_names_are_refused_before_anything_is_written(name: str) -> None:
    store = make_store()
    with pytest.raises(InvalidInput):
        resume(store, name=name)
    assert list(store.list("")) == []


def test_pins_and_tags_name_what_is_on_offer() -> None:
    store = make_store()
    saver = Saver(resume(store))
    first, second = saver.commit(0), saver.commit(1)
    log = fresh_log(store)
    token = pin(log, first.id, "paper")
    tag(log, "best", first.id)
    tag(log, "best", second.id)
    assert fresh_log(store).fold.tags == {"best": second.id}
    before = log.fold.seq
    tag(log, "best", second.id)
    assert log.fold.seq == before
    tag(log, "best", None)
    assert fresh_log(store).fold.tags == {}
    unpin(fresh_log(store), token)
    with pytest.raises(NotFound):
        unpin(log, token)
    with pytest.raises(InvalidInput):
        tag(log, "../best", first.id)
    log.append(lambda _: Expire((first.id,), "test"))
    for refused in (lambda: pin(log, first.id, "late"), lambda: tag(log, "x", first.id)):
        with pytest.raises(Expired):
            refused()
    with pytest.raises(NotFound):
        pin(log, first.id.replace("t1", "t5"), "unknown")
