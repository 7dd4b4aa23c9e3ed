"""What bad stores, jobs and ranks get: a clear error of the right class; nothing half-written is visible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from support.coordinators import Board, ThreadJob, outcomes
from support.damage import rechecked
from support.disks import read_only, small_disk
from support.offers import QUICK, steps_in
from support.oracle import make_state


def edit_site(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change fwstore.json as another version of fwstore would have written it."""
    path = place / "fwstore.json"
    site = json.loads(path.read_bytes())
    change(site)
    text = json.dumps(site, separators=(",", ":"), sort_keys=True)
    path.write_bytes(rechecked(text.encode()))


# The store.


def test_a_store_of_a_future_version_is_refused_before_anything_is_read(place: Path) -> None:
    edit_site(place, lambda site: site.update(major=2))
    with pytest.raises(fwstore.Unsupported, match=r"has format 2; this version .* reads format 1"):
        fwstore.open(place)


def test_an_unknown_mandatory_feature_is_named_and_an_optional_one_is_ignored(place: Path) -> None:
    edit_site(place, lambda site: site.update(optional=["colour"]))
    assert steps_in(place) == [1]
    edit_site(place, lambda site: site.update(mandatory=["erasure-coding"]))
    with pytest.raises(fwstore.Unsupported, match=r"needs erasure-coding: use a newer fwstore"):
        fwstore.open(place)


def test_a_store_with_the_uuid_of_another_is_not_written_to(place: Path) -> None:
    edit_site(place, lambda site: site.update(site="e" * 32))
    with fwstore.open(place) as repository:
        before = sorted(place.rglob("*"))
        with pytest.raises(
            fwstore.Conflict, match=r"fwstore.json is not the one it was created with"
        ):
            repository.run("run").writer()
        assert sorted(place.rglob("*")) == before
    assert steps_in(place) == [1]


def test_another_hash_key_is_refused(place: Path) -> None:
    with pytest.raises(fwstore.Unsupported, match=r"created with no hash key.* pass hash_key="):
        fwstore.open(place, hash_key=bytes(32))
    with pytest.raises(fwstore.InvalidInput, match="32 bytes, not 3"):
        fwstore.open(place, hash_key=b"key")


def test_a_place_without_a_repository_is_not_made_by_looking_at_it(tmp_path: Path) -> None:
    with fwstore.open(tmp_path / "nothing") as repository:
        with pytest.raises(fwstore.NotFound, match=r"there is no fwstore repository at .*nothing"):
            repository.runs()
        with pytest.raises(fwstore.NotFound, match="there is no run run in"):
            repository.run("run").latest()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/x",
        "s3://",
        "s3://bucket/../other",
        "file://host/x",
        "s3:/bucket",
        "x.toml",
        None,
        7,
    ],
)
def test_what_is_no_address_is_invalid(url: Any) -> None:
    with pytest.raises(fwstore.InvalidInput):
        fwstore.open(url)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(fwstore.InvalidInput, match="holds credentials") as caught:
        fwstore.open("s3://AKIA42:topsecret@bucket/prefix")
    assert "topsecret" not in f"{caught.value}{caught.value!r}"


def test_an_unreachable_store_is_unavailable_within_its_deadline() -> None:
    with pytest.raises(fwstore.Unavailable, match=r"cannot read fwstore.json in s3://bucket/x"):
        fwstore.open(
            "s3://bucket/x?endpoint=http://127.0.0.1:9&region=us-east-1",
            limits=QUICK,
            options={"access_key_id": "a", "secret_access_key": "b"},
        )


def test_a_directory_below_a_file_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        fwstore.open(tmp_path / "file" / "store") as repository,
        pytest.raises(fwstore.InvalidInput, match="a part of it is an object"),
    ):
        repository.run("run").writer()


def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(
    place: Path, tmp_path: Path
) -> None:
    with read_only(place, tmp_path / "locked") as locked:
        assert steps_in(locked) == [1]
        with fwstore.open(locked) as repository:
            run = repository.run("run")
            for write in (
                run.writer,
                repository.run("new").writer,
                partial(run.fork, "fork"),
                partial(run.pin, 1, "paper"),
                partial(run.remove, 1),
                run.delete,
            ):
                with pytest.raises(fwstore.PermissionDenied, match="mounted read-only"):
                    write()
    assert steps_in(place) == [1]


