"""Verification: it finds every damaged byte, names what is lost with it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fwstore
import fwstore.repository
from fwstore.care.packcheck import Level
from fwstore.care.problems import Problem, VerifyReport
from fwstore.care.rowcheck import check_rows
from fwstore.plan.retention import Keep
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore, Operation
from support.gallery import DONOR, RUN, URL, hang, one_thread

LEVELS: tuple[Level, ...] = ("quick", "sample", "data")
# Readers do without these, and verification does not look at them.
DERIVED = ("_log/sum/", "_log/hint", "_coord/", ".closed")
SIZE_MAX = 1 << 20


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with one_thread(monkeypatch):
        yield


def fill(name: str, steps: int = 3) -> MemoryStore:
    """A run whose checkpoints share one tensor and have one each."""
    with fwstore.open(URL) as repository:
        store = repository.store
        assert isinstance(store, MemoryStore)
        store.delete([info.key for info in store.list("")])
        with repository.run(name).writer() as writer:
            frozen = np.arange(100.0)
            for step in range(steps):
                state = {"frozen": frozen, "tied": frozen, "own": np.full(50, step)}
                writer.save(step, state).result()
    return store


def verify(**options: Any) -> VerifyReport:
    with fwstore.open(URL) as repository:
        return repository.verify(**options)


def damage(store: MemoryStore, key: str, place: int) -> None:
    content = bytearray(store.get(key, limit_bytes=SIZE_MAX))
    content[place] ^= 0x10
    store.put(key, [content], mode="overwrite")


def keys_of(store: MemoryStore, part: str) -> list[str]:
    return [info.key for info in store.list("") if part in info.key]


def hit(problems: tuple[Problem, ...]) -> set[tuple[int | None, str | None]]:
    return {(problem.step, problem.tensor) for problem in problems}


def test_a_whole_repository_has_no_problems() -> None:
    store = hang()
    reports = {level: verify(level=level) for level in LEVELS}
    assert all(not report.problems for report in reports.values())
    # The base that the deleted run keeps for its fork is checked too.
    assert [report.checkpoints for report in reports.values()] == [3, 3, 3]
    objects = len([info for info in store.list("") if not any(d in info.key for d in DERIVED)])
    # The pack of the donor is checked for either run; fwstore.json was checked at the opening.
    assert [report.objects for report in reports.values()] == [objects] * 3
    assert reports["quick"].chunks == 0 < reports["sample"].chunks <= reports["data"].chunks
    quick, sample, data = (report.bytes_read for report in reports.values())
    assert quick < sample <= data
    assert data >= sum(info.size for info in store.list("packs/"))


@pytest.mark.slow
def test_damage_anywhere_is_found_and_its_object_named(soak: int) -> None:
    store = hang()
    contents = {i.key: store.get(i.key, limit_bytes=SIZE_MAX) for i in store.list("")}
    for key, content in contents.items():
        if key == "fwstore.json":
            continue
        derived = any(part in key for part in DERIVED)
        for place in range(7, len(content), max(1, 41 // soak)):
            damage(store, key, place)
            found = verify(level="data").problems
            store.put(key, [content], mode="overwrite")
            # One damaged slot may contradict the slot after it as well.
            assert bool(found) != derived, (key, place)
            assert derived or key in {problem.key for problem in found}, (key, place)
            assert all(
                problem.code == "corrupt" and problem.run in (RUN, DONOR) for problem in found
            )


@pytest.mark.parametrize("level", LEVELS)
def test_a_lost_pack_names_all_steps_and_tensors_that_it_takes_along(level: Level) -> None:
    store = fill("run")
    first, second, _ = sorted(keys_of(store, "packs/"))
    store.delete([first])
    report = verify(level=level)
    assert hit(report.problems) == {
        (0, "frozen"), (0, "tied"), (0, "own"), (1, "frozen"), (1, "tied"), (2, "frozen"), (2, "tied")
    }  # fmt: skip
    assert {problem.key for problem in report.problems} == {first}
    assert all("missing" in problem.message for problem in report.problems)
    assert report.checkpoints == 3
    store.delete([second])
    assert (1, "own") in hit(verify(level=level).problems)


def test_a_damaged_chunk_takes_along_only_what_lies_in_it() -> None:
    store = fill("run")
    first = min(keys_of(store, "packs/"))
    content = store.get(first, limit_bytes=SIZE_MAX)
    damage(store, first, content.index(np.full(50, 0).tobytes()) + 5)
    report = verify(level="data")
    assert hit(report.problems) == {(0, "own")}
    assert "chunk" in report.problems[0].message
    assert not verify(level="quick").problems


def test_a_share_of_all_reads_all_and_the_rest_at_least_one_of_every_pack() -> None:
    store = fill("run")
    packs = len(keys_of(store, "packs/"))
    assert verify(level="sample", sample=0.0).chunks == packs
    assert verify(level="sample", sample=1.0).chunks == verify(level="data").chunks == 2 + 2


def test_a_pack_is_checked_once_however_many_checkpoints_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = FaultyStore(fill("run", steps=5))
    monkeypatch.setattr(fwstore.repository, "open_store", lambda *_: watched)
    verify(level="data")
    looked_up = [o.key for o in watched.operations if o.name == "head"]
    assert len(looked_up) == len(set(looked_up)) == 5


def test_manifests_that_are_lost_take_along_what_they_describe() -> None:
    store = fill("run", steps=2)
    root, leaf, table = (min(keys_of(store, part)) for part in ("/root", "/leaf-", "/packs-"))
    contents = {key: store.get(key, limit_bytes=SIZE_MAX) for key in (root, leaf, table)}
    for key, expected in (
        (root, {(0, None)}),
        (leaf, {(0, None)}),
        (table, {(0, "frozen"), (0, "own"), (0, "tied")}),
    ):
        for content in (b"", contents[key] + b"x", contents[key][:-9] + bytes(9), None):
            store.delete([key])
            if content is not None:
                store.put(key, [content], mode="create")
            problems = verify().problems
            assert hit(problems) == expected
            assert {(problem.key, problem.code) for problem in problems} == {(key, "corrupt")}
        store.put(key, [contents[key]], mode="overwrite")


def test_a_leaf_that_is_lost_names_its_tensors() -> None:
    store = fill("run", steps=1)
    store.delete(keys_of(store, "/leaf-"))
    (problem,) = verify().problems
    assert "3 tensors from own to frozen" in problem.message


def test_a_pack_of_another_size_is_reported_although_loads_do_without_its_end() -> None:
    store = fill("run", steps=1)
    (pack,) = keys_of(store, "packs/")
    content = store.get(pack, limit_bytes=SIZE_MAX)
    store.put(pack, [content + b"x"], mode="overwrite")
    (problem,) = verify().problems
    assert (problem.step, problem.tensor, problem.key) == (None, None, pack)
    assert f"{len(content) + 1} bytes, not {len(content)}" in problem.message
    assert len(verify(level="data").problems) == 1
    store.put(pack, [content[:200]], mode="overwrite")
    problems = verify().problems
    assert {(0, "own"), (0, "frozen"), (0, "tied")} == hit(problems)
    assert not any("no checkpoint on offer suffers" in problem.message for problem in problems)


def test_a_damaged_log_is_reported_slot_by_slot() -> None:
    store = fill("run")
    slots = keys_of(store, "_log/000000/")
    damage(store, slots[1], 60)
    store.delete([slots[3]])
    report = verify()
    assert [problem.key for problem in report.problems[:2]] == [slots[1], slots[3]]
    assert report.checkpoints == 0


def test_a_damaged_catalog_entry_does_not_hide_the_other_runs() -> None:
    store = hang()
    damage(store, f"catalog/{DONOR}@1", 40)
    report = verify()
    assert {(problem.run, problem.key) for problem in report.problems} == {
        (DONOR, f"catalog/{DONOR}@1")
    }
    assert report.checkpoints == 2


def test_one_step_is_checked_by_itself() -> None:
    store = fill("run")
    store.delete([min(keys_of(store, "packs/"))])
    report = verify(step=2)
    assert hit(report.problems) == {(2, "frozen"), (2, "tied")}
    assert report.checkpoints == 1
    with pytest.raises(fwstore.NotFound, match="no checkpoint of step 7 in any run"):
        verify(step=7)


@pytest.mark.parametrize("name", ["head", "get", "get_range"])
def test_what_is_collected_meanwhile_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = fill("run", steps=4)
    watched = FaultyStore(store)

    def collect_before(operation: Operation) -> None:
        seen = [o for o in watched.operations if o.name == name and "_snap" in o.key + "_snap"]
        if operation.name == name and len(seen) == 10 - 8 * (name != "get"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fwstore.repository, "open_store", lambda *_: store)
                with fwstore.open(URL) as other:
                    other.gc(keep=Keep(last=1))

    watched.plan = collect_before
    monkeypatch.setattr(fwstore.repository, "open_store", lambda *_: watched)
    report = verify(level="data")
    assert report.problems == ()
    assert 1 <= report.checkpoints < 4


def test_progress_counts_up_to_what_there_is() -> None:
    seen: list[tuple[int, int]] = []
    store = hang()
    verify(level="data", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]
    sizes = {info.key: info.size for info in store.list("packs/")}
    borrowed = sum(size for key, size in sizes.items() if f"/{DONOR}@" in key)
    assert seen[-1][0] == sum(sizes.values()) + borrowed


def test_rows_that_contradict_their_packs_or_tensors_are_found() -> None:
    """Not damage but a wrong writer: all digests are right."""
    fill("run", steps=1)
    with fwstore.open(URL) as repository:
        leaf = repository.run("run").latest().manifest.leaf(0)
    check_rows(leaf, np.array([2]))
    for chunks in (np.array([1]), np.array([], np.int64)):
        with pytest.raises(fwstore.Corrupt, match=r"tensor \w+ lies in chunk \d of pack 0"):
            check_rows(leaf, chunks)
    with pytest.raises(fwstore.Corrupt, match=r"1 cells of tensor \w+ are in no chunk"):
        check_rows(replace(leaf, runs=leaf.runs.take(np.array([0]))), np.array([2]))


def test_a_store_that_stops_answering_for_one_object_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fill("run")
    first = min(keys_of(store, "packs/"))
    plan: Callable[[Operation], Any] = lambda o: "fail" if o.key == first else None  # noqa: E731
    monkeypatch.setattr(fwstore.repository, "open_store", lambda *_: FaultyStore(store, plan))
    report = verify()
    assert {problem.code for problem in report.problems} == {"unavailable"}
    assert (2, "frozen") in hit(report.problems)
    assert report.checkpoints == 3
