"""The store of one site: what it holds, what it held a moment ago, and who looks at every change.

Invariant: every change of a byte passes the judge, whichever process made it and however late it landed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from fwstore.base.errors import AlreadyExists
from fwstore.format.keys import SITE_KEY
from fwstore.format.site import FORMAT_MAJOR, FORMAT_MINOR, SiteObject, encode_site, parse_site
from fwstore.store.base import Mode
from fwstore.store.memory import MemoryStore, Objects
from fwstore.store.memory import _Object as Stored
from sim.baton import Baton

if TYPE_CHECKING:
    from sim.judge import Judge


class Place(MemoryStore):
    """One site.

    Args:
        name: Of the site.
        baton: Its time.
        judge: Told of every change.
        metadata: Whether it keeps the metadata of objects.
    """

    def __init__(self, name: str, baton: Baton, judge: Judge, *, metadata: bool = True) -> None:
        self.name = name
        self.uuid = hashlib.blake2s(name.encode(), digest_size=16).hexdigest()
        self._baton = baton
        self._judge = judge
        self._metadata = metadata
        self._name = name
        self._objects = Objects()
        self._changed: dict[str, tuple[float, Stored | None]] = {}

    def found(self) -> None:
        """Let the store say which site it is."""
        made = SiteObject(
            format="fwstore",
            major=FORMAT_MAJOR,
            minor=FORMAT_MINOR,
            site=self.uuid,
            name=self.name,
            write_id=self.uuid,
        )
        self._objects[SITE_KEY] = Stored(encode_site(made), 0.0, None)

    def says(self) -> str | None:
        """Return as which site it gives itself out, or None where it is none."""
        stored = self._objects.get(SITE_KEY)
        return None if stored is None else parse_site(stored.content, self.name).site

    def now(self) -> float:
        """What time it is."""
        return self._baton.now

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        before = self._objects.get(key)
        if before is not None and mode == "create":
            raise AlreadyExists(f"{key} exists in {self.url}")
        content = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
        made = Stored(content, self._baton.now, write_id if self._metadata else None)
        self._changed[key] = (self._baton.now, before)
        self._objects[key] = made
        self._judge.written(self, key, content, None if before is None else before.content)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            before = self._objects.pop(key, None)
            if before is not None:
                self._changed[key] = (self._baton.now, before)
                self._judge.deleted(self, key)

    def wipe(self) -> None:
        """Lose everything, at once and for good."""
        for key, before in self._objects.items():
            self._changed[key] = (self._baton.now, before)
        self._objects = Objects()

    def past(self, age_s: float) -> Past:
        """Return the store as it was some time ago."""
        return Past(self, self._baton.now - age_s)


class Past(MemoryStore):
    """A store as it was; for reading alone."""

    def __init__(self, place: Place, when: float) -> None:
        self._name = place.name
        self._objects = Objects(place._objects)
        for key, (changed, before) in place._changed.items():
            if changed > when:
                if before is None:
                    self._objects.pop(key, None)
                else:
                    self._objects[key] = before
