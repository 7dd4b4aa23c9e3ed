"""Whether a store keeps the promises that fwstore rests on: asked of the store, not of its manual.

Invariant: a probe writes only below one prefix of its own, and removes what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fwstore.base.errors import AlreadyExists, Corrupt, FwstoreError, NotFound
from fwstore.base.ids import write_id
from fwstore.store.base import ReadInto, Store
from fwstore.store.object import ObjectStore

if TYPE_CHECKING:
    from fwstore.sched.runtime import Runtime

_ROUNDS = 3
_LIMIT_BYTES = 1 << 20
_SKEW_S = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and whether it is kept.

    Attributes:
        name: The promise, in a few words.
        passed: Whether it is kept.
        detail: What was seen.
        advice: What to do when it is not kept.
        required: fwstore must not be used with a store that does not keep it.
    """

    name: str
    passed: bool
    detail: str
    advice: str = ""
    required: bool = True


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a probe of a store found.

    Attributes:
        url: The store.
        checks: In the order in which they were made.
    """

    url: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the store keeps every promise that fwstore requires."""
        return all(check.passed for check in self.checks if check.required)


def probe_store(store: Store, runtime: Runtime, *, racers: int = 32) -> ProbeReport:
    """Try a store and report which promises it keeps; nothing is raised for one it breaks.

    Args:
        store: Needs the rights to write and delete.
        runtime: Threads for the race, the clock for the skew.
        racers: Threads that try to create the same key at once.
    """
    probe = _Probe(store, runtime, racers)
    checks = [_checked(*part) for part in probe.first()]
    if all(check.passed for check in checks):
        checks += [_checked(*part) for part in probe.others()]
        checks.append(_checked("tidying", probe.tidy, "remove the objects below _probe/"))
    if isinstance(store, ObjectStore) and store.address.kind == "s3":
        from fwstore.store.s3_bucket import inspect_bucket

        checks += inspect_bucket(store, runtime)
    return ProbeReport(store.url, tuple(checks))


_Part = tuple[str, Callable[[], str], str]


