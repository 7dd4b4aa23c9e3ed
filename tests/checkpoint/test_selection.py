"""Names are paired one to one, or everything that does not fit is listed at once."""

from __future__ import annotations

from typing import Any

import pytest

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.selection import Described, name_filter, pair_names, renamer

NAMES = ["a", "a/b", "a/b/c", "ab", "layers/0/wq", "layers/10/wq", "layers/0/mlp/w", "x.y", "x+y"]
W = Described("float32", (2, 3))


def taken(only: str | list[str] | None) -> list[str]:
    return [name for name in NAMES if name_filter(only)(name)]


def tensors(*names: str, **others: Described) -> dict[str, Described]:
    return {**dict.fromkeys(names, W), **others}


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, NAMES),
        ("a", ["a"]),
        ("a/*", ["a/b"]),
        ("a/**", ["a/b", "a/b/c"]),
        ("**/c", ["a/b/c"]),
        ("**/wq", ["layers/0/wq", "layers/10/wq"]),
        ("layers/?/**", ["layers/0/wq", "layers/0/mlp/w"]),
        ("**", NAMES),
        ("*", ["a", "ab", "x.y", "x+y"]),
        ("x.y", ["x.y"]),
        ("x+?", ["x+y"]),
        (["a", "layers/*/wq"], ["a", "layers/0/wq", "layers/10/wq"]),
        ([], []),
        ("", []),
        ("[ab]", []),
    ],
)
def test_globs(only: str | list[str] | None, expected: list[str]) -> None:
    assert taken(only) == expected


def test_globs_cover_leading_folders_and_none() -> None:
    keep = name_filter("**/w")
    assert keep("w")
    assert keep("a/w")
    assert not keep("a/ww")
    assert not keep("vw")


def test_renames() -> None:
    assert renamer(None)("a/b") == "a/b"
    assert renamer(str.upper)("a/b") == "A/B"
    apply = renamer({"a": "z", "a/b": "q/r", "whole": "", "layers/0": "first"})
    assert [apply(name) for name in ("a", "a/c", "a/b", "a/b/c", "ab", "whole/w")] == [
        "z",
        "z/c",
        "q/r",
        "q/r/c",
        "ab",
        "w",
    ]
    assert apply("layers/0/wq") == "first/wq"
    assert apply("layers/01") == "layers/01"


def test_equal_names_are_paired() -> None:
    assert pair_names(tensors("a", "b"), tensors("b", "a")) == {"a": "a", "b": "b"}
    assert pair_names(tensors("a"), tensors("z"), rename={"a": "z"}) == {"z": "a"}


def test_one_error_lists_everything_that_does_not_fit() -> None:
    saved = tensors("both", "extra", shape=Described("float32", (4,)), kind=W)
    wanted = tensors(
        "both", "lost", shape=Described("float32", (5,)), kind=Described("int8", (2, 3))
    )
    with pytest.raises(InvalidInput) as caught:
        pair_names(saved, wanted)
    message = str(caught.value)
    assert "1 missing in the checkpoint: lost" in message
    assert "1 in the checkpoint but not in the destination: extra" in message
    assert "2 of another shape or dtype (dtype='cast' converts element types)" in message
    assert "shape (saved float32[4], wanted float32[5])" in message
    assert "kind (saved float32[2, 3], wanted int8[2, 3])" in message
    assert "both" not in message


def test_long_lists_are_cut() -> None:
    with pytest.raises(InvalidInput, match=r"25 missing in the checkpoint: .* and 15 more"):
        pair_names({}, tensors(*[f"t{n}" for n in range(25)]))


def test_lenient_loads_take_what_fits_but_never_another_shape() -> None:
    saved, wanted = tensors("a", "extra"), tensors("a", "lost")
    assert pair_names(saved, wanted, strict=False) == {"a": "a"}
    with pytest.raises(InvalidInput, match="shape"):
        pair_names(tensors("a"), {"a": Described("float32", (3, 2))}, strict=False)
    with pytest.raises(InvalidInput, match="dtype"):
        pair_names(tensors("a"), {"a": Described("float16", (2, 3))}, strict=False)


def test_casts_are_asked_for() -> None:
    half = {"a": Described("float16", (2, 3))}
    assert pair_names(tensors("a"), half, cast=True) == {"a": "a"}
    with pytest.raises(InvalidInput) as caught:
        pair_names(tensors("a"), {"a": Described("float16", (6,))}, cast=True)
    assert "dtype='cast'" not in str(caught.value)


def test_no_cast_drops_imaginary_parts() -> None:
    saved = {"a": Described("complex64", (2, 3))}
    wide = {"a": Described("complex128", (2, 3))}
    assert pair_names(saved, wide, cast=True) == {"a": "a"}
    assert pair_names(tensors("a"), wide, cast=True) == {"a": "a"}
    for strict in (True, False):
        with pytest.raises(InvalidInput, match=r"saved complex64\[2, 3\], wanted float32"):
            pair_names(saved, tensors("a"), cast=True, strict=strict)


def test_only_leaves_other_destinations_alone() -> None:
    saved, wanted = tensors("p/a", "p/b", "q/a"), tensors("p/a", "p/b", "other")
    assert pair_names(saved, wanted, only="p/*") == {"p/a": "p/a", "p/b": "p/b"}
    with pytest.raises(InvalidInput, match="missing in the checkpoint: p/c"):
        pair_names(saved, tensors("p/a", "p/b", "p/c"), only="p/*")
    with pytest.raises(InvalidInput, match="not in the destination: p/b"):
        pair_names(saved, tensors("p/a"), only="p/*")


def test_only_speaks_of_saved_names_when_renamed() -> None:
    saved, wanted = tensors("old/a", "old/b"), tensors("new/a", "new/b")
    assert pair_names(saved, wanted, only="old/a", rename={"old": "new"}) == {"new/a": "old/a"}


def test_two_sources_of_one_destination_are_refused() -> None:
    with pytest.raises(InvalidInput, match="both 'a' and 'b' to 'z'"):
        pair_names(tensors("a", "b"), tensors("z"), rename={"a": "z", "b": "z"})


def test_globs_that_select_nothing_are_refused_unless_lenient() -> None:
    saved, wanted = tensors("p/a"), tensors("p/a")
    with pytest.raises(InvalidInput, match=r"no tensor of the checkpoint: q/\*"):
        pair_names(saved, wanted, only=["p/*", "q/*"])
    assert pair_names(saved, wanted, only=["p/*", "q/*"], strict=False) == {"p/a": "p/a"}
    assert pair_names(saved, wanted, only=[]) == {}


def test_what_is_no_selection_is_told() -> None:
    saved: Any = tensors("a")
    wrong: Any
    for wrong in (3, [3], b"a"):
        with pytest.raises(InvalidInput, match="only= is a glob"):
            pair_names(saved, saved, only=wrong)
    for wrong, message in ((3, "rename= is a function"), (lambda _: None, "rename= gave None")):
        with pytest.raises(InvalidInput, match=message):
            pair_names(saved, saved, rename=wrong)
