"""What DTensors of real ranks hold is what their layouts say."""

from __future__ import annotations

import pytest

from support import torch_layouts
from support.ranks import run_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_every_placement_describes_what_the_rank_holds() -> None:
    run_ranks(4, torch_layouts.check_placements)


def test_strided_shards_of_fsdp_over_tp() -> None:
    run_ranks(4, torch_layouts.check_strided)


def test_destinations_on_a_mesh() -> None:
    run_ranks(2, torch_layouts.check_destinations)
