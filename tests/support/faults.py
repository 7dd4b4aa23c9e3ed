"""A store that counts, fails, loses answers, answers late or wrongly and dies, for any test of what stands on it.

Invariant: after a simulated death the wrapped store is never touched again through this handle, so no
`finally` of the dead process can tidy up; what it left is in `inner`, to be opened by the next one.

    store = FaultyStore(inner, fail_at(3))             # the third operation: Unavailable, not applied
    store = FaultyStore(inner, lose_at(3))             # applied, but the answer is lost: Unavailable
    store = FaultyStore(inner, crash_at(3))            # the process dies before the third operation
    store = FaultyStore(inner, crash_at(3, "during"))  # ... after it was applied, before the answer
    store = FaultyStore(inner, crash_at(3, "after"))   # ... before it asks the store for anything else
    store = FaultyStore(inner, late_at(3)); ...; store.land()    # Unavailable; applied when land() is called

    for label, inner in every_crash(MemoryStore(...) factory, scenario):
        check what a new process finds in inner
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeVar

from typing_extensions import Buffer

from fwstore.base.errors import (
    AlreadyExists,
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    Unavailable,
)
from fwstore.store.base import Capabilities, Mode, ObjectInfo, ReadInto, Store, Upload

T = TypeVar("T")

Fault = Literal[
    "fail",  # not applied, no answer
    "lose",  # applied, no answer
    "late",  # no answer; applied when `land` is called
    "conflict",  # a create is refused although the key may be free: S3's 409
    "full",  # the disk is full
    "refuse",  # the bucket was deleted
    "flip",  # one bit of what was read is another
    "truncate",  # what was read ends early
    "stale",  # what was read is how it was some time ago
    "crash",
    "crash_during",
    "crash_after",
]
When = Literal["before", "during", "after"]
WRITES = frozenset({"create", "overwrite", "delete", "commit"})


class Crash(BaseException):
    """The simulated death of a process; not an `Exception`, so nothing but the test catches it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call to a store.

    Attributes:
        number: From 1, in the order of the calls; counts those that the plan looks at.
        name: "create", "overwrite", "get", "get_range", "read_into", "head", "list", "delete", "begin",
            "write" and "commit" (of an upload).
        key: The key, or the prefix, or the first of the deleted keys.
    """

    number: int
    name: str
    key: str

    @property
    def writes(self) -> bool:
        """Whether the operation changes what readers of the store see."""
        return self.name in WRITES


Plan = Callable[[Operation], "Fault | None"]


def no_faults(operation: Operation) -> Fault | None:
    """Let everything succeed."""
    return None


def fault_at(number: int, fault: Fault) -> Plan:
    """Return a plan that disturbs one operation."""
    return lambda operation: fault if operation.number == number else None


def fail_at(number: int) -> Plan:
    """Return a plan by which one operation does not happen."""
    return fault_at(number, "fail")


def lose_at(number: int) -> Plan:
    """Return a plan by which one operation happens and its answer is lost."""
    return fault_at(number, "lose")


def late_at(number: int) -> Plan:
    """Return a plan by which one write happens at `FaultyStore.land`, after its caller gave up."""
    return fault_at(number, "late")


def crash_at(number: int, when: When = "before") -> Plan:
    """Return a plan by which the process dies at one operation."""
    faults: dict[When, Fault] = {
        "before": "crash",
        "during": "crash_during",
        "after": "crash_after",
    }
    return fault_at(number, faults[when])


class FaultyStore:
    """A store around a store.

    Args:
        inner: The store that keeps the objects.
        plan: Says what befalls each counted operation.
        counted: Names of the operations that have numbers; by default all.
    """

    def __init__(
        self, inner: Store, plan: Plan = no_faults, *, counted: frozenset[str] | None = None
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.operations: list[Operation] = []
        self._counted = counted
        self._numbers = itertools.count(1)
        self._late: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._dead = False
        self._spoil: Fault | None = None

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def dead(self) -> bool:
        """Whether the simulated process has died."""
        return self._dead

    @property
    def counts(self) -> Counter[str]:
        """How many operations of each name were begun."""
        return Counter(operation.name for operation in self.operations)

    def reset(self, plan: Plan = no_faults) -> None:
        """Forget what was counted and follow another plan."""
        with self._lock:
            self.operations = []
            self._numbers = itertools.count(1)
            self.plan = plan

    def kill(self) -> None:
        """Make every further operation raise `Crash`, as for a process that is dead."""
        self._dead = True

    def source(self) -> Store:
        """Return the store that reads are answered from; as it was some time ago while an answer is stale."""
        return self.inner

    def defer(self, apply: Callable[[], object]) -> None:
        """Keep a write that lands late."""
        self._late.append(apply)

    def land(self) -> None:
        """Apply the writes that were late; each may find its key taken."""
        late, self._late = self._late, []
        for apply in late:
            with suppress(FwstoreError):
                apply()

    def put(
        self, key: str, buffers: Sequence[Buffer], *, mode: Mode, write_id: str | None = None
    ) -> None:
        content = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
        self.act(mode, key, lambda: self.inner.put(key, [content], mode=mode, write_id=write_id))

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        found = self.act("get", key, lambda: self.source().get(key, limit_bytes=limit_bytes))
        return self._spoiled(found)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        found = self.act("get_range", key, lambda: self.source().get_range(key, offset, length))
        if self._spoil == "truncate":
            raise Corrupt(f"injected: the answer to get_range {key} was cut short")
        return self._spoiled(found)

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        self.act("read_into", key, lambda: self.source().read_into(key, reads))
        if self._spoil == "truncate":
            raise Corrupt(f"injected: the answer to read_into {key} was cut short")
        for view in [view for read in reads for view in read.buffers if view.nbytes][:1]:
            flat = view.cast("B")
            flat[:] = self._spoiled(bytes(flat))

    def head(self, key: str) -> ObjectInfo:
        return self.act("head", key, lambda: self.source().head(key))

    def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Iterator[ObjectInfo]:
        return self.act(
            "list", prefix, lambda: self.source().list(prefix, start_after=start_after, limit=limit)
        )

    def delete(self, keys: Sequence[str]) -> None:
        # A batch is not atomic: a process that dies during it may have done half of it.
        half = keys[: (len(keys) + 1) // 2]
        self.act(
            "delete",
            keys[0] if keys else "",
            lambda: self.inner.delete(keys),
            partly=lambda: self.inner.delete(half),
        )

    def upload(self, key: str) -> Upload:
        return FaultyUpload(self, key, self.act("begin", key, lambda: self.inner.upload(key)))

    def close(self) -> None:
        self.inner.close()

    def act(
        self,
        name: str,
        key: str,
        operation: Callable[[], T],
        partly: Callable[[], object] | None = None,
    ) -> T:
        """Do one operation as the plan has it."""
        fault = self._fault_of(name, key)
        self._spoil = fault if fault in ("flip", "truncate") else None
        if fault == "crash":
            self._die(name, key)
        if fault == "crash_during":
            with suppress(FwstoreError):
                (partly or operation)()
            self._die(name, key)
        if fault == "late":
            self.defer(operation)
        if fault in ("fail", "late"):
            raise Unavailable(f"injected: {name} {key} had no answer")
        if fault == "conflict":
            raise AlreadyExists(f"injected: another creates {key} now")
        if fault == "full":
            raise LimitExceeded(f"injected: no room for {name} {key}")
        if fault == "refuse":
            raise InvalidInput(f"injected: the bucket of {key} does not exist")
        try:
            result = operation()
        finally:
            if fault == "crash_after":
                self.kill()
        if fault == "lose":
            raise Unavailable(f"injected: the answer to {name} {key} was lost")
        return result

    def _fault_of(self, name: str, key: str) -> Fault | None:
        with self._lock:
            if self._dead:
                raise Crash(f"a dead process called {name} {key}")
            if self._counted is not None and name not in self._counted:
                return None
            operation = Operation(next(self._numbers), name, key)
            self.operations.append(operation)
            return self.plan(operation)

    def _spoiled(self, content: bytes) -> bytes:
        """Return what arrives of an answer."""
        if self._spoil is None or not content:
            return content
        # Any place will do, as long as a repeated run takes the same.
        place = len(self.operations) * 7919 % len(content)
        if self._spoil == "truncate":
            return content[:place]
        return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]

    def _die(self, name: str, key: str) -> NoReturn:
        self._dead = True
        raise Crash(f"injected at {name} {key}")


class FaultyUpload:
    """An upload whose steps are operations of its store."""

    def __init__(self, store: FaultyStore, key: str, inner: Upload) -> None:
        self._store = store
        self._key = key
        self._inner = inner

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._store.act("write", self._key, lambda: self._inner.write(buffers))

    def commit(self) -> None:
        self._store.act("commit", self._key, self._inner.commit)

    def abort(self) -> None:
        # Not counted: tidying up is no event of a protocol. A dead process does not do it.
        if not self._store.dead:
            self._inner.abort()


def every_crash(
    make: Callable[[], Store],
    scenario: Callable[[Store], object],
    *,
    counted: frozenset[str] = WRITES,
) -> Iterator[tuple[str, Store]]:
    """Run a scenario once per operation and per way to die at it; yield what each death left.

    Args:
        make: Returns a fresh store in the state in which the scenario begins.
        scenario: Must do the same operations each time.
        counted: Names of the operations to die at; by default those that change the store.
    """
    whole = FaultyStore(make(), counted=counted)
    scenario(whole)
    for operation in whole.operations:
        for when in ("before", "during"):
            dying = FaultyStore(make(), crash_at(operation.number, when), counted=counted)
            with suppress(Crash):
                scenario(dying)
            dying.kill()
            yield f"{when} {operation.number} {operation.name} {operation.key}", dying.inner
