"""fwstore, asynchronous or blocking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import fwstore
from benchmarks.common.state import State
from benchmarks.peers.base import Peer, Wait, done


class Fwstore(Peer):
    def __init__(
        self,
        url: str,
        *,
        blocking: bool = False,
        threads: int = 0,
        options: Mapping[str, object] | None = None,
        staging: Literal["eager", "lazy"] = "eager",
    ) -> None:
        limits = fwstore.Limits(threads=threads)
        self._repository = fwstore.open(url, limits=limits, options=options)
        self._run = self._repository.run("bench")
        self._writer = self._run.writer()
        self._blocking = blocking
        self._staging = staging
        self._newest: fwstore.SaveHandle | None = None

    @property
    def repository(self) -> fwstore.Repository:
        """Where it saves."""
        return self._repository

    def prepare(self, state: State) -> None:
        if not self._blocking:
            self._writer.warm_up(state)

    def save(self, state: State, step: int) -> Wait:
        return self.begin(state, step).result

    def begin(self, state: State, step: int) -> fwstore.SaveHandle:
        """Save, for those who ask more than whether it is durable."""
        self._newest = self._writer.save(
            step, state, blocking=self._blocking, staging=self._staging
        )
        return self._newest

    def staged(self) -> Wait:
        return done if self._newest is None else self._newest.wait_staged

    def load(self, into: State, step: int) -> None:
        self._run[step].load(into=into)

    def close(self) -> None:
        self._writer.close()
        self._repository.close()
