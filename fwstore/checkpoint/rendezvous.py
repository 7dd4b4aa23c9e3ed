"""How the ranks of one start of a job find each other, at a channel that other starts may have used.

The leader draws a name and publishes it; every other rank says hello under that name with a token of its own,
and is welcomed with the same token. A name that an earlier start left is answered by nobody, so its reader goes
on listening until it hears the new one. Counters would not do: the agents of an elastic job count restarts each
for itself, and a process that failed alone has made fewer writers than the others.

Invariant: ranks that met have the channel in common with no other start of the job and no other writer.
"""

from __future__ import annotations

import sys
from typing import Any

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.coordinator import (
    C10dCoordinator,
    Coordinator,
    LocalCoordinator,
    ScopedCoordinator,
    StoreCoordinator,
    World,
    wait_for,
    wait_until,
)
from fwstore.format.keys import LineageKeys
from fwstore.sched.runtime import Runtime
from fwstore.store.base import Store

_NAME_KEY = "leader"
_TOKEN_BYTES = 8


def make_coordinator(
    runtime: Runtime, world: World, store: Store, keys: LineageKeys
) -> Coordinator:
    """Return the coordinator that this job has: nothing for one rank, c10d, or the store itself.

    Returns once the ranks have met.

    Raises:
        InvalidInput: Several ranks without torch.distributed and without a job id in the environment.
        Unavailable: A rank did not come in time.
    """
    if world.world_size == 1:
        return LocalCoordinator()
    return meet(_open_channel(runtime, world, store, keys), runtime)


def meet(channel: Coordinator, runtime: Runtime) -> Coordinator:
    """Wait for the other ranks and return a part of the channel that is theirs and this one's alone.

    Raises:
        Unavailable: A rank did not come in time.
    """
    deadline = runtime.clock.monotonic() + runtime.limits.commit_timeout_s
    token = runtime.ids.token(_TOKEN_BYTES)
    if channel.rank == 0:
        _welcome(channel, runtime, token, deadline)
        return ScopedCoordinator(channel, token)
    return ScopedCoordinator(channel, _say_hello(channel, runtime, token, deadline))


def _welcome(channel: Coordinator, runtime: Runtime, name: str, deadline: float) -> None:
    channel.put(_NAME_KEY, name.encode())
    for rank in range(1, channel.world_size):
        hello = _hello_key(name, rank)
        _, token = wait_for(channel, (hello,), runtime, deadline=deadline, sender=rank)
        channel.put(_welcome_key(name, rank), token)
        channel.drop(hello)


def _say_hello(channel: Coordinator, runtime: Runtime, token: str, deadline: float) -> str:
    mine = token.encode()
    heard = ""

    def listen() -> str | None:
        nonlocal heard
        name = (channel.poll(_NAME_KEY) or b"").decode()
        # Looked at after the name: a leader that goes on to its next writer has welcomed all to this one.
        if heard and channel.poll(_welcome_key(heard, channel.rank)) == mine:
            channel.drop(_welcome_key(heard, channel.rank))
            return heard
        if name != heard:
            heard = name
            channel.put(_hello_key(name, channel.rank), mine)
        return None

    return wait_until(
        listen,
        runtime,
        deadline=deadline,
        missing="rank 0 did not come to meet the others in time: see whether it is gone or stuck; "
        "Limits.commit_timeout_s is how long they wait",
    )


def _hello_key(name: str, rank: int) -> str:
    return f"{name}/hello/{rank}"


def _welcome_key(name: str, rank: int) -> str:
    return f"{name}/welcome/{rank}"


def _open_channel(runtime: Runtime, world: World, store: Store, keys: LineageKeys) -> Coordinator:
    if world.process_group or _process_group_store() is not None:
        prefix = f"fwstore/{keys.label}/"
        return C10dCoordinator(_process_group_store(), world.rank, world.world_size, prefix)
    for variable in ("FWSTORE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        job = runtime.environment.text(variable)
        # torchrun calls every job "none" that was not given a name.
        if job and job != "none":
            safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in job)
            return StoreCoordinator(store, keys, safe, world.rank, world.world_size)
    raise InvalidInput(
        f"a job of {world.world_size} ranks needs a way to meet: initialise torch.distributed, pass "
        "coordinator=, or set FWSTORE_JOB to a text that no other job uses"
    )


def _process_group_store() -> Any | None:
    distributed = sys.modules.get("torch.distributed.distributed_c10d")
    if distributed is None or not distributed.is_initialized():
        return None
    # torch has no public accessor for the default store; this name is stable since 1.8.
    return distributed._get_default_store()  # noqa: SLF001
