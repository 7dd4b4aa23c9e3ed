"""The order of turns favours nobody."""

from __future__ import annotations

from benchmarks.common.order import rounds

SUBJECTS = ("a", "b", "c", "d")


def test_every_round_has_everybody_once() -> None:
    for order in rounds(SUBJECTS, 5):
        assert sorted(order) == sorted(SUBJECTS)


def test_every_second_round_is_the_one_before_reversed() -> None:
    orders = rounds(SUBJECTS, 6)
    for forward, back in zip(orders[::2], orders[1::2], strict=True):
        assert back == forward[::-1]


def test_pairs_of_rounds_are_shuffled_and_the_same_every_time() -> None:
    orders = rounds(SUBJECTS, 20)
    assert len({tuple(order) for order in orders[::2]}) > 1
    assert orders == rounds(SUBJECTS, 20)
    assert orders != rounds(SUBJECTS, 20, seed=1)
