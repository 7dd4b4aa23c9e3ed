"""Replication and status through the public names."""

from __future__ import annotations

import numpy as np
import pytest

import fwstore
from fwstore.base.errors import NotFound
from support.lineages import keys_under
from support.through_jobs import LIMITS
from support.topologies import Places


def save(places: Places, site: str, *steps: int) -> None:
    with places.open(site) as repository, repository.run("run").writer() as writer:
        for step in steps:
            writer.save(step, {"w": np.full(1000, float(step)), "frozen": np.ones(5000)}).result()


def steps_at(places: Places, site: str) -> list[int]:
    with places.open(site) as repository:
        return [c.step for c in repository.run("run").checkpoints()]


def test_a_site_brings_what_it_lacks(sites: Places) -> None:
    save(sites, "a", 1, 2)
    with sites.open("b") as repository:
        report = repository.replicate()
        assert [copied.step for copied in report.copied] == [2, 1]
        assert {copied.source for copied in report.copied} == {"a"}
        assert not report.troubles
        assert repository.replicate().copied == ()
    sites.cut = {"a", "w"}
    with pytest.warns(UserWarning, match="silent"):
        assert steps_at(sites, "b") == [1, 2]


def test_only_the_runs_that_were_named(sites: Places) -> None:
    save(sites, "a", 1)
    with sites.open("b") as repository:
        assert repository.replicate(runs=["other"]).copied == ()
        (plan,) = repository.replication.plan(["run"]).runs
        assert [t.step for t in plan.plan.transfers] == [1]
        assert repository.replication.plan(["other"]).runs == ()


def test_a_replication_founds_no_other_site(sites: Places) -> None:
    with sites.open("b") as repository:
        report = repository.replicate()
    assert (report.copied, report.troubles) == ((), ())
    assert keys_under(sites.store("a"), "") == []
    assert keys_under(sites.store("w"), "") == []
    assert keys_under(sites.store("b"), "") == ["fwstore.json"]
    save(sites, "a", 1)
    with sites.open("b") as repository:
        assert [copied.step for copied in repository.replicate().copied] == [1]
    assert keys_under(sites.store("b"), "sites/") == ["sites/a", "sites/w"]


def test_a_plan_tells_which_sites_could_not_be_looked_at(sites: Places) -> None:
    save(sites, "a", 1)
    with sites.open("b") as repository:
        assert repository.replication.plan().troubles == ()
    sites.cut = {"a"}
    with sites.open("b") as repository:
        with pytest.warns(UserWarning, match="silent"):
            found = repository.replication.plan()
        assert found.runs == ()
        assert [trouble.site for trouble in found.troubles] == ["a"]


def test_policies_decide_what_comes(sites: Places) -> None:
    sites.write('[[policies]]\nruns = "run"\nto = ["b"]\nevery = 2', roles={"w": "witness"})
    save(sites, "a", 1, 2, 3, 4, 5)
    with sites.open("b") as repository:
        assert [copied.step for copied in repository.replicate().copied] == [5, 4, 2]
        told = {w.site: w.verdict for w in repository.replication.explain("run", 3)}
        assert "every 2" in told["b"]
        assert told["a"] == "saved there"
        told = {w.site: w.verdict for w in repository.replication.explain("run", 4)}
        assert told["b"] == "copied there"


def test_status_tells_how_far_each_site_is_behind(sites: Places) -> None:
    save(sites, "a", 1, 2)
    with sites.open("b") as repository:
        before = repository.status()
        lags = {lag.site: lag for lag in before.lags}
        assert (lags["a"].newest_step, lags["a"].newest_there, lags["a"].missing) == (2, 2, ())
        assert (lags["b"].newest_step, lags["b"].newest_there) == (2, None)
        assert [one.step for one in lags["b"].missing] == [2, 1]
        assert lags["b"].bytes_missing > 0
        assert sum(bucket.checkpoints for bucket in lags["b"].ages) == 2
        repository.replicate()
        (lag,) = (lag for lag in repository.status().lags if lag.site == "b")
        assert (lag.newest_there, lag.missing, lag.forecast_s) == (2, (), 0.0)
        assert lag.bytes_per_second
        assert {(link.source, link.target) for link in before.links} == {("a", "b"), ("b", "a")}
        roles = {site.name: (site.role, site.witness, site.local) for site in before.sites}
        assert roles == {
            "a": ("train", True, False),
            "b": ("train", True, True),
            "w": ("witness", True, False),
        }


def test_status_names_who_is_silent(sites: Places) -> None:
    save(sites, "a", 1)
    sites.cut = {"a"}
    with sites.open("b") as repository:
        with pytest.warns(UserWarning, match="silent"):
            status = repository.status()
        (silent,) = (site for site in status.sites if site.silent_since is not None)
        assert silent.name == "a"
        assert "no answer" in silent.reason
        assert status.lags == ()


