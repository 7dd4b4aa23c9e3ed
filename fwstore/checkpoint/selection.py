"""Which saved tensor goes to which destination: globs, renames and the strictness of a load. Pure.

Invariant: a strict selection either pairs every wanted name with exactly one saved name and leaves no
saved name over, or raises one error that lists everything that does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fwstore.base.errors import InvalidInput
from fwstore.base.globs import glob_pattern

Only = str | Sequence[str] | None
Rename = Mapping[str, str] | Callable[[str], str] | None

_LISTED_MAX = 10


@dataclass(frozen=True, slots=True)
class Described:
    """What must agree between a saved tensor and its destination."""

    dtype: str
    shape: tuple[int, ...]


def name_filter(only: Only) -> Callable[[str], bool]:
    """Return a test for names: ``*`` matches within a segment, ``**`` across segments.

    Args:
        only: One glob, several of which one must match, or None for all names.
    """
    if only is None:
        return lambda _: True
    pattern = re.compile("|".join(f"(?:{glob_pattern(glob)})" for glob in _globs(only)))
    return lambda name: pattern.fullmatch(name) is not None


def check_only(only: Only, names: Iterable[str]) -> None:
    """Refuse globs that select nothing: most likely they are misspelt.

    Raises:
        InvalidInput: No name matches one of the globs.
    """
    left = {glob: re.compile(glob_pattern(glob)) for glob in _globs(only)}
    for name in names:
        left = {glob: test for glob, test in left.items() if test.fullmatch(name) is None}
    if left:
        raise InvalidInput(f"only= matches no tensor of the checkpoint: {', '.join(left)}")


def _globs(only: Only) -> list[str]:
    if only is None:
        return []
    globs: Any = [only] if isinstance(only, str) else only
    if not isinstance(globs, Collection) or not all(isinstance(glob, str) for glob in globs):
        raise InvalidInput(f"only= is a glob or a list of globs over tensor names, not {only!r}")
    return list(globs)


def renamer(rename: Rename) -> Callable[[str], str]:
    """Return the function from a saved name to the name that the destination uses.

    Args:
        rename: A function, or a mapping of saved names or leading segments to new ones; the longest that
            fits is used.
    """
    if rename is None:
        return lambda name: name
    if callable(rename):
        return partial(_renamed, rename)
    if not isinstance(rename, Mapping):
        raise InvalidInput(f"rename= is a function or a mapping of names, not {rename!r}")
    prefixes = sorted(rename, key=len, reverse=True)

    def apply(name: str) -> str:
        for prefix in prefixes:
            if name == prefix or name.startswith(prefix + "/"):
                return (rename[prefix] + name[len(prefix) :]).lstrip("/")
        return name

    return apply


def _renamed(rename: Callable[[str], str], name: str) -> str:
    found = rename(name)
    if not isinstance(found, str):
        raise InvalidInput(f"rename= gave {found!r} for {name!r}; return a name")
    return found


def pair_names(
    saved: Mapping[str, Described],
    wanted: Mapping[str, Described],
    *,
    only: Only = None,
    rename: Rename = None,
    strict: bool = True,
    cast: bool = False,
) -> dict[str, str]:
    """Return for every wanted name that can be had the saved name that fills it.

    Args:
        saved: The tensors of the checkpoint by name.
        wanted: The destinations by name.
        only: Globs over the saved names; destinations outside them are left alone.
        rename: From saved to wanted names.
        strict: Raise when a name is missing or unexpected. A shape that differs always raises.
        cast: Accept a destination of another dtype, for complex tensors if it is complex.

    Raises:
        InvalidInput: Names or shapes do not fit; all of them are listed.
    """
    if strict:
        check_only(only, saved)
    keep = name_filter(only)
    to_wanted = renamer(rename)
    source: dict[str, str] = {}
    for name in saved:
        if keep(name):
            target = to_wanted(name)
            if target in source:
                raise InvalidInput(
                    f"rename sends both {source[target]!r} and {name!r} to {target!r}"
                )
            source[target] = name
    pairs = {name: source[name] for name in wanted if name in source}
    problems = _mismatches(saved, wanted, pairs, cast=cast)
    if strict:
        selected = None if only is None else set(source)
        problems += _missing(wanted, pairs, selected, keep) + _unexpected(source, wanted)
    if problems:
        raise InvalidInput(
            "the checkpoint does not fit the destination:\n  " + "\n  ".join(problems)
        )
    return pairs


def _missing(
    wanted: Iterable[str],
    pairs: Mapping[str, str],
    selected: set[str] | None,
    keep: Callable[[str], bool],
) -> list[str]:
    # With `only`, a destination counts as missing when its own name is among those asked for.
    names = [n for n in wanted if n not in pairs and (selected is None or keep(n))]
    return _listed("missing in the checkpoint", names)


def _unexpected(source: Mapping[str, str], wanted: Mapping[str, Described]) -> list[str]:
    return _listed(
        "in the checkpoint but not in the destination", [n for n in source if n not in wanted]
    )


def _mismatches(
    saved: Mapping[str, Described],
    wanted: Mapping[str, Described],
    pairs: Mapping[str, str],
    *,
    cast: bool,
) -> list[str]:
    different = []
    for name, source in pairs.items():
        have, want = saved[source], wanted[name]
        if have.shape != want.shape or not _fits(have.dtype, want.dtype, cast=cast):
            different.append(
                f"{name} (saved {have.dtype}{list(have.shape)}, wanted {want.dtype}{list(want.shape)})"
            )
    advice = "" if cast else " (dtype='cast' converts element types)"
    return _listed(f"of another shape or dtype{advice}", different)


def _fits(have: str, want: str, *, cast: bool) -> bool:
    # A complex tensor made real would lose half of what was saved.
    lossy = is_complex(have) and not is_complex(want)
    return have == want or (cast and not lossy)


def is_complex(dtype: str) -> bool:
    """Return whether a stored dtype has an imaginary part."""
    return dtype.startswith("complex")


def _listed(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _LISTED_MAX} more" if len(names) > _LISTED_MAX else ""
    return [f"{len(names)} {title}: " + ", ".join(names[:_LISTED_MAX]) + more]
