"""What must not keep a save from beginning, and what one that is refused leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore import InvalidInput


@pytest.mark.parametrize("wrong", [{"position": object()}, {"metrics": {"loss": "low"}}])
def test_a_save_that_is_refused_keeps_no_memory(
    repo: fwstore.Repository, wrong: dict[str, Any]
) -> None:
    with repo.run("run").writer() as writer:
        with pytest.raises(InvalidInput):
            writer.save(0, {"w": np.ones(100_000)}, **wrong)
        assert repo.pool.statistics().leased_bytes == 0


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_base_whose_packs_are_damaged_does_not_keep_the_run_from_going_on(
    url: str, repo: fwstore.Repository, damage: str
) -> None:
    state = {"w": np.arange(100_000.0)}
    with repo.run("run").writer() as writer:
        writer.save(0, state).result()
    (pack,) = repo.run("run")[0].packs()
    stored = bytearray(repo.store.get(pack.key, limit_bytes=1 << 30))
    # The last bytes before the trailer are of the footer, which says what the base knows.
    stored[-100] ^= 1
    if damage == "gone":
        repo.store.delete([pack.key])
    else:
        repo.store.put(pack.key, [stored], mode="overwrite")
    with fwstore.open(url) as again:
        with again.run("run").writer() as writer:
            writer.save(1, state).result()
            handle = writer.save(2, state)
            handle.result()
            assert handle.statistics().bytes_written < 10_000
        assert np.array_equal(again.run("run")[1].load()["w"], state["w"])