def test_a_silent_site_is_told_and_nothing_is_withdrawn(sites: Places) -> None:
    save(sites, "a", 1)
    with sites.open("b") as repository:
        found = repository.find("run")
        assert found is None
        repository.replicate()
    save(sites, "a", 2)
    sites.cut = {"a"}
    with sites.open("b") as repository:
        with pytest.warns(UserWarning, match="silent"):
            report = repository.replicate()
        assert [trouble.site for trouble in report.troubles] == ["a"]
        assert report.withdrawn == 0
    sites.cut = set()
    with sites.open("b") as repository:
        assert [copied.step for copied in repository.replicate().copied] == [2]


def test_a_repository_of_one_site_has_nothing_to_bring(tmp_path: object) -> None:
    with fwstore.open(str(tmp_path), limits=LIMITS) as repository:
        with repository.run("run").writer() as writer:
            writer.save(1, {"w": np.ones(3)}).result()
        assert repository.replicate().copied == ()
        (lag,) = repository.status().lags
        assert (lag.newest_there, lag.missing) == (1, ())
        plan = repository.replication.resume_plan("run")
        assert (plan.step, plan.wan_bytes, plan.seconds) == (1, 0, 0.0)


def test_a_resume_plan_tells_from_where_every_byte_would_come(sites: Places) -> None:
    sites.write('[[links]]\nfrom = "a"\nto = "b"\ncap = "1 MB/s"', roles={"w": "witness"})
    save(sites, "a", 1)
    with sites.open("b") as repository:
        repository.replicate()
    save(sites, "a", 2)
    with sites.open("b") as repository:
        plan = repository.replication.resume_plan("run")
        here, there = plan.sources
        assert (plan.step, here.site, there.site) == (2, "b", "a")
        assert here.packs >= 1
        assert here.size_bytes > there.size_bytes > 8000
        assert plan.wan_bytes == there.size_bytes
        assert plan.seconds == pytest.approx(there.size_bytes / 1e6)
        access = repository.find("run")
        assert access is not None
        assert not access.log.refresh().holds
    with sites.open("a") as repository:
        plan = repository.replication.resume_plan("run")
        assert (plan.wan_bytes, plan.seconds, [s.site for s in plan.sources]) == (0, 0.0, ["a"])


def test_what_nobody_knows_is_not_found(sites: Places) -> None:
    save(sites, "a", 1)
    with sites.open("b") as repository:
        with pytest.raises(NotFound, match="a run nothing"):
            repository.replication.resume_plan("nothing")
        with pytest.raises(NotFound, match="step 7"):
            repository.replication.explain("run", 7)


def test_what_is_only_elsewhere_is_not_given_up_here(sites: Places) -> None:
    save(sites, "a", 1)
    with sites.open("b") as repository:
        repository.replicate()
    save(sites, "a", 2)
    with sites.open("b") as repository:
        with pytest.raises(NotFound, match="step 2 of run run is not at this site but at a"):
            repository.run("run").remove(2)
        assert [copied.step for copied in repository.replicate().copied] == [2]


def test_what_was_given_up_at_a_site_is_not_missing_there(sites: Places) -> None:
    save(sites, "a", 1, 2)
    with sites.open("b") as repository:
        repository.replicate()
        repository.run("run").remove(1)
        (lag,) = (lag for lag in repository.status().lags if lag.site == "b")
        assert lag.missing == ()
        told = {w.site: w.verdict for w in repository.replication.explain("run", 1)}
        assert told == {"a": "saved there", "b": "was expired and is not fetched again"}


def lag_at(places: Places, site: str, asked_at: str = "a") -> fwstore.Lag | None:
    with places.open(asked_at) as repository:
        return next((lag for lag in repository.status().lags if lag.site == site), None)


def test_a_run_that_was_deleted_at_a_site_is_not_missing_there(sites: Places) -> None:
    save(sites, "a", 1, 2)
    with sites.open("b") as repository:
        repository.replicate()
        repository.run("run").delete("not wanted here")
        repository.gc()
    assert lag_at(sites, "b") is None
    there = lag_at(sites, "a", asked_at="b")
    assert there is not None
    assert (there.newest_there, there.missing) == (2, ())
    with sites.open("a") as repository:
        told = {w.site: w.verdict for w in repository.replication.explain("run", 2)}
        assert told["b"] == "the run was deleted there"


def test_what_a_site_gave_up_long_ago_is_not_missing_there(
    sites: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fwstore.log.fold.GONE_MAX", 1)
    save(sites, "a", 1, 2, 3, 4)
    with sites.open("b") as repository:
        repository.replicate()
        repository.gc(run="run", keep=fwstore.Keep(last=1))
    lag = lag_at(sites, "b")
    assert lag is not None
    assert lag.missing == ()


def test_nothing_is_told_of_a_site_whose_log_could_not_be_read(sites: Places) -> None:
    save(sites, "a", 1)
    with sites.open("b") as repository:
        repository.replicate()
    key = next(key for key in keys_under(sites.store("b"), "catalog/") if key.endswith("run@1"))
    sites.store("b").put(key, [b"damaged"], mode="overwrite")
    with sites.open("a") as repository:
        status = repository.status()
        assert [lag.site for lag in status.lags] == ["a"]
        assert any("b, run@1" in trouble for trouble in status.troubles)
        told = {w.site: w.verdict for w in repository.replication.explain("run", 1)}
        assert told["b"] == "unknown: its log could not be read"
