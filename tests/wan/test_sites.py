"""Knowing other sites: by uuid, create-once, and no longer waited for than they are worth."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import fwstore
from fwstore.base.errors import Conflict, InvalidInput, NotFound, Unavailable
from fwstore.log.site import Site
from fwstore.sched import Runtime
from fwstore.store.base import Store
from fwstore.wan.sites import Silence
from support.lineages import keys_under
from support.topologies import Places, places


def save(repository: fwstore.Repository, step: int, name: str = "run") -> None:
    with repository.run(name).writer() as writer:
        writer.save(step, {"w": np.arange(4.0)}).result()


def silent_of(repository: fwstore.Repository) -> list[str]:
    names = [name for name in repository.topology.sites if name != repository.site]
    return [a.name for a in repository.sites.answers(names) if isinstance(a, Silence)]


def test_opening_and_reading_one_store_asks_no_other_site(sites: Places) -> None:
    with sites.open("a") as repository:
        assert repository.site == "a"
        assert not repository.run("run").exists()
    assert sites.asked == {}
    assert not keys_under(sites.store("a"), "")


def test_the_first_writer_makes_all_sites_and_remembers_them(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    uuids = {}
    for name in sites.urls:
        assert keys_under(sites.store(name), "fwstore.json"), name
    assert keys_under(sites.store("a"), "sites/") == ["sites/b", "sites/w"]
    with sites.open("b") as repository:
        home = repository.sites.home()
        assert home.name == "b"
        uuids = {s.name: s.uuid for s in repository.sites.reachable()}
        assert set(uuids) == {"a", "w"}
        assert home.uuid not in uuids.values()
    # Reading remembers nothing.
    assert keys_under(sites.store("b"), "sites/") == []


def test_saving_asks_no_other_site(sites: Places) -> None:
    with sites.open("a") as repository, repository.run("run").writer() as writer:
        writer.save(1, {"w": np.arange(4.0)}).result()
        asked = dict(sites.asked)
        for step in (2, 3):
            writer.save(step, {"w": np.arange(4.0) + step}).result()
        assert sites.asked == asked


def test_the_local_site_is_named_by_the_environment(
    sites: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FWSTORE_SITE", "b")
    with fwstore.open(sites.file) as repository:
        assert repository.site == "b"
    monkeypatch.delenv("FWSTORE_SITE")
    with pytest.raises(InvalidInput, match="FWSTORE_SITE: a or b"):
        fwstore.open(sites.file)


def test_swapped_endpoints_are_refused_and_both_uuids_named(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
        uuids = {s.name: s.uuid for s in repository.sites.reachable()}
    urls = dict(sites.urls)
    sites.urls |= {"b": urls["w"], "w": urls["b"]}
    sites.write(roles={"w": "witness"})
    with sites.open("a") as repository, pytest.raises(Conflict) as told:
        repository.sites.reachable()
    assert uuids["b"] in told.value.message
    assert uuids["w"] in told.value.message
    # The local store is looked at when it is opened.
    with pytest.raises(Conflict, match="are the stores of two"):
        sites.open("b")


def test_swapped_endpoints_are_seen_by_name_before_anything_was_remembered(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    urls = dict(sites.urls)
    sites.urls |= {"a": urls["w"], "w": urls["a"]}
    sites.write(roles={"w": "witness"})
    with sites.open("b") as repository, pytest.raises(Conflict, match="are the stores of two"):
        repository.sites.reachable()


def test_a_uuid_that_the_topology_names_must_be_that_of_the_store(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    text = sites.file.read_text()
    sites.file.write_text(text.replace("[sites.b]", f'[sites.b]\nuuid = "{"7" * 32}"'))
    with sites.open("a") as repository, pytest.warns(UserWarning, match="7" * 32):
        assert isinstance(repository.sites.ask("b"), Silence)
    with pytest.raises(Conflict, match="7" * 32):
        sites.open("b")


def test_a_uuid_that_the_topology_names_is_that_of_a_store_that_is_made(sites: Places) -> None:
    text = sites.file.read_text()
    sites.file.write_text(text.replace("[sites.b]", f'[sites.b]\nuuid = "{"7" * 32}"'))
    with sites.open("a") as repository:
        save(repository, 1)
        answer = repository.sites.ask("b")
    assert isinstance(answer, Site)
    assert answer.uuid == "7" * 32


def test_a_store_under_two_names_is_refused(tmp_path: Path) -> None:
    """By uuid: two addresses of one store need not look alike."""
    with places(tmp_path) as sites:
        with fwstore.open(sites.urls["b"]) as alone:
            save(alone, 1)
        store, other = sites.store("b"), sites.store("w")
        other.put("fwstore.json", [store.get("fwstore.json", limit_bytes=9999)], mode="create")
        with sites.open("a") as repository, pytest.raises(InvalidInput, match="twice: b, w"):
            save(repository, 1)


def test_a_site_that_was_wiped_is_silent_until_it_is_retired(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    sites.wipe("w")
    with sites.open("a") as repository:
        with pytest.warns(UserWarning, match=r"w is silent: .*wiped"):
            save(repository, 2)
        assert silent_of(repository) == ["w"]
    assert keys_under(sites.store("w"), "") == [], "a wiped witness does not become one again"


def test_a_site_that_was_wiped_and_made_anew_is_another_one(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
        before = repository.sites.ask("w")
    sites.wipe("w")
    with fwstore.open(sites.urls["w"], site="w") as alone:
        save(alone, 1)
        now = alone.sites.home().uuid
    with sites.open("a") as repository:
        # The run goes on with the other witnesses; that one may not vote.
        with pytest.warns(UserWarning, match="wiped and made anew") as told:
            save(repository, 2)
        assert silent_of(repository) == ["w"]
    assert isinstance(before, Site)
    assert before.uuid in str(told[0].message)
    assert now in str(told[0].message)
    assert keys_under(sites.store("w"), "meta/run@1/_term/00000002") == []


def test_an_empty_store_is_no_site_while_somebody_who_may_have_met_it_is_silent(
    sites: Places,
) -> None:
    """Else `b`, which never met the witness, founds anew what `a` has had votes from: two electorates without a common member."""
    with sites.open("a") as repository:
        save(repository, 1)
    sites.wipe("w")
    sites.cut = {"a"}
    with (
        sites.open("b") as repository,
        pytest.warns(UserWarning, match="is silent"),
        pytest.raises(Unavailable),
    ):
        save(repository, 1)
    assert keys_under(sites.store("w"), "") == []
    sites.cut = set()
    with sites.open("b") as repository:
        with pytest.warns(UserWarning, match="others have met it"):
            save(repository, 2)
        assert silent_of(repository) == ["w"]
    assert keys_under(sites.store("w"), "") == []


def test_a_home_is_founded_when_all_who_may_have_met_it_answer(sites: Places) -> None:
    with sites.open("b") as repository:
        save(repository, 1)
    sites.wipe("a")
    sites.cut = {"b"}
    with (
        sites.open("a") as repository,
        pytest.warns(UserWarning, match="b is silent"),
        pytest.raises(Unavailable, match="is empty, and not every site"),
    ):
        save(repository, 1)
    assert keys_under(sites.store("a"), "") == []


def test_a_home_that_was_wiped_is_not_begun_anew(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    with sites.open("b") as repository:
        save(repository, 2)
    sites.wipe("a")
    with sites.open("a") as repository, pytest.raises(Conflict, match="was wiped"):
        save(repository, 3)
    assert keys_under(sites.store("a"), "") == []
    with fwstore.open(sites.urls["a"], site="a") as alone:
        save(alone, 1)
    with sites.open("a") as repository, pytest.raises(Conflict, match="others have met a"):
        save(repository, 3)


def test_a_silent_site_is_told_of_once_and_asked_again_after_a_pause(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
    sites.cut = {"b"}
    with sites.open("a") as repository, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        save(repository, 2)
        assert silent_of(repository) == ["b"]
        asked = sites.asked["b"]
        for step in (3, 4):
            save(repository, step)
        assert sites.asked["b"] == asked, "within the pause it costs nothing"
        sites.cut = set()
        repository.sites._known["b"].ask_again = 0.0
        assert silent_of(repository) == []
    assert len([w for w in told if "site b is silent" in str(w.message)]) == 1


def test_a_site_whose_bucket_was_deleted_is_silent_whenever_that_is_noticed(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)
        assert len(repository.sites.reachable()) == 2
        sites.deleted = {"b", "w"}
        # Met before: the votes and the log are asked for in vain.
        with pytest.warns(UserWarning, match="silent: .*does not exist"):
            assert repository.run("run").latest().step == 1
        assert repository.run("run").unheard() == ("b", "w")
    sites.deleted = {"b"}
    with sites.open("a") as repository:
        with pytest.warns(UserWarning, match="b is silent"):
            save(repository, 2)
        assert silent_of(repository) == ["b"]
        assert repository.run("run").latest().step == 2


def test_an_address_of_another_site_that_cannot_be_opened_makes_it_silent(sites: Places) -> None:
    with sites.open("a") as repository:
        save(repository, 1)

    def open_far(url: str, runtime: Runtime, options: object) -> Store:
        if url == sites.urls["b"]:
            raise InvalidInput("there is no profile of that name")
        return sites.far(url, runtime, options)

    with mock.patch("fwstore.wan.sites.open_store", open_far), sites.open("a") as repository:
        with pytest.warns(UserWarning, match="b is silent: there is no profile"):
            save(repository, 2)
        assert repository.replicate().copied == ()


def test_every_site_is_opened_with_the_credentials_that_belong_to_it(sites: Places) -> None:
    text = sites.file.read_text()
    sites.file.write_text(text.replace("[sites.b]", '[sites.b]\nprofile = "far"'))
    profiles: dict[str, str | None] = {}

    def open_far(url: str, runtime: Runtime, options: object) -> Store:
        name = next(name for name, known in sites.urls.items() if known == url)
        profiles[name] = runtime.environment.text("AWS_PROFILE")
        assert runtime.limits.request_timeout_s == runtime.limits.site_timeout_s
        return sites.store(name)

    # Undone before the fixture undoes its own, which a monkeypatch would not be.
    with mock.patch("fwstore.wan.sites.open_store", open_far), sites.open("a") as repository:
        save(repository, 1)
        assert repository.runtime.environment.text("AWS_PROFILE") is None
    assert profiles == {"b": "far", "w": None}


def test_a_store_opened_by_its_address_is_a_site_alone(tmp_path: Path) -> None:
    with fwstore.open(tmp_path / "store") as repository:
        with pytest.raises(NotFound):
            repository.runs()
        save(repository, 1)
        assert (repository.site, list(repository.topology.sites)) == ("", [""])
        assert keys_under(repository.store, "sites/") == []


def test_options_of_one_store_are_not_those_of_several(sites: Places) -> None:
    with pytest.raises(InvalidInput, match="names several: write them into the topology"):
        fwstore.open(sites.file, site="a", options={"region": "x"})
