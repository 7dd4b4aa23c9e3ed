"""What a round costs: requests follow what is new, not what is there."""

from __future__ import annotations

from collections import Counter

import pytest

from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.lineages import Saver, make_store, resume
from support.replicas import replicate, steps


def replicated(saves: int) -> tuple[MemoryStore, MemoryStore, Saver]:
    """A run of which everything is at both sites; all saves share one pack."""
    near, far = make_store(), make_store()
    saver = Saver(resume(near))
    saver.commit(0, fresh=2)
    saver.packs = saver.packs[:1]
    frozen = list(saver.packs)
    for number in range(1, saves):
        saver.commit(number, fresh=1, reuse=frozen)
    replicate(far, near)
    saver.packs = frozen
    return near, far, saver


def cost_of_ten(saves: int) -> tuple[Counter[str], Counter[str]]:
    """Requests to the near and the far site for ten new snapshots, by a worker that knows nothing."""
    near, far, saver = replicated(saves)
    for number in range(10):
        saver.commit(saves + number, fresh=1, reuse=saver.packs)
    there, here = FaultyStore(near), FaultyStore(far)
    report = replicate(here, there)
    assert len(steps(report)) == 10
    lists = [o.key for o in (*there.operations, *here.operations) if o.name == "list"]
    assert set(lists) == {"catalog/"}
    assert len(lists) == 2
    return there.counts, here.counts


@pytest.mark.slow
def test_ten_new_of_a_thousand_cost_as_much_as_ten_of_twenty() -> None:
    few, many = cost_of_ten(20), cost_of_ten(1000)
    assert few == many
    there, here = many
    # Root, table, leaf, footer and chunks of one pack, and two looks at the log.
    assert there.total() <= 10 * 15
    assert here.total() <= 10 * 30


def test_a_round_without_news_costs_a_few_requests() -> None:
    near, far, _ = replicated(20)
    there, here = FaultyStore(near), FaultyStore(far)
    assert steps(replicate(here, there)) == []
    assert there.counts.total() <= 5
    assert here.counts.total() <= 9
    assert not [o for o in here.operations if o.writes]
