"""The one door for the environment, and the limits and defaults that are passed down.

Invariant: configuration is a few frozen values made at the public entry and handed down; nothing
below reads the environment or a module global.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fwstore.base.errors import InvalidInput
from fwstore.base.units import GIB, KIB, MIB

_MAY_BE_ZERO = frozenset({"threads", "hashing_processes", "staging_bytes", "read_gap_bytes"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that a user may change; every queue, buffer and wait in fwstore obeys one of them.

    Attributes:
        threads: Worker threads of one process; 0 means one per core, at least 2 and at most 16, or 16 for a
            remote store, whose round trips they hide.
        hashing_processes: 1 hashes what was copied aside in a process beside once threads are seen to wait for a script
            that keeps Python busy, so that it does not slow its saves; 0 always hashes in threads. Saves of less
            than 64 MiB need none.
        staging_bytes: Most bytes of one state that are copied aside; a save with more to write blocks until
            it is durable. 0 means no bound.
        inflight_bytes: Most bytes encoded but not yet acknowledged by the store.
        read_bytes: Most bytes fetched but not yet delivered, on load.
        pack_bytes: Size at which a pack is finished and the next one begun.
        part_bytes: Size of one uploaded part of a pack.
        read_request_bytes: Largest single ranged read.
        read_gap_bytes: Unwanted bytes that are read through rather than starting another request.
        commit_timeout_s: Longest wait for the other ranks of one save.
        request_timeout_s: Longest time for one store request, its retries included.
        site_timeout_s: The same for small requests to other sites; one that takes longer makes a site silent.
    """

    threads: int = 0
    hashing_processes: int = 1
    staging_bytes: int = 0
    inflight_bytes: int = 256 * MIB
    read_bytes: int = 128 * MIB
    pack_bytes: int = 256 * MIB
    part_bytes: int = 48 * MIB
    read_request_bytes: int = 8 * MIB
    read_gap_bytes: int = 256 * KIB
    commit_timeout_s: float = 600.0
    request_timeout_s: float = 120.0
    site_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value, is_time = getattr(self, name), name.endswith("_s")
            least = 0 if is_time or name in _MAY_BE_ZERO else 1
            if type(value) not in ((int, float) if is_time else (int,)) or not value >= least:
                raise InvalidInput(f"Limits.{name} is a number of at least {least}, not {value!r}")

    def worker_threads(self) -> int:
        """Return the number of worker threads to start."""
        return self.threads or max(2, min(16, os.cpu_count() or 1))


@dataclass(frozen=True)
class Environment:
    """A snapshot of the environment variables that fwstore understands."""

    # Some hold credentials, so they are never shown.
    variables: Mapping[str, str] = field(repr=False)

    def text(self, name: str) -> str | None:
        """Return a variable, or None when it is unset or empty."""
        return self.variables.get(name) or None

    def integer(self, name: str) -> int | None:
        """Return a variable that holds a whole number, or None when unset or not a number."""
        value = self.text(name)
        return int(value) if value is not None and value.lstrip("-").isdigit() else None


def system_environment() -> Environment:
    """Return the environment of this process as it is now."""
    return Environment(dict(os.environ))


REMOTE_THREADS = 16
ROOT_BYTES_MAX = 256 * KIB
# Half of a root: beside it there is room for a plain state of 64 KiB, for metrics and for the names of leaves.
POSITION_BYTES_MAX = ROOT_BYTES_MAX // 2
LEAF_BYTES_MAX = 4 * MIB
RECORD_BYTES_MAX = 16 * KIB
PLAIN_STATE_BYTES_MAX = 1 * GIB

VERSION = "0.1.0"
