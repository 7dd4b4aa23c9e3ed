"""What bad names, states and destinations get: an error that names them; nothing half-written is visible."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from support.offers import Model, steps_in
from support.oracle import make_state, same

# Names.


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../etc/passwd", "a/../b", "/a", "a/", "a//b", "a b", "a\x00b", "a\nb", "\x1b[2J",
     "a\\b", "_meta", "a@1", ".hidden", "caf\u00e9", "a.", "x" * 10_000, "/".join(["ab"] * 200)],
    ids=lambda name: repr(name[:12]),
)  # fmt: skip
def test_what_cannot_name_a_run_is_invalid_and_its_error_is_short(
    run: fwstore.Run, place: Path, name: str
) -> None:
    before = sorted(place.rglob("*"))
    with fwstore.open(place) as repository:
        for use in (repository.run, run.fork):
            with pytest.raises(fwstore.InvalidInput) as caught:
                use(name)
            assert len(str(caught.value)) < 1000
            assert str(caught.value).isprintable()
    assert sorted(place.rglob("*")) == before


def test_names_that_differ_in_case_alone_are_one_name(run: fwstore.Run, place: Path) -> None:
    with fwstore.open(place) as repository:
        other = repository.run("RUN")
        with pytest.raises(fwstore.AlreadyExists, match=r"'RUN' is taken by 'run'"):
            other.writer()


@pytest.mark.parametrize("tag", ["", "..", "a/b", "a\x00", "t" * 10_000, "@"])
def test_what_cannot_be_a_tag_is_invalid(run: fwstore.Run, tag: str) -> None:
    with pytest.raises(fwstore.InvalidInput, match="cannot be a tag"):
        run.tag(tag, 1)


@pytest.mark.parametrize("reason", ["r" * 10_000, 7, None, "\ud800"], ids=repr)
def test_what_cannot_be_a_reason_is_invalid(run: fwstore.Run, reason: Any) -> None:
    for use in (partial(run.pin, 1, reason), partial(run.delete, reason)):
        with pytest.raises(fwstore.InvalidInput, match="text of at most 1024 characters"):
            use()
    assert run.pins() == []


def test_a_pin_that_is_not_there_is_not_found(run: fwstore.Run) -> None:
    with pytest.raises(fwstore.NotFound, match=r"has no pin x+;") as caught:
        run.unpin("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_keys_that_read_alike_stay_apart(run: fwstore.Run) -> None:
    one, two = np.ones(3), np.full(3, 2.0)
    states: list[dict[Any, Any]] = [
        {"a.b": one, "a": {"b": two}},
        {"a/b": one, "a": {"b": two}},
        {"1": one, 1: two},
        {"a": {"": one}, "": {"a": two}},
        {"..": {"..": one}, "../..": two, "/": {"x\x00\n": one, "\u202e": two}},
        {"a": {"b": one}, "A": {"b": two}, "a.b": "plain"},
    ]
    with run.writer() as writer:
        for step, state in enumerate(states, 2):
            writer.save(step, state).result()
    for step, state in enumerate(states, 2):
        assert same(run[step].load(), state)
        into = {key: _zeroed(value) for key, value in state.items()}
        assert same(run[step].load(into=into), state)


def _zeroed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _zeroed(child) for key, child in value.items()}
    return np.zeros_like(value) if isinstance(value, np.ndarray) else None


# States.


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"model": {"layers": [1, {"x": Model()}]}}, r"model/layers/1/x: a .*Model cannot be stored"),
        ({"model": {"hook": print}}, r"model/hook: a builtins\..* cannot be stored"),
        ({"rng": iter([1])}, r"rng: a builtins.list_iterator cannot be stored"),
        ({"objects": np.array([Model()])}, r"objects: a numpy value of dtype object cannot be stored"),
        ({"text": "\ud800"}, r"text: text with a lone surrogate"),
        ({1.5: np.ones(1)}, r"1.5: a tensor below a key that is neither text nor a whole number"),
        ({"k" * 10_000: np.ones(1)}, r"tensor path k+\.\.\. is longer than 4096 bytes"),
        ({"@fwstore": np.ones(1)}, r"top-level key '@fwstore' belongs to fwstore"),
        (np.ones(1), r"the state is a bare ndarray; put it into a dict"),
    ],
)  # fmt: skip
def test_a_value_without_a_stored_form_is_named_by_its_key_path(
    run: fwstore.Run, place: Path, state: Any, where: str
) -> None:
    with run.writer() as writer:
        with pytest.raises(fwstore.InvalidInput, match=where) as caught:
            writer.save(2, state)
        assert len(str(caught.value)) < 1000
        # The refusal left nothing behind: neither bytes nor a used-up step.
        writer.save(2, make_state(2)).result()
    assert steps_in(place) == [1, 2]


def test_states_that_never_end_are_refused(run: fwstore.Run, place: Path) -> None:
    ring: dict[str, Any] = {"a": {}}
    ring["a"]["b"] = ring
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(5000):
        inner["d"] = {}
        inner = inner["d"]
    with run.writer() as writer:
        with pytest.raises(
            fwstore.UnsupportedValue, match=r"a/b: a container that contains itself"
        ):
            writer.save(2, ring)
        with pytest.raises(fwstore.UnsupportedValue, match=r"nested deeper than \d+ levels"):
            writer.save(2, deep)
    assert steps_in(place) == [1]


@pytest.mark.parametrize("argument", ["position", "per_rank"])
def test_other_values_are_named_by_their_argument(run: fwstore.Run, argument: str) -> None:
    what = f"{argument}/seen: a .*Model"
    with run.writer() as writer, pytest.raises(fwstore.UnsupportedValue, match=what):
        writer.save(2, {}, **{argument: {"seen": Model()}})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ({"loss": "low"}, r"metric 'loss' must be a number, not 'low'"),
        ({"loss": None}, r"metric 'loss' must be a number, not None"),
        ({7: 1.0}, r"the name of a metric must be text, not 7"),
    ],
)
def test_what_is_no_metric_is_invalid(run: fwstore.Run, metrics: Any, what: str) -> None:
    with run.writer() as writer, pytest.raises(fwstore.InvalidInput, match=what):
        writer.save(2, {}, metrics=metrics).result()


def test_a_loss_that_is_not_finite_is_left_out_and_the_state_is_saved(run: fwstore.Run) -> None:
    with run.writer() as writer:
        metrics: dict[str, Any] = {
            "loss": float("nan"),
            "norm": float("inf"),
            "rate": np.float32(0.5),
        }
        saved = writer.save(2, make_state(2), metrics=metrics).result()
    assert saved is not None
    assert run[2].metrics == {"rate": 0.5}
    assert same(run[2].load(), make_state(2))


def test_more_metrics_than_a_record_holds_exceed_a_limit(run: fwstore.Run, place: Path) -> None:
    with run.writer() as writer:
        with pytest.raises(fwstore.LimitExceeded, match="use fewer or shorter metrics"):
            writer.save(2, {}, metrics={f"metric {n}": 1.0 for n in range(2000)}).result()
        writer.save(3, make_state(3)).result()
    assert steps_in(place) == [1, 3]


# Destinations.


def test_a_destination_that_does_not_fit_is_told_everything_and_left_as_it_was(
    run: fwstore.Run,
) -> None:
    with run.writer() as writer:
        state = {"a": np.ones(3), "b": np.ones((2, 2)), "c": np.ones(1), "d": np.arange(4)}
        writer.save(2, state).result()
    into: dict[str, np.ndarray[Any, Any]] = {
        "a": np.zeros(4),
        "b": np.zeros((2, 2), np.float32),
        "d": np.zeros(4, np.int64),
        "new": np.zeros(1),
    }
    with pytest.raises(fwstore.InvalidInput) as caught:
        run[2].load(into=into)
    for line in (
        "the checkpoint does not fit the destination",
        "a (saved float64[3], wanted float64[4])",
        "b (saved float64[2, 2], wanted float32[2, 2])",
        "1 missing in the checkpoint: new",
        "1 in the checkpoint but not in the destination: c",
    ):
        assert line in str(caught.value)
    assert not any(value.any() for value in into.values())
    run[2].load(into={"d": into["d"]}, only="d")
    assert into["d"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_of_many_names_some_are_listed_and_all_are_counted(run: fwstore.Run) -> None:
    with pytest.raises(
        fwstore.InvalidInput, match=r"10000 missing in the checkpoint: .* and \d+ more"
    ) as c:
        run[1].load(into={f"tensor {n}": np.zeros(1) for n in range(10_000)})
    assert len(str(c.value)) < 10_000