class _Probe:
    """The checks; each returns what it saw, or raises an error that says what is wrong."""

    def __init__(self, store: Store, runtime: Runtime, racers: int) -> None:
        self._store = store
        self._runtime = runtime
        self._racers = racers
        self._prefix = f"_probe/{runtime.ids.token(8)}/"

    def first(self) -> Iterable[_Part]:
        """Without these the others would only fail more slowly."""
        yield "reachable", self._reach, "check the address, the network and the credentials"
        yield "writable", self._write, "grant the right to write, or use the store only to load"

    def others(self) -> Iterable[_Part]:
        """What fwstore rests on."""
        yield (
            "one winner",
            self._race,
            "two jobs could both own a run here: use another store, or a newer release of it",
        )
        yield "read after write", self._read_after_write, "use a strongly consistent store"
        yield "list after write", self._list_after_write, "use a strongly consistent store"
        yield "ranges", self._ranges, "remove the proxy or cache that changes answers"
        yield "whole replacement", self._replace, "use a store that replaces objects atomically"
        yield "metadata", self._metadata, "remove the proxy that drops x-amz-meta-* headers"
        yield "deletion", self._delete, "grant the right to delete"
        yield "upload", self._upload, "grant the rights to write and abort multipart uploads"
        yield "clock", self._clock, "set the clock of this host or of the store"

    def tidy(self) -> str:
        """Remove what the probe wrote."""
        keys = [info.key for info in self._store.list(self._prefix)]
        self._store.delete(keys)
        return f"{len(keys)} objects removed"

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _get(self, name: str) -> bytes:
        return self._store.get(self._key(name), limit_bytes=_LIMIT_BYTES)

    def _put(self, name: str, content: bytes) -> None:
        self._store.put(self._key(name), [content], mode="overwrite")

    def _listed(self) -> list[str]:
        return [info.key.removeprefix(self._prefix) for info in self._store.list(self._prefix)]

    def _reach(self) -> str:
        with suppress(NotFound):
            self._store.head(self._key("absent"))
        return "it answers"

    def _write(self) -> str:
        began = self._runtime.clock.monotonic()
        self._put("small", b"small")
        return f"one small write took {1e3 * (self._runtime.clock.monotonic() - began):.0f} ms"

    def _race(self) -> str:
        for number in range(_ROUNDS):
            winners = self._race_once(f"race-{number}")
            if len(winners) != 1:
                raise Corrupt(
                    f"{len(winners)} of {self._racers} writers were told that they had created one key"
                )
            _expect(self._get(f"race-{number}"), winners[0], "the object of the winner")
        return f"exactly one of {self._racers} writers won in each of {_ROUNDS} rounds"

    def _race_once(self, name: str) -> list[bytes]:
        def attempt(content: bytes) -> bool:
            with suppress(AlreadyExists):
                self._store.put(self._key(name), [content], mode="create")
                return True
            return False

        contents = [write_id(self._runtime.ids).encode() for _ in range(self._racers)]
        # Threads of their own: workers are too few for a race.
        spawn = self._runtime.scheduler.spawn
        futures = [
            spawn(f"probe-{index}", attempt, content) for index, content in enumerate(contents)
        ]
        won = [future.result() for future in futures]
        return [content for content, winner in zip(contents, won, strict=True) if winner]

    def _read_after_write(self) -> str:
        for number in range(_ROUNDS):
            self._put("fresh", str(number).encode())
            _expect(self._get("fresh"), str(number).encode(), "the object just written")
        return "a write is seen at once"

    def _list_after_write(self) -> str:
        self._put("list/b", b"1")
        self._put("list/a", b"1")
        self._put("list-c", b"1")
        _expect(
            [name for name in self._listed() if name.startswith("list")],
            ["list-c", "list/a", "list/b"],
            "the list",
        )
        self._store.delete([self._key("list/a")])
        _expect("list/a" in self._listed(), False, "the list after a deletion")  # noqa: FBT003 - a value to compare
        return "a list is complete and in order at once"

    def _ranges(self) -> str:
        content = bytes(range(200))
        self._put("ranges", content)
        _expect(self._store.get_range(self._key("ranges"), 10, 20), content[10:30], "a range")
        _expect(
            self._store.get_range(self._key("ranges"), -20, 20),
            content[-20:],
            "a range from the end",
        )
        found = bytearray(50)
        self._store.read_into(self._key("ranges"), [ReadInto(100, [memoryview(found)])])
        _expect(bytes(found), content[100:150], "a range read into a buffer")
        return "ranges are exact, also from the end"

    def _replace(self) -> str:
        versions = [bytes([number]) * (1000 + 5000 * number) for number in range(8)]
        self._put("whole", versions[0])

        def write() -> None:
            for version in versions:
                self._put("whole", version)

        writer = self._runtime.scheduler.spawn("probe-writer", write)
        for _ in range(_ROUNDS * len(versions)):
            if (found := self._get("whole")) not in versions:
                raise Corrupt(
                    f"a reader saw {len(found)} bytes that nobody wrote while an object was replaced"
                )
        writer.result()
        _expect(self._get("whole"), versions[-1], "the object after it was replaced")
        return "readers see the old object or the new one"

    def _metadata(self) -> str:
        if not self._store.capabilities.keeps_metadata:
            return "this kind of store keeps none, and none is needed"
        wanted = write_id(self._runtime.ids)
        self._store.put(self._key("metadata"), [b"1"], mode="create", write_id=wanted)
        _expect(self._store.head(self._key("metadata")).write_id, wanted, "the write id")
        return "the write id is kept"

    def _delete(self) -> str:
        for _ in range(2):
            self._store.delete([self._key("small"), self._key("absent")])
        try:
            self._store.head(self._key("small"))
        except NotFound:
            return "deleting twice is deleting once"
        raise Corrupt("an object is still there after it was deleted")

    def _upload(self) -> str:
        upload = self._store.upload(self._key("upload"))
        upload.write([b"one", b"two"])
        upload.commit()
        _expect(self._get("upload"), b"onetwo", "an uploaded object")
        return "uploads appear whole"

    def _clock(self) -> str:
        self._put("clock", b"1")
        skew_s = self._store.head(self._key("clock")).modified - self._runtime.clock.wall()
        if abs(skew_s) > _SKEW_S:
            raise Corrupt(f"the clocks of this host and of the store differ by {skew_s:.0f} s")
        return f"the clocks differ by less than {_SKEW_S:.0f} s"


def _checked(name: str, check: Callable[[], str], advice: str) -> Check:
    required = name not in ("clock", "tidying")
    try:
        return Check(name, passed=True, detail=check(), required=required)
    except FwstoreError as error:
        return Check(name, passed=False, detail=str(error), advice=advice, required=required)


def _expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Corrupt(f"{what} is {str(found)[:80]!r}, not {str(wanted)[:80]!r}")
