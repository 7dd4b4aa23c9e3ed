"""Rates as people write them."""

from __future__ import annotations

import pytest

from fwstore.base.errors import InvalidInput
from fwstore.base.units import format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10 Gbit/s", 1.25e9),
        ("300Mbit/s", 37.5e6),
        ("1.25 GB/s", 1.25e9),
        ("64 KiB/s", 65536.0),
        ("8 bit / s", 1.0),
    ],
)
def test_a_rate_is_bytes_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=0.005)


@pytest.mark.parametrize(
    "text", ["", "10", "10/s", "10 Gbit", "10 Gbit/h", "0 bit/s", "-1 bit/s", "fast/s"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a rate"):
        parse_rate(text)
