"""What a directory offers to a process that has just started, and values that no store takes.

Invariant: `steps_in` lists a step only after its state was loaded and compared, and the store verified.
"""

from __future__ import annotations

from pathlib import Path

import fwstore
from support.oracle import make_state, same

RUN = "run"
QUICK = fwstore.Limits(request_timeout_s=0.5, commit_timeout_s=5.0)


class Model:
    """Something that has no stored form."""


def steps_in(place: Path | str) -> list[int]:
    """Return the steps of the run that are on offer."""
    with fwstore.open(place) as repository:
        found = repository.run(RUN).checkpoints()
        assert all(same(c.load(), make_state(c.step)) for c in found)
        assert repository.verify(level="data").problems == ()
        return [checkpoint.step for checkpoint in found]
