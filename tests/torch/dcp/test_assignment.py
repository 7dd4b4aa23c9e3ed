"""The ticket of a save reaches the rank even when the planner hands on an old plan."""

from __future__ import annotations

import copy
import pickle

from fwstore import SaveTicket
from fwstore_torch.dcp_assignment import Assignment, take_assignment


def assignment(term: int, lineage: str = "a", rank: int = 3) -> Assignment:
    ticket = SaveTicket(
        name="run",
        generation=1,
        lineage=lineage,
        home="b",
        term=term,
        step=0,
        base=None,
        replaces=(),
    )
    return Assignment("memory://x", "run", rank, ticket, alone=False)


def take() -> Assignment | None:
    return take_assignment("memory://x", "run", 3)


def test_it_arrives_by_being_unpickled_and_is_taken_once() -> None:
    sent = pickle.dumps(assignment(1))
    assert take() is None
    assert pickle.loads(sent) == assignment(1)
    assert take() == assignment(1)
    assert take() is None


def test_a_copy_of_an_old_plan_does_not_hide_a_newer_ticket() -> None:
    old, new = assignment(1), assignment(2)
    new.announce()
    copy.deepcopy(old)
    assert take() == new


def test_a_run_that_was_made_again_begins_with_small_terms() -> None:
    assignment(9).announce()
    assignment(1, lineage="b").announce()
    assert take() == assignment(1, lineage="b")


def test_ranks_of_one_process_do_not_take_from_each_other() -> None:
    assignment(1, rank=4).announce()
    assert take() is None
    assert take_assignment("memory://x", "run", 4) == assignment(1, rank=4)
