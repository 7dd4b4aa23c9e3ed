"""Requests are counted as a caller far from the store would wait for them."""

from __future__ import annotations

from benchmarks.common.meter import Meter, open_metered


def test_requests_side_by_side_are_one_round_and_those_in_turn_several() -> None:
    meter = Meter()
    with open_metered("memory://meter", meter) as repository:
        store = repository.store
        meter.clear()
        for name in ("a", "b"):
            store.put(name, [b"12", b"3"], mode="overwrite")
        meter.map(lambda name: store.get(name, limit_bytes=3), ["a", "b", "a"])
    assert (meter.rounds, meter.requests) == (3, {"put": 2, "get": 3})
    assert meter.bytes == 5 * 3


def test_the_first_object_and_every_later_list_are_noted() -> None:
    meter = Meter()
    with open_metered("memory://meter lists", meter) as repository:
        meter.clear()
        list(repository.store.list(""))
        assert (meter.puts_from, meter.lists_after) == (-1, 0)
        repository.store.put("a", [b"1"], mode="overwrite")
        list(repository.store.list(""))
    assert (meter.puts_from, meter.lists_after, meter.rounds) == (1, 1, 3)
