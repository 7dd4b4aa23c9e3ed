"""How the ranks of one job tell each other small things while they save.

Invariant: nothing here decides what is durable. A lost, late or repeated message can make a save fail;
it can never make a torn one visible, because only the commit record does that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fwstore.base.errors import FwstoreError, InvalidInput, NotFound, Unavailable
from fwstore.format.keys import LineageKeys
from fwstore.sched.runtime import Runtime
from fwstore.store.base import Store

T = TypeVar("T")

MESSAGE_BYTES_MAX = 1 << 28
_POLL_FIRST_S = 0.001
_POLL_LAST_S = 0.05


class Coordinator(Protocol):
    """Small values shared by the ranks of one job; any thread may call it."""

    @property
    def rank(self) -> int:
        """This process, 0 for the leader."""
        ...

    @property
    def world_size(self) -> int:
        """How many processes save together."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Publish a value for every rank."""
        ...

    def poll(self, key: str) -> bytes | None:
        """Return a published value, or None when there is none yet."""
        ...

    def drop(self, key: str) -> None:
        """Forget a value that no rank needs any more."""
        ...


class LocalCoordinator:
    """The coordinator of a job of one process."""

    rank = 0
    world_size = 1

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        """Publish a value."""
        self._values[key] = value

    def poll(self, key: str) -> bytes | None:
        """Return a published value, or None when there is none yet."""
        return self._values.get(key)

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._values.pop(key, None)


class C10dCoordinator:
    """A coordinator over the key-value store of torch.distributed.

    Only the methods `set`, `check`, `get` and `delete_key` of the store are used, none of which blocks
    on another rank, so a save in the background never stalls the collectives of training.

    Args:
        store: Any c10d store.
        rank: This process.
        world_size: Processes of the job.
        prefix: Text before every key.
    """

    def __init__(self, store: Any, rank: int, world_size: int, prefix: str) -> None:
        self._store = store
        self.rank = rank
        self.world_size = world_size
        self._prefix = prefix

    def put(self, key: str, value: bytes) -> None:
        """Publish a value for every rank."""
        try:
            # An empty value is indistinguishable from an absent one on some c10d stores.
            self._store.set(self._prefix + key, b"=" + value)
        except RuntimeError as error:
            raise Unavailable(f"the c10d store did not take {key!r}: {error}") from error

    def poll(self, key: str) -> bytes | None:
        """Return a published value, or None when there is none yet."""
        try:
            if not self._store.check([self._prefix + key]):
                return None
            return bytes(self._store.get(self._prefix + key))[1:]
        except RuntimeError as error:
            raise Unavailable(f"the c10d store did not answer for {key!r}: {error}") from error

    def drop(self, key: str) -> None:
        """Forget a value; stores that cannot delete keep it until the job ends."""
        try:
            self._store.delete_key(self._prefix + key)
        except RuntimeError:
            return


class StoreCoordinator:
    """A coordinator over small objects in the checkpoint store, for jobs without another channel.

    Args:
        store: The store that all ranks share.
        keys: The lineage under which the objects stand.
        job: Text that no other job uses.
        rank: This process.
        world_size: Processes of the job.
    """

    def __init__(
        self, store: Store, keys: LineageKeys, job: str, rank: int, world_size: int
    ) -> None:
        self._store = store
        self._prefix = keys.coordination(job)
        self.rank = rank
        self.world_size = world_size

    def put(self, key: str, value: bytes) -> None:
        """Publish a value for every rank."""
        self._store.put(self._prefix + key, [value], mode="overwrite")

    def poll(self, key: str) -> bytes | None:
        """Return a published value, or None when there is none yet."""
        try:
            return self._store.get(self._prefix + key, limit_bytes=MESSAGE_BYTES_MAX)
        except NotFound:
            return None

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._store.delete([self._prefix + key])