def test_a_full_disk_fails_the_save_and_leaves_every_earlier_checkpoint(tmp_path: Path) -> None:
    big = {"weights": np.random.default_rng(7).random(1 << 16)}
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        place = disk / "store"
        repository = fwstore.open(place, limits=QUICK)
        with repository, repository.run("run").writer() as writer:
            for step in (1, 2, 3):
                writer.save(step, make_state(step)).result()
            writer.save(4, big).result()
            with pytest.raises(fwstore.LimitExceeded, match="is full; free space"):
                writer.save(5, {"weights": big["weights"] + 1}).result()
            repository.run("run").remove(4)
            assert steps_in(place) == [1, 2, 3]
            # What the failed save had written is gone, and there is room for small ones.
            writer.save(6, make_state(6)).result()
            repository.gc()
            writer.save(7, {"weights": big["weights"] + 2}).result()
        with fwstore.open(place) as repository:
            assert [c.step for c in repository.run("run").checkpoints()] == [1, 2, 3, 6, 7]
            assert repository.verify(level="data").problems == ()


def test_a_directory_that_vanished_takes_no_more_saves_until_it_is_back(place: Path) -> None:
    repository = fwstore.open(place, limits=QUICK)
    with repository, repository.run("run").writer() as writer:
        writer.save(2, make_state(2)).result()
        shutil.copytree(place, place.with_name("kept"))
        shutil.rmtree(place)
        with pytest.raises(fwstore.Unavailable, match="mount its file system again"):
            writer.save(3, make_state(3)).result()
        assert not place.exists()
        place.with_name("kept").rename(place)
        writer.save(4, make_state(4)).result()
    assert steps_in(place) == [1, 2, 4]


# Steps, jobs and ranks.


@pytest.mark.parametrize("step", [-1, True, "3", 1.0, None, 10**15, [1]], ids=repr)
def test_what_is_no_step_is_invalid(run: fwstore.Run, place: Path, step: Any) -> None:
    with run.writer() as writer:
        with pytest.raises(
            fwstore.InvalidInput, match=r"step must be an int from 0 to 9{15}, not "
        ):
            writer.save(step, make_state(2))
        writer.save(2, make_state(2)).result()
    assert steps_in(place) == [1, 2]


def test_steps_that_are_not_there_are_told_apart(run: fwstore.Run) -> None:
    with run.writer() as writer:
        writer.save(2, make_state(2)).result()
    run.remove(1)
    with pytest.raises(fwstore.Expired, match=r"no checkpoint of step 1: .*it has steps 2"):
        run[1]
    with pytest.raises(fwstore.NotFound, match=r"no checkpoint of step 7; it has steps 2"):
        run[7]
    for step in ("2", None, 2.0):
        with pytest.raises(fwstore.InvalidInput, match="named by its step"):
            run[step]  # type: ignore[index]


def test_a_step_is_saved_once_per_term(run: fwstore.Run, place: Path) -> None:
    with run.writer() as writer:
        writer.save(2, make_state(2)).result()
        with pytest.raises(fwstore.AlreadyExists, match="this job has saved step 2 before"):
            writer.save(2, make_state(3))
    with run.writer() as writer:
        writer.save(2, make_state(2)).result()
    assert steps_in(place) == [1, 2]


def test_a_second_close_does_nothing_and_a_closed_writer_says_so(
    run: fwstore.Run, place: Path
) -> None:
    writer = run.writer()
    writer.save(2, make_state(2))
    writer.close()
    writer.close()
    with pytest.raises(fwstore.InvalidInput, match="this writer is closed; open another"):
        writer.save(3, {})
    assert steps_in(place) == [1, 2]
    repository = fwstore.open(place)
    assert repository.run("run").latest().step == 2
    repository.close()
    repository.close()


def test_the_older_of_two_writers_is_fenced_and_stops_cleanly(
    run: fwstore.Run, place: Path
) -> None:
    with run.writer() as older:
        older.save(2, make_state(2)).result()
        with fwstore.open(place) as other, other.run("run").writer() as newer:
            handle = older.save(3, make_state(3))
            with pytest.raises(
                fwstore.Fenced, match=r"term 3 .* belongs to a newer job.* must stop"
            ):
                handle.result()
            newer.save(3, make_state(3)).result()
            with pytest.raises(fwstore.Fenced):
                older.save(4, make_state(4))
            older.wait()
            older.close()
            newer.save(4, make_state(4)).result()
    assert steps_in(place) == [1, 2, 3, 4]
    with fwstore.open(place) as repository:
        repository.gc()
    packs = [path for path in (place / "packs").rglob("*") if path.is_file()]
    with fwstore.open(place) as repository:
        used = {pack.key for c in repository.run("run").checkpoints() for pack in c.packs()}
    assert {str(path.relative_to(place)) for path in packs} == used


