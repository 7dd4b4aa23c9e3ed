"""A run as it is read: its line of checkpoints, what was left beside it, its log, waiting for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import Expired, InvalidInput, Keep, NotFound, Unavailable
from support.hasty import HastyClock


def save(run: fwstore.Run, *steps: int, **options: Any) -> list[fwstore.Checkpoint]:
    with run.writer(**options) as writer:
        handles = [writer.save(step, {"w": np.full(3, float(step))}) for step in steps]
    return [checkpoint for handle in handles if (checkpoint := handle.result()) is not None]


def steps_of(checkpoints: Any) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints]


def test_a_run_that_does_not_exist(repo: fwstore.Repository) -> None:
    run = repo.run("nobody/here")
    assert not run.exists()
    assert run.latest(default=None) is None
    assert run.latest(default=7) == 7
    for read in (
        run.latest,
        run.checkpoints,
        run.branches,
        lambda: run[0],
        lambda: list(run.log()),
    ):
        with pytest.raises(NotFound, match="nobody/here"):
            read()
    with pytest.raises(NotFound, match="no fwstore repository"):
        repo.runs()
    assert repr(run).startswith("Run('nobody/here' in 'memory://")


def test_a_run_without_checkpoints(run: fwstore.Run, repo: fwstore.Repository) -> None:
    run.writer().close()
    assert run.exists()
    assert repo.runs() == ["run"]
    assert run.checkpoints() == []
    assert run.latest(default=None) is None
    with pytest.raises(NotFound, match="no checkpoint yet"):
        run.latest()
    with pytest.raises(NotFound, match="step 3"):
        run[3]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a//b",
        "../x",
        "a@1",
        "_x",
        "a b",
        "x/" * 250 + "x",
        "a/_b",
        "ä",
        "x" * 231,
        None,
        5,
        b"x",
    ],
)
def test_names_that_no_run_can_have(repo: fwstore.Repository, name: Any) -> None:
    with pytest.raises(InvalidInput):
        repo.run(name)


@pytest.mark.parametrize("name", ["x" * 230, f"{'x' * 169}/{'y' * 230}"])
def test_the_longest_names_can_be_saved_and_deleted(tmp_path: Path, name: str) -> None:
    repo = fwstore.open(str(tmp_path))
    save(repo.run(name), 1)
    assert repo.run(name).latest().step == 1
    repo.run(name).delete()
    repo.gc()
    save(repo.run(name), 2)
    assert steps_of(repo.run(name).checkpoints()) == [2]


def test_a_name_in_another_spelling_is_refused(repo: fwstore.Repository) -> None:
    save(repo.run("Model"), 1)
    with pytest.raises(fwstore.AlreadyExists, match="Model"):
        repo.run("model").writer()
    assert repo.runs() == ["Model"]


def test_the_line_goes_on_over_jobs(run: fwstore.Run) -> None:
    save(run, 1, 2)
    save(run, 3)
    save(run, 10, 4)
    assert steps_of(run.checkpoints()) == [1, 2, 3, 4, 10]
    assert run.latest().step == 10
    parents = {c.id: c.parent for c in run.checkpoints()}
    line: list[int] = []
    at: str | None = run[4].id
    while at is not None:
        line.append(next(c.step for c in run.checkpoints() if c.id == at))
        at = parents[at]
    assert line == [4, 10, 3, 2, 1]


def test_a_job_that_continues_an_older_base_leaves_a_branch(run: fwstore.Run) -> None:
    first = save(run, 1, 2, 3, 4)
    with run.writer(base=run[2]) as writer:
        assert writer.base == first[1]
        writer.save(3, {"w": np.zeros(1)}).result(60)
    assert steps_of(run.checkpoints()) == [1, 2, 3]
    assert run[3].term == 2
    (branch,) = run.branches()
    assert (branch.name, branch.term) == ("t1", 1)
    assert branch.checkpoints == (first[3], first[2])
    assert branch.checkpoints[0].load()["w"][0] == 4
    with run.writer(base=branch.checkpoints[0]) as writer:
        assert writer.base == first[3]
        writer.save(5, {"w": np.zeros(1)}).result(60)
    assert steps_of(run.checkpoints()) == [1, 2, 3, 4, 5]
    assert [(b.name, steps_of(b.checkpoints)) for b in run.branches()] == [("t2", [3])]


def test_a_promoted_branch_is_the_history_and_leaves_another(run: fwstore.Run) -> None:
    first = save(run, 1, 2, 3, 4)
    second = save(run, 3, base=run[2])
    assert run.superseded_by("t1") == second
    assert run.promote("t1") == first[3]
    assert run.checkpoints() == first
    assert [(b.name, steps_of(b.checkpoints)) for b in run.branches()] == [("t2", [3])]
    with run.writer() as writer:
        assert writer.base == first[3]


def test_a_promotion_stops_the_job_that_writes(run: fwstore.Run) -> None:
    save(run, 1, 2)
    writer = run.writer(base=run[1])
    writer.save(2, {"w": np.zeros(1)}).result(60)
    run.promote("t1")
    with pytest.raises(fwstore.Fenced):
        writer.save(3, {"w": np.zeros(1)}).result(60)
    assert [checkpoint.term for checkpoint in run.checkpoints()] == [1, 1]


def test_only_a_branch_can_be_promoted(run: fwstore.Run) -> None:
    save(run, 1, 2)
    for ask in (run.promote, run.superseded_by):
        with pytest.raises(NotFound, match="no branch 't1': nothing was left behind"):
            ask("t1")
    save(run, 2, base=run[1])
    with pytest.raises(NotFound, match="'t7': it has t1"):
        run.promote("t7")
    assert [term.number for term in run.terms()] == [1, 2]


def test_terms_tell_who_extended_the_run_from_where(run: fwstore.Run) -> None:
    first = save(run, 1, 2, 3)
    second = save(run, 2, base=run[1])
    run.writer().close()
    told = [(t.number, t.after, t.checkpoints, t.tail) for t in run.terms()]
    assert told == [
        (1, None, (first[0],), (first[1], first[2])),
        (2, first[0], (second[0],), ()),
        (3, second[0], (), ()),
    ]
    assert [t.base for t in run.terms()] == [None, first[0].id, second[0].id]
    run.remove(1)
    assert [t.after for t in run.terms()] == [None, None, second[0]]


def test_a_base_that_is_not_on_offer_is_refused(run: fwstore.Run, repo: fwstore.Repository) -> None:
    (first, _) = save(run, 1, 2)
    (other,) = save(repo.run("other"), 1)
    run.remove(1)
    with pytest.raises(fwstore.Expired):
        run.writer(base=first)
    with pytest.raises(NotFound):
        run.writer(base=other)
    assert run.latest().step == 2


def test_the_log_says_what_happened(run: fwstore.Run) -> None:
    save(run, 1, 2)
    run.tag("best", 2)
    pin = run.pin(1, "paper, table 2")
    run.unpin(pin)
    run.remove(1)
    entries = list(run.log())
    assert [entry.sequence for entry in entries] == list(range(len(entries)))
    kinds = [entry.kind for entry in entries]
    assert kinds[:4] == ["fence", "open", "commit", "commit"]
    assert kinds[-4:] == ["tag", "pin", "unpin", "expire"]
    assert all(entry.counts for entry in entries)
    assert {entry.term for entry in entries if entry.kind in ("open", "commit")} == {1}
    pinned = next(entry for entry in entries if entry.kind == "pin")
    assert "paper, table 2" in pinned.note
    assert pinned.body["reason"] == "paper, table 2"
    assert "step 2" in next(e.note for e in reversed(entries) if e.kind == "commit")


def test_records_of_a_zombie_do_not_count(run: fwstore.Run) -> None:
    older = run.writer()
    run.writer().close()
    with pytest.raises(fwstore.Fenced):
        older.save(1, {}).result(60)
    assert run.checkpoints() == []
    assert [e.kind for e in run.log() if e.kind == "commit" and e.counts] == []


def test_pins_are_listed_while_they_stand(run: fwstore.Run) -> None:
    save(run, 1, 2)
    first, second = run.pin(1, "for the paper"), run.pin(1, "again")
    assert [(p.step, p.reason) for p in run.pins()] == [(1, "for the paper"), (1, "again")]
    assert [p.id for p in run.pins()] == [first, second]
    run.unpin(first)
    assert [p.id for p in run.pins()] == [second]
    with pytest.raises(NotFound):
        run.unpin(first)
    with pytest.raises(NotFound):
        run.pin(9, "nothing")


def test_deleting_and_creating_again_begins_a_new_generation(
    run: fwstore.Run, repo: fwstore.Repository
) -> None:
    (old,) = save(run, 1)
    run.delete("a mistake")
    assert not run.exists()
    assert run.latest(default=None) is None
    for read in (run.checkpoints, lambda: run[1], run.delete, lambda: run.pin(1, "x")):
        with pytest.raises(NotFound):
            read()
    (new,) = save(run, 5)
    assert new.lineage != old.lineage
    assert steps_of(run.checkpoints()) == [5]
    assert new.packs()[0].lineage == "run@2"
    assert repo.runs() == ["run"]
    repo.gc()
    assert new.load()["w"][0] == 5
    with pytest.raises(fwstore.Expired):
        old.load()


@pytest.fixture
def hurried(repo: fwstore.Repository) -> Iterator[tuple[fwstore.Run, list[Callable[[], object]]]]:
    """A run whose clock jumps; before each sleep the next of a list of actions happens."""
    actions: list[Callable[[], object]] = []

    class Acting(HastyClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if actions and seconds >= 1:
                actions.pop(0)()

    repo.runtime = replace(repo.runtime, clock=Acting())
    yield repo.run("run"), actions
    assert not actions


def nothing() -> None:
    """Let time pass."""


Hurried = tuple[fwstore.Run, list[Callable[[], object]]]


def test_watching_yields_the_newest_then_what_comes(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    actions += [nothing, lambda: save(writer, 1, 2), nothing, lambda: save(writer, 3, 4), nothing]
    assert steps_of(run.watch(timeout="11s")) == [2, 4]


def test_watching_every_checkpoint(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1, 2)
    actions += [lambda: save(writer, 3, 4)]
    assert steps_of(run.watch(every=True, timeout="6s")) == [1, 2, 3, 4]
    assert steps_of(run.watch(every=True, after=2, timeout="1s")) == [3, 4]
    save(writer, 20, 10)
    assert steps_of(run.watch(every=True, after=4, timeout="1s")) == [20, 10]
    assert steps_of(run.watch(after=2, timeout="1s")) == [10]
    assert steps_of(run.watch(after=20, timeout="1s")) == []


def test_watching_ends_when_the_run_is_deleted(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1)
    actions += [nothing, writer.delete]
    assert steps_of(run.watch()) == [1]


def test_watching_ends_when_the_name_was_given_to_another_run(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")

    def replace_run() -> None:
        writer.delete()
        save(writer, 7)

    actions += [lambda: save(writer, 1), nothing, replace_run]
    assert steps_of(run.watch()) == [1]
    assert steps_of(run.watch(timeout=0)) == [7]


def test_watching_is_not_confused_by_a_job_that_went_back(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1, 2, 3)
    actions += [
        lambda: save(writer, 2, base=writer[1]),
        lambda: save(writer, 3),
        lambda: save(writer, 4),
    ]
    seen = [(c.step, c.term) for c in run.watch(timeout="9s")]
    assert seen == [(3, 1), (2, 2), (3, 3), (4, 4)]


def test_waiting_for_a_step(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    actions += [nothing, lambda: save(writer, 1, 2)]
    assert run.wait(2).step == 2
    assert run.wait(1, timeout=0).step == 1
    with pytest.raises(Unavailable, match=r"step 9 .* in 30s"):
        run.wait(9, timeout="30s")


def test_waiting_ends_when_the_step_was_removed_unseen(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    actions += [nothing, lambda: save(writer, 1, 2, keep=Keep(last=1))]
    with pytest.raises(Expired, match="step 1"):
        run.wait(1)


def test_waiting_goes_on_for_a_step_that_a_job_may_come_to_again(
    hurried: Hurried, url: str
) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1, 2, 3)
    writer.remove(3)
    writer.remove(2)
    actions += [nothing, lambda: save(writer, 2)]
    assert run.wait(2).term == 2


def test_waiting_ends_when_the_run_is_deleted(hurried: Hurried, url: str) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1)
    actions += [nothing, writer.delete]
    with pytest.raises(NotFound, match="deleted while its step 2"):
        run.wait(2)


def test_a_run_that_was_deleted_before_is_awaited_like_one_that_never_was(
    hurried: Hurried, url: str
) -> None:
    run, actions = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1)
    writer.delete()
    actions += [nothing, lambda: save(writer, 7)]
    assert run.wait(7).step == 7
    writer.delete()
    actions += [nothing, lambda: save(writer, 8)]
    assert steps_of(run.watch(timeout="30s")) == [8]


def test_a_watcher_looks_again_after_a_long_evaluation(hurried: Hurried, url: str) -> None:
    run, _ = hurried
    writer = fwstore.open(url).run("run")
    save(writer, 1)
    seen = []
    for checkpoint in run.watch(timeout="10s"):
        seen.append(checkpoint.step)
        run._clock.sleep(60.0)
        if checkpoint.step < 3:
            save(writer, checkpoint.step + 1)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("timeout", ["soon", -1, float("nan"), [3]])
def test_times_that_are_none_are_refused(run: fwstore.Run, timeout: Any) -> None:
    with pytest.raises(InvalidInput, match="duration"):
        run.wait(1, timeout=timeout)
    with pytest.raises(InvalidInput, match="duration"):
        next(run.watch(timeout=timeout))