class ScopedCoordinator:
    """A part of a channel: messages of its scope are not heard in another.

    Args:
        channel: What carries the messages.
        scope: Text that nothing else at the channel uses.
    """

    def __init__(self, channel: Coordinator, scope: str) -> None:
        self._channel = channel
        self._prefix = f"{scope}/"
        self.rank = channel.rank
        self.world_size = channel.world_size

    def put(self, key: str, value: bytes) -> None:
        """Publish a value for every rank."""
        self._channel.put(self._prefix + key, value)

    def poll(self, key: str) -> bytes | None:
        """Return a published value, or None when there is none yet."""
        return self._channel.poll(self._prefix + key)

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._channel.drop(self._prefix + key)


@dataclass(frozen=True, kw_only=True)
class World:
    """Which process of how many this is, and how it was found out."""

    rank: int
    world_size: int
    process_group: bool = False


def find_world(runtime: Runtime, rank: int | None, world_size: int | None) -> World:
    """Return the place of this process in its job.

    Explicit arguments win, then an initialised torch.distributed, then RANK and WORLD_SIZE.

    Raises:
        InvalidInput: The rank does not fit the world size, or only one of the two is given.
    """
    if (rank is None) != (world_size is None):
        raise InvalidInput("give both rank= and world_size=, or neither")
    if rank is not None and world_size is not None:
        return _checked(World(rank=rank, world_size=world_size))
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return World(
            rank=distributed.get_rank(), world_size=distributed.get_world_size(), process_group=True
        )
    env_rank = runtime.environment.integer("RANK")
    env_size = runtime.environment.integer("WORLD_SIZE")
    if env_rank is None or env_size is None:
        return World(rank=0, world_size=1)
    return _checked(World(rank=env_rank, world_size=env_size))


def _checked(world: World) -> World:
    if not 0 <= world.rank < world.world_size:
        raise InvalidInput(f"rank {world.rank} does not fit a world of {world.world_size}")
    return world


def wait_for(
    coordinator: Coordinator,
    keys: tuple[str, ...],
    runtime: Runtime,
    *,
    deadline: float,
    sender: int = 0,
    stop: Callable[[], BaseException | None] = lambda: None,
) -> tuple[str, bytes]:
    """Return the first of several keys that is published, with its value.

    Args:
        coordinator: Where to look.
        keys: Looked at in this order.
        runtime: Its clock paces the polling.
        deadline: Monotonic second at which to give up.
        sender: The rank that should publish it, for the error.
        stop: Returns an error when waiting has lost its purpose.

    Raises:
        Unavailable: The deadline passed.
    """

    def look() -> tuple[str, bytes] | None:
        for key in keys:
            value = coordinator.poll(key)
            if value is not None:
                return key, value
        failure = stop()
        if failure is not None:
            raise failure
        return None

    return wait_until(
        look,
        runtime,
        deadline=deadline,
        missing=f"rank {sender} did not answer in time ({' or '.join(keys)}): see whether it is gone or stuck; "
        "Limits.commit_timeout_s is how long the others wait",
    )


def wait_until(
    look: Callable[[], T | None], runtime: Runtime, *, deadline: float, missing: str
) -> T:
    """Return what a look brings as soon as it brings something.

    Args:
        look: Called again and again.
        runtime: Its clock paces the looks.
        deadline: Monotonic second at which to give up.
        missing: What to say then.

    Raises:
        Unavailable: The deadline passed.
    """
    pause = _POLL_FIRST_S
    while (found := look()) is None:
        left = deadline - runtime.clock.monotonic()
        if left <= 0:
            raise Unavailable(missing)
        runtime.clock.sleep(min(pause, left))
        pause = min(pause * 2, _POLL_LAST_S)
    return found


def encode_failure(error: BaseException) -> bytes:
    """Return an error as a message for other ranks."""
    if isinstance(error, FwstoreError):
        text = f"{error.code}\n{error.message}"
    else:
        text = f"error\n{type(error).__name__}: {error}"
    return text.encode(errors="replace")[:4096]


def decode_failure(message: bytes) -> FwstoreError:
    """Return the error that another rank sent, as the class of its code."""
    code, _, text = message.decode(errors="replace").partition("\n")
    for kind in _subclasses(FwstoreError):
        if kind.code == code:
            return kind(text)
    return Unavailable(text)


def _subclasses(kind: type[FwstoreError]) -> list[type[FwstoreError]]:
    return [c for sub in kind.__subclasses__() for c in (sub, *_subclasses(sub))]
