"""A site that was lost for good: who must agree that it is, and what follows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fwstore
from fwstore.base.errors import Conflict, Fenced, InvalidInput, NotFound, Unavailable
from fwstore.format.keys import retired_key
from fwstore.log.site import Site
from fwstore.wan.sites import Silence
from support.lineages import keys_under
from support.topologies import Places, places

STATE = {"w": np.arange(4.0)}
LOST = "burnt down"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nobody is interested in what is told of silent sites here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="site . is silent")
        yield


@pytest.fixture
def trains(tmp_path: Path) -> Iterator[Places]:
    """Three sites that train and vote, of which `c` has begun a run that `a` went on with."""
    with places(tmp_path, ("a", "b", "c"), {}) as sites:
        save(sites, "c", 1)
        replicate(sites, "a")
        save(sites, "a", 2)
        replicate(sites, "b")
        yield sites


def save(sites: Places, at: str, *steps: int, run: str = "run") -> None:
    with sites.open(at) as repository, repository.run(run).writer() as writer:
        for step in steps:
            writer.save(step, {"w": STATE["w"] * step}).result()


def replicate(sites: Places, to: str) -> list[int]:
    with sites.open(to) as repository:
        return [copied.step for copied in repository.replicate().copied]


def retire(sites: Places, at: str, name: str, *, force: bool = False) -> fwstore.Retirement:
    with sites.open(at) as repository:
        return repository.retire_site(name, reason=LOST, force=force)


def uuid_of(sites: Places, name: str) -> str:
    with sites.open(name) as repository:
        return repository.sites.home().uuid


def answer_of(sites: Places, at: str, name: str) -> Site | Silence:
    with sites.open(at) as repository:
        return repository.sites.ask(name)


def steps(sites: Places, at: str) -> list[int]:
    with sites.open(at) as repository:
        return [checkpoint.step for checkpoint in repository.run("run").checkpoints(elsewhere=True)]


def test_a_majority_that_counts_the_retired_site_agrees(trains: Places) -> None:
    lost = uuid_of(trains, "c")
    trains.cut = {"c"}
    found = retire(trains, "a", "c")
    assert (found.uuid, found.held_at, found.forced) == (lost, ("a", "b"), False)
    for name in "ab":
        assert keys_under(trains.store(name), "_site/") == [retired_key(lost)]
    # One of three is none, and nothing is written before it is known that a majority can agree.
    trains.cut = {"b", "c"}
    with pytest.raises(Unavailable, match="2 of 3 are needed, and a can agree"):
        retire(trains, "a", "b")
    assert len(keys_under(trains.store("a"), "_site/")) == 1


def test_one_of_two_does_not_suffice_but_by_force(tmp_path: Path) -> None:
    with places(tmp_path, ("a", "b"), {}) as sites:
        save(sites, "a", 1)
        sites.cut = {"b"}
        with pytest.raises(Unavailable, match=r"2 of 2 are needed.*two histories"):
            retire(sites, "a", "b")
        with pytest.raises(Unavailable, match="too few witnesses"):
            save(sites, "a", 2)
        assert retire(sites, "a", "b", force=True).forced
        save(sites, "a", 2)
        assert steps(sites, "a") == [1, 2]


def test_a_run_that_votes_elsewhere_must_agree_too(trains: Places) -> None:
    """Its electorate was that of another topology."""
    alone = trains.file.read_text()
    trains.file.write_text('witnesses = ["c"]\n' + alone)
    save(trains, "c", 1, run="of-one")
    replicate(trains, "a")
    trains.file.write_text(alone)
    trains.cut = {"c"}
    with pytest.raises(Unavailable, match="1 of 1 are needed, and none can agree"):
        retire(trains, "a", "c")
    assert retire(trains, "a", "c", force=True).forced
    save(trains, "a", 5, run="of-one")


def test_a_site_that_answers_is_retired_by_force_alone(trains: Places) -> None:
    with pytest.raises(InvalidInput, match="answers: only a site that is lost"):
        retire(trains, "a", "c")
    found = retire(trains, "a", "c", force=True)
    # A majority has agreed: it is no matter of one operator's word.
    assert not found.forced
    assert [key for key in keys_under(trains.store("a"), "_site/") if "lost" in key] == []


def test_what_cannot_be_retired_is_named(trains: Places) -> None:
    with trains.open("a") as repository:
        for name in ("a", "x"):
            with pytest.raises(InvalidInput, match="can be retired: b or c"):
                repository.retire_site(name, reason=LOST)
    with trains.open("a") as repository, pytest.raises(InvalidInput):
        repository.retire_site("c", reason="x" * 2000, force=True)
    trains.urls["d"] = trains.urls["a"] + "-more"
    trains.write()
    with trains.open("a") as repository:
        trains.cut = {"d"}
        with pytest.raises(NotFound, match="nobody has met site d"):
            repository.retire_site("d", reason=LOST)


def test_a_witness_that_was_never_met_leaves_the_electorate_unknown(trains: Places) -> None:
    trains.urls["d"] = trains.urls["a"] + "-more"
    trains.write()
    trains.cut = {"c", "d"}
    with pytest.raises(Unavailable, match="witness d was never met"):
        retire(trains, "a", "c")


def test_a_retired_site_that_comes_back_may_not_write(trains: Places) -> None:
    trains.cut = {"c"}
    retire(trains, "a", "c")
    trains.cut = set()
    with trains.open("c") as repository, pytest.raises(Fenced, match=LOST):
        repository.run("run").writer()
    # Whom it hears first is enough: it may be cut off from the other.
    trains.cut = {"b"}
    with trains.open("c") as repository, pytest.raises(Fenced, match="was retired"):
        repository.run("run").writer()
    trains.cut = set()
    save(trains, "a", 3)
    assert keys_under(trains.store("c"), "meta/run@1/_term/00000003") == []


def test_what_a_job_commits_at_a_retired_site_is_never_history(trains: Places) -> None:
    with trains.open("c") as far, far.run("run").writer() as writer:
        writer.save(3, STATE).result()
        trains.cut = {"c"}
        retire(trains, "a", "c")
        # It has not heard of it: it is neither read, nor copied, nor fenced.
        writer.save(4, STATE).result()
        trains.cut = set()
        assert replicate(trains, "b") == []
        save(trains, "a", 5)
        writer.save(6, STATE).result()
        assert steps(trains, "a") == [1, 2, 5]
        assert replicate(trains, "b") == [5]
        assert steps(trains, "b") == [1, 2, 5]


def test_votes_and_receipts_of_a_retired_site_do_not_count(trains: Places) -> None:
    trains.cut = {"c"}
    retire(trains, "a", "c")
    trains.cut = {"b"}
    with trains.open("a") as repository, pytest.raises(Unavailable, match="too few witnesses"):
        repository.run("run").writer()


def test_a_retired_site_is_no_silent_one(trains: Places) -> None:
    lost = uuid_of(trains, "c")
    trains.cut = {"c"}
    with trains.open("b") as repository:
        assert repository.run("run").unheard() == ("c",)
    retire(trains, "a", "c")
    with trains.open("b") as repository:
        assert repository.run("run").unheard() == ()
        assert repository.replicate().troubles == ()
        status = {site.name: site for site in repository.status().sites}
    assert (status["c"].retired, status["c"].reason, status["c"].uuid) == (True, LOST, lost)
    assert not status["a"].retired
    answer = answer_of(trains, "b", "c")
    assert isinstance(answer, Silence)
    assert (answer.retired, answer.elector) == (True, lost)


def test_a_run_that_was_begun_at_a_retired_site_may_be_begun_anew(tmp_path: Path) -> None:
    with places(tmp_path, ("a", "b", "c"), {}) as sites:
        save(sites, "c", 1)
        save(sites, "a", 1, run="another")
        sites.cut = {"c"}
        with sites.open("a") as repository, pytest.raises(Unavailable, match="or retire it"):
            repository.run("run").writer()
        retire(sites, "a", "c")
        save(sites, "a", 1)
        assert steps(sites, "a") == [1]


def test_a_retired_name_is_founded_anew_under_another_uuid(trains: Places) -> None:
    lost = uuid_of(trains, "c")
    trains.wipe("c")
    save(trains, "a", 3)
    assert keys_under(trains.store("c"), "") == []
    retire(trains, "a", "c")
    save(trains, "b", 4)
    new = uuid_of(trains, "c")
    assert new != lost
    assert keys_under(trains.store("b"), "sites/c") == ["sites/c", f"sites/c@{lost}"]
    # It votes again, and is a home again.
    assert keys_under(trains.store("c"), "meta/run@1/_term/00000004")
    save(trains, "c", 5)
    assert steps(trains, "a") == [1, 2, 3, 4, 5]
    trains.wipe("c")
    with trains.open("c") as repository, pytest.raises(Conflict, match="was wiped"):
        repository.run("run").writer()
    retire(trains, "b", "c")
    save(trains, "c", 6)
    assert len({lost, new, uuid_of(trains, "c")}) == 3


def test_a_site_that_was_wiped_and_made_anew_is_taken_in_once_the_old_one_is_retired(
    trains: Places,
) -> None:
    trains.wipe("c")
    with fwstore.open(trains.urls["c"], site="c") as alone, alone.run("other").writer() as writer:
        writer.save(1, STATE).result()
    new = uuid_of(trains, "c")
    with trains.open("a") as repository:
        assert isinstance(repository.sites.ask("c"), Silence)
        repository.retire_site("c", reason=LOST)
        answer = repository.sites.ask("c")
        assert isinstance(answer, Site)
        assert answer.uuid == new


def test_whoever_founds_a_name_anew_asks_a_majority_whether_it_was_retired(trains: Places) -> None:
    """Less than a majority may hold it because an operator died in the middle."""
    lost = uuid_of(trains, "c")
    trains.wipe("c")
    retire(trains, "a", "c")
    trains.store("b").delete([retired_key(lost)])
    for at in "ba":
        save(trains, at, 3)
        assert keys_under(trains.store("c"), "") == []
    assert retire(trains, "b", "c").held_at == ("b", "a")
    save(trains, "a", 4)
    assert keys_under(trains.store("c"), "fwstore.json")


def test_a_new_run_asks_those_who_voted_before_the_retirement(trains: Places) -> None:
    """Else a run that only the lost site and one other know could be born a second time, without a member in common."""
    trains.cut = {"a"}
    save(trains, "c", 1, run="new")
    trains.cut = set()
    trains.wipe("c")
    retire(trains, "a", "c")
    save(trains, "a", 3)
    with trains.open("a") as repository:
        # It knows that a majority agreed, and whom to ask in the seat of the lost site.
        repository.sites.join()
        trains.cut = {"b"}
        with pytest.raises(Unavailable, match="too few witnesses"):
            repository.run("new").writer()
    trains.cut = set()
    save(trains, "a", 1, run="new")


def test_the_uuid_of_a_retired_site_founds_none(trains: Places) -> None:
    lost = uuid_of(trains, "c")
    text = trains.file.read_text()
    trains.wipe("c")
    retire(trains, "a", "c")
    trains.file.write_text(text.replace("[sites.c]", f'[sites.c]\nuuid = "{lost}"'))
    with trains.open("a") as repository, pytest.raises(InvalidInput, match="was retired: take"):
        repository.run("run").writer()


def test_an_operator_who_dies_in_the_middle_repeats_it(trains: Places) -> None:
    lost = uuid_of(trains, "c")
    trains.cut = {"c"}
    retire(trains, "a", "c")
    trains.store("a").delete([retired_key(lost)])
    assert retire(trains, "a", "c").held_at == ("a", "b")
    assert keys_under(trains.store("a"), "_site/") == [retired_key(lost)]


def test_who_was_wiped_while_it_agreed_does_not_count(trains: Places) -> None:
    trains.cut = {"c"}
    with trains.open("a") as repository:
        repository.sites.join()
        trains.wipe("b")
        with pytest.raises(Unavailable, match="and a can agree"):
            repository.retire_site("c", reason=LOST)
