"""Tables of a configuration file, read strictly.

Invariant: everything in a table is either asked for or refused, and every refusal names the file, the place and
what may stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from fwstore.base.errors import InvalidInput

T = TypeVar("T")
C = TypeVar("C", bound=str)

_REQUIRED: Any = object()


class Table:
    """One table of a file.

    Args:
        file: Its name.
        place: Where in it the table stands; empty for the whole file.
        values: What was parsed.
    """

    def __init__(self, file: str, place: str, values: Mapping[str, Any]) -> None:
        self._file = file
        self._place = place
        self._values = values
        self._asked: dict[str, None] = {}

    def refused(self, key: str, why: str) -> InvalidInput:
        """Return the error for what stands under a key; for the table itself under ""."""
        place = ".".join(part for part in (self._place, key) if part)
        return InvalidInput(f"{self._file}: {place}: {why}" if place else f"{self._file}: {why}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """Return a text."""
        return self._typed(key, str, "a text in quotes", default)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        return self._typed(key, bool, "true or false", default)

    def count(self, key: str, default: int) -> int:
        """Return a whole number from 1 on."""
        found = self._typed(key, int, "a whole number of at least 1", default)
        if found < 1:
            raise self.refused(key, f"must be a whole number of at least 1, not {found}")
        return found

    def scalar(self, key: str) -> str | bool | int:
        """Return a text, a number or a truth value."""
        found = self._values[key]
        if isinstance(found, str | bool | int):
            return found
        raise self.refused(key, f"must be a text, true, false or a whole number, not {found!r}")

    def choice(self, key: str, choices: Collection[C], default: C) -> C:
        """Return one of some words."""
        found = self.text(key, default)
        chosen = next((choice for choice in choices if choice == found), None)
        if chosen is None:
            raise self.refused(key, f"must be {_either(choices)}, not {found!r}")
        return chosen

    def parsed(self, key: str, parse: Callable[[str], T]) -> T:
        """Return what a text means."""
        try:
            return parse(self.text(key))
        except InvalidInput as error:
            raise self.refused(key, error.message) from error

    def name(self, key: str, known: Collection[str]) -> str:
        """Return one of some names."""
        found: str = self.choice(key, known, _REQUIRED)
        return found

    def names(
        self, key: str, known: Collection[str], default: Collection[str] = _REQUIRED
    ) -> tuple[str, ...]:
        """Return some of some names, each once and at least one."""
        found: Collection[Any] = self._typed(key, list, "a list of names", default)
        texts = [name for name in found if isinstance(name, str) and name in known]
        if not found or len(texts) < len(found) or len(set(texts)) < len(texts):
            raise self.refused(
                key, f"must list some of {', '.join(known)}, each once, not {list(found)!r}"
            )
        return tuple(texts)

    def below(self, key: str) -> Table:
        """Return a table in this one; an empty one where there is none."""
        found = self._typed(key, dict, "a table", {})
        return Table(self._file, ".".join(p for p in (self._place, key) if p), found)

    def named(self, key: str) -> Iterator[tuple[str, Table]]:
        """Yield the tables in a table, by name."""
        outer = self.below(key)
        for name in outer:
            yield name, outer.below(name)

    def tables(self, key: str) -> Iterator[Table]:
        """Yield the tables of a list, `[[key]]`."""
        found = self._typed(key, list, f"tables: [[{key}]]", [])
        for number, one in enumerate(found):
            place = f"{key}[{number}]"
            if not isinstance(one, dict):
                raise self.refused(place, f"must be a table: [[{key}]]")
            yield Table(self._file, place, one)

    def finish(self) -> None:
        """Refuse what nobody has asked for."""
        for key in self._values:
            if key not in self._asked:
                raise self.refused(key, f"is not known here; write {_either(self._asked)}")

    def _typed(self, key: str, kind: type[T], what: str, default: Any) -> T:
        self._asked[key] = None
        if key not in self._values:
            if default is _REQUIRED:
                raise self.refused(key, f"is missing; it must be {what}")
            given: T = default
            return given
        found: T = self._values[key]
        # A truth value is a number in Python, and not in TOML.
        if type(found) is not kind:
            raise self.refused(key, f"must be {what}, not {found!r}")
        return found


def _either(choices: Collection[str]) -> str:
    return " or ".join(choices)
