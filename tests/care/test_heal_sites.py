"""`verify(repair=True)` as people call it: at a site of a topology, at an only site, over a link with a cap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fwstore
from support.coordinators import ThreadJob
from support.repairs import KEYS, cut, everything, flip, kept, lose, snapshots_and_packs
from support.sharded import divided, rows
from support.topologies import Places, places

STATE = {"w": np.arange(5000.0), "b": np.arange(7, dtype=np.int16)}


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Places]:
    """Three sites that have the same checkpoint, and a witness; the link from `a` to `b` has a cap."""
    link = '[[links]]\nfrom = "a"\nto = "b"\ncap = "1 Gbit/s"'
    with places(tmp_path, ("a", "b", "c", "w")) as made:
        made.write(link, {"w": "witness"})
        with made.open("a") as repository, repository.run("run").writer() as writer:
            writer.save(1, STATE).result()
        for name in ("b", "c"):
            with made.open(name) as repository:
                assert not repository.replicate().left
        yield made


def one_of(sites: Places, part: str) -> str:
    return next(key for key in sorted(everything(sites.store("b"))) if part in key)


def hurt(sites: Places) -> dict[str, bytes]:
    """Damage the checkpoint at `b` in several ways; return what it was."""
    store = sites.store("b")
    before = snapshots_and_packs(store)
    flip(store, one_of(sites, f"{KEYS.packs}"), 90)
    lose(store, one_of(sites, "/root"))
    cut(store, one_of(sites, "/leaf-"))
    return before


def test_one_call_heals_from_the_nearest_site_over_its_link(sites: Places) -> None:
    before = hurt(sites)
    with sites.open("b") as repository:
        report = repository.verify(level="data", repair=True)
        assert {one.key: one.sites for one in report.repairs} == {
            problem.key: ("a",) for problem in report.problems
        }
        assert len(report.repairs) == 3
        assert not report.left
        # Its bytes give way to all others, and none crossed unseen.
        assert list(repository.links._rates) == [("a", False, True)]
        assert repository.links.bytes_received()["a"] > len(STATE["w"]) * 8
        assert repository.links.statistics() == {}
        assert {info.key for info in report.quarantined} == set(kept(sites.store("b")))
        assert len(report.quarantined) == 2
        loaded = repository.run("run")[1].load()
    assert snapshots_and_packs(sites.store("b")) == before
    assert all(loaded[name].tobytes() == value.tobytes() for name, value in STATE.items())


def test_without_repair_nothing_is_written_and_nobody_is_asked(sites: Places) -> None:
    hurt(sites)
    before = everything(sites.store("b"))
    sites.asked.clear()
    with sites.open("b") as repository:
        report = repository.verify(level="data")
    assert report.left == report.problems != ()
    assert report.repairs == ()
    assert everything(sites.store("b")) == before
    assert not sites.asked


def test_a_site_that_is_silent_is_passed_over_and_named_when_nobody_else_can_help(
    sites: Places,
) -> None:
    before = hurt(sites)
    damaged = everything(sites.store("b"))
    sites.cut |= {"a", "c"}
    with pytest.warns(UserWarning, match="silent"), sites.open("b") as repository:
        report = repository.verify(level="data", repair=True)
    assert report.left == report.problems != ()
    assert all("site a is silent" in one.reason for one in report.repairs)
    assert all("site c is silent" in one.reason for one in report.repairs)
    assert everything(sites.store("b")) == damaged
    sites.cut -= {"c"}
    with pytest.warns(UserWarning, match="silent"), sites.open("b") as repository:
        report = repository.verify(level="data", repair=True)
    assert {one.sites for one in report.repairs} == {("c",)}
    assert not report.left
    assert snapshots_and_packs(sites.store("b")) == before


def test_a_site_without_others_tells_what_is_damaged_and_that_it_is_alone(tmp_path: Path) -> None:
    with fwstore.open(tmp_path / "only") as repository:
        with repository.run("run").writer() as writer:
            writer.save(1, STATE).result()
        pack = next(iter(repository.store.list("packs/"))).key
        lose(repository.store, pack)
        report = repository.verify(repair=True)
        assert {p.tensor for p in report.left} == {"w", "b"}
        (one,) = report.repairs
        assert (one.key, one.healed, one.reason) == (
            pack,
            False,
            "there is no other site that could have it",
        )
        assert report.quarantined == ()


def test_a_run_whose_name_cannot_be_read_is_told_and_the_others_are_healed(sites: Places) -> None:
    with sites.open("b") as repository, repository.run("other").writer() as writer:
        writer.save(1, STATE).result()
    store = sites.store("b")
    flip(store, "catalog/other@1", 40)
    before = hurt(sites)
    with sites.open("b") as repository:
        report = repository.verify(level="data", repair=True)
    assert {(p.run, p.key) for p in report.left} == {("other", "catalog/other@1")}
    assert {one.key for one in report.repairs if not one.healed} == {"catalog/other@1"}
    assert snapshots_and_packs(store) == before


def test_what_was_born_at_several_sites_is_healed_where_it_belongs(tmp_path: Path) -> None:
    state = {"w": np.arange(40_000.0).reshape(80, 500)}
    with places(tmp_path) as sites:
        ranks = [sites.open(name) for name in ("a", "a", "b", "b")]
        with ThreadJob("", len(ranks), repositories=ranks) as job:
            job.save(0, divided(state, rows(len(ranks))))
        home = sites.store("a")
        born = everything(home)
        (held,) = [key for key in born if "/_hold/" in key]
        flip(home, held, 90)
        with sites.open("a") as repository:
            report = repository.verify(level="data", repair=True)
            assert {one.key: one.sites for one in report.repairs if one.healed} == {held: ("b",)}
            assert not report.left
            assert {k: v for k, v in everything(home).items() if k not in kept(home)} == born
            repository.replicate()
        with sites.open("b") as repository:
            repository.replicate()
        whole = snapshots_and_packs(home)
        assert len([key for key in whole if key.startswith("packs/")]) == len(ranks)
        for number, key in enumerate(whole):
            (flip, cut, lose)[number % 3](home, key)
        with sites.open("a") as repository:
            assert not repository.verify(level="data", repair=True).left
            assert snapshots_and_packs(home) == whole
            loaded = repository.run("run")[0].load()
        assert loaded["w"].tobytes() == state["w"].tobytes()


def test_bad_bytes_are_removed_run_by_run(sites: Places) -> None:
    hurt(sites)
    with sites.open("b") as repository:
        repository.verify(level="data", repair=True)
        with repository.run("other").writer() as writer:
            writer.save(1, STATE).result()
        assert repository.gc().bytes_freed == 0
        repository.gc(run="other", quarantine=True)
        assert len(kept(sites.store("b"))) == 2
        repository.gc(quarantine=True)
    assert kept(sites.store("b")) == {}
