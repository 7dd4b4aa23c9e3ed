"""The choice of codec from measurements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwstore.codec.auto import AutoChoices, Sample, choose, sample_cells
from fwstore.codec.registry import codec_of_name


@given(st.integers(0, 10**6))
def test_one_cell_in_sixty_four_is_sampled(cells: int) -> None:
    sampled = sample_cells(cells)
    assert all(0 <= cell < cells for cell in (*sampled[:3], *sampled[-3:]))
    assert (len(sampled) >= 1) == (cells >= 1)
    assert abs(len(sampled) - cells / 64) <= 1


@pytest.mark.parametrize(
    ("stored_bytes", "encode_s", "store_rate", "threads", "choice"),
    [
        (500, 1.0, 999.0, 1, "zstd-1"),
        (500, 1.0, 1001.0, 1, "raw"),
        (500, 1.0, 1001.0, 2, "zstd-1"),
        (950, 1.0, 1.0, 1, "raw"),
        (1000, 1.0, 1.0, 1, "raw"),
        (500, 0.0, 1e12, 1, "zstd-1"),
        (500, 1.0, 0.0, 1, "raw"),
    ],
)
def test_encoding_is_chosen_where_the_store_is_slower(
    stored_bytes: int, encode_s: float, store_rate: float, threads: int, choice: str
) -> None:
    assert choose(Sample(1000, stored_bytes, encode_s), store_rate, threads) == choice
    codec_of_name(choice)


def test_nothing_sampled_means_raw() -> None:
    assert choose(Sample(0, 0, 0.0), 1.0, 1) == "raw"


def test_a_choice_is_kept_for_some_saves() -> None:
    choices = AutoChoices(keep_saves=3)
    path = ("model", "w")
    assert choices.due(path, 10)
    assert choices.choice(path) == "raw"
    choices.keep(path, 10, "zstd-1")
    assert [choices.due(path, save) for save in (10, 12, 13)] == [False, False, True]
    assert choices.choice(path) == "zstd-1"
    assert choices.due(("model", "other"), 11)