def test_ranks_that_disagree_on_the_step_all_learn_it_and_go_on(place: Path) -> None:
    with ThreadJob(str(place), 2) as job:
        calls = [partial(job.save_on, rank, 5 + rank, make_state(5)) for rank in (0, 1)]
        for error in outcomes(calls):
            assert isinstance(error, fwstore.InvalidInput)
            assert "rank 0 saves step 5, rank 1 step 6" in str(error)
            assert "every rank must call save with the same steps" in str(error)
        job.save(7, [make_state(7)] * 2)
    assert steps_in(place) == [1, 7]


def test_a_rank_that_never_comes_costs_one_save_and_is_named(place: Path) -> None:
    limits = fwstore.Limits(commit_timeout_s=0.3)
    silent = pytest.raises(fwstore.Unavailable, match="rank 1 did not answer in time")
    with ThreadJob(str(place), 2, limits=limits) as job, silent:
        job.save_on(0, 2, make_state(2))
    assert steps_in(place) == [1]


def test_a_directory_that_ranks_do_not_share_is_found_out_before_a_byte_is_lost(
    place: Path, tmp_path: Path
) -> None:
    channels = Board().channels(2)

    def save(rank: int) -> Any:
        url = place if rank == 0 else tmp_path / "local"
        repository = fwstore.open(url, limits=QUICK)
        with repository, repository.run("run").writer(coordinator=channels[rank]) as writer:
            return writer.save(2, make_state(2)).result()

    for error in outcomes([partial(save, 0), partial(save, 1)]):
        assert isinstance(error, fwstore.InvalidInput)
        assert "is not shared by all ranks" in str(error)
        assert "use a directory on a shared file system, or an object store" in str(error)
    assert steps_in(place) == [1]
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 does not fit a world of 2"),
        ({"rank": 1}, "give both rank= and world_size="),
        ({"rank": 0, "world_size": 2}, "needs a way to meet"),
        ({"codec": "lz4"}, "there is no codec 'lz4'; choose one of raw, zstd, auto"),
        ({"keep": 3}, r"keep= takes a Keep such as Keep\(last=3\), not 3"),
    ],
)
def test_arguments_of_a_writer_are_checked_before_the_term_is_taken(
    run: fwstore.Run, options: Any, what: str
) -> None:
    before = [entry.sequence for entry in run.log()]
    with pytest.raises(fwstore.InvalidInput, match=what):
        run.writer(**options)
    assert [entry.sequence for entry in run.log()] == before


def test_busy_is_wait_or_skip(run: fwstore.Run) -> None:
    what = "on_busy is 'wait' or 'skip', not 'drop'"
    with run.writer() as writer, pytest.raises(fwstore.InvalidInput, match=what):
        writer.save(2, {}, on_busy="drop")  # type: ignore[arg-type]


# Care.


@pytest.mark.parametrize(
    "options", [{"level": "deep"}, {"level": "sample", "sample": 7.0}, {"sample": -0.1}]
)
def test_a_verification_that_does_not_exist_is_invalid(
    run: fwstore.Run, place: Path, options: Any
) -> None:
    with fwstore.open(place) as repository, pytest.raises(fwstore.InvalidInput):
        repository.verify(**options)


def test_a_collection_by_something_else_than_a_rule_is_invalid(place: Path) -> None:
    with (
        fwstore.open(place) as repository,
        pytest.raises(fwstore.InvalidInput, match="takes a Keep"),
    ):
        repository.gc(keep=3)  # type: ignore[arg-type]


def test_what_is_kept_is_not_removed_and_says_by_what(run: fwstore.Run) -> None:
    token = run.pin(1, "table 2 of the paper")
    run.tag("best", 1)
    with pytest.raises(
        fwstore.InvalidInput, match=r"kept by: table 2 of the paper, tag best; lift"
    ):
        run.remove(1)
    run.unpin(token)
    run.tag("best", None)
    run.remove(1)
    with pytest.raises(fwstore.NotFound, match="has no checkpoint yet"):
        run.latest()


@pytest.mark.parametrize(
    "limits",
    [
        {"commit_timeout_s": -1},
        {"request_timeout_s": float("nan")},
        {"pack_bytes": 0},
        {"threads": True},
    ],
)
def test_a_limit_that_is_none_is_named(limits: dict[str, Any]) -> None:
    with pytest.raises(fwstore.InvalidInput, match=next(iter(limits))):
        fwstore.Limits(**limits)
