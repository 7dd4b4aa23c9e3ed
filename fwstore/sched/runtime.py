"""The world as one process sees it, in one value that is handed down.

Invariant: time, identifiers, threads, limits and environment reach every layer through a `Runtime`, so
a test or a simulation replaces them all by replacing one value.
"""

from __future__ import annotations

from dataclasses import dataclass

from fwstore.base.clock import Clock, SystemClock
from fwstore.base.config import Environment, Limits, system_environment
from fwstore.base.ids import Ids, SystemIds
from fwstore.sched.hasher import Hasher
from fwstore.sched.scheduler import Scheduler
from fwstore.sched.threads import ThreadScheduler


@dataclass(frozen=True)
class Runtime:
    """Time, identifiers, threads, limits, environment, and the process that hashes, if there is to be one."""

    clock: Clock
    ids: Ids
    scheduler: Scheduler
    limits: Limits
    environment: Environment
    hasher: Hasher | None = None


def system_runtime(limits: Limits | None = None) -> Runtime:
    """Return the runtime of this process; threads start when they are first needed."""
    limits = limits or Limits()
    clock = SystemClock()
    workers = limits.worker_threads()
    return Runtime(
        clock=clock,
        ids=SystemIds(),
        scheduler=ThreadScheduler(workers, clock=clock),
        limits=limits,
        environment=system_environment(),
        hasher=Hasher(workers) if limits.hashing_processes else None,
    )
