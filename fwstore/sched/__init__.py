"""The only code with threads, locks, queues and budgets.

Invariant: everything above asks a `Scheduler` for concurrency, so that the same code runs on threads in
production and inline, one operation after the other, in simulation.
"""

from fwstore.sched.budget import Budget
from fwstore.sched.buffers import BufferPool, Lease, PoolStatistics
from fwstore.sched.collector import collection_paused
from fwstore.sched.hasher import Hasher, Stretch, waits_for_lock
from fwstore.sched.inline import InlineScheduler
from fwstore.sched.locks import Condition, Lock, renew_after_fork
from fwstore.sched.retry import retry
from fwstore.sched.runtime import Runtime, system_runtime
from fwstore.sched.scheduler import Event, Scheduler
from fwstore.sched.shared import SharedPlace, find_shared, map_shared
from fwstore.sched.threads import ThreadScheduler

__all__ = [
    "Budget",
    "BufferPool",
    "Condition",
    "Event",
    "Hasher",
    "InlineScheduler",
    "Lease",
    "Lock",
    "PoolStatistics",
    "Runtime",
    "Scheduler",
    "SharedPlace",
    "Stretch",
    "ThreadScheduler",
    "collection_paused",
    "find_shared",
    "map_shared",
    "renew_after_fork",
    "retry",
    "system_runtime",
    "waits_for_lock",
]
