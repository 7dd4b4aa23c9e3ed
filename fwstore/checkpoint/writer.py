"""The writing end of a run: one job, one term, many saves.

Invariant: at most one save uploads and one waits staged; saves commit in the order in which they were
called; after `Fenced` nothing more is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

from fwstore.base.errors import AlreadyExists, Conflict, Fenced, InvalidInput
from fwstore.checkpoint.catalogue import outcome_key, part_key
from fwstore.checkpoint.coordinator import Coordinator
from fwstore.checkpoint.engine import Prepared, SaveEngine
from fwstore.checkpoint.handle import SaveHandle, SaveStatistics
from fwstore.checkpoint.leader import Draft, Leader
from fwstore.checkpoint.outcome import (
    SKIPPED,
    Committed,
    failure_message,
    part_message,
    wait_outcome,
)
from fwstore.checkpoint.session import SaveRequest
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.format.root import Totals

OnBusy = Literal["wait", "skip"]

STEP_MAX = 10**15


class Writer:
    """Extends a run; made by `Run.writer`, one per job and rank.

    Every rank calls `save` with the same steps in the same order.
    """

    def __init__(self, engine: SaveEngine, leader: Leader | None, base: Checkpoint | None) -> None:
        self._engine = engine
        self._leader = leader
        self._base = base
        self._runtime = engine.session.access.runtime
        self._save = 0
        self._steps: set[int] = set()
        self._running: list[Future[Checkpoint | None]] = []
        self._fenced: Fenced | None = None
        self._closed = False
        self._turn: Future[None] = _done()

    @property
    def term(self) -> int:
        """The fencing number of this job; a higher one elsewhere ends this writer."""
        return self._engine.session.term

    @property
    def rank(self) -> int:
        """This process, 0 for the leader."""
        return self._engine.session.rank

    @property
    def world_size(self) -> int:
        """How many processes save together."""
        return self._engine.session.world_size

    @property
    def base(self) -> Checkpoint | None:
        """The checkpoint that this job continues, or None for a new run."""
        return self._base

    @property
    def coordinator(self) -> Coordinator:
        """How the ranks of this job talk to each other."""
        return self._engine.session.coordinator

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def save(  # noqa: PLR0913 - the public face has flat keywords
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, float] | None = None,
        position: Any = None,
        per_rank: Any = None,
        on_busy: OnBusy = "wait",
        blocking: bool = False,
    ) -> SaveHandle:
        """Save a state; returns when the tensors may change again.

        Args:
            step: The optimizer step; every rank passes the same.
            state: Nested dicts, lists and tuples of tensors and plain values. Plain values are taken from
                rank 0; tensors from the ranks that hold them.
            metrics: Finite numbers by name, from rank 0.
            position: Where the run stands in its data, a plain value from rank 0.
            per_rank: A plain value of this rank alone, such as the state of its random generators.
            on_busy: What to do when an earlier save is still staged: "wait" for it or "skip" this one.
            blocking: Write straight from the live tensors and return when committed, without staging.

        Returns:
            A handle; its `result` waits until the checkpoint is durable on every rank.

        Raises:
            AlreadyExists: This job saved the step before.
            Fenced: A newer job owns the run.
            InvalidInput: The step or a value in the state is unusable, or the writer is closed.
            UnsupportedValue: A value in the state cannot be stored; its key path is named.
        """
        started = self._runtime.clock.monotonic()
        self._check(step)
        self._save += 1
        statistics = SaveStatistics(step=step)
        request = SaveRequest(
            self._save, step, state, metrics, position, per_rank, blocking=blocking
        )
        if on_busy == "skip" and self._busy():
            return self._skip(request, statistics)
        self._wait_staged()
        if blocking:
            self.wait()
        try:
            prepared = self._engine.prepare(request, statistics)
        except BaseException as error:
            self._announce_failure(request.save, error)
            raise
        self._steps.add(step)
        future = self._runtime.scheduler.spawn(
            f"fwstore-save-{step}",
            self._finish,
            request,
            prepared,
            statistics,
            started,
            self._next_turn(),
        )
        self._running = [f for f in self._running if not f.done()] + [future]
        handle = SaveHandle(step, future, statistics)
        if blocking:
            handle.result()
        statistics.blocked_s = self._runtime.clock.monotonic() - started
        return handle

    def wait(self) -> None:
        """Wait until every save called so far has ended, well or not."""
        for future in list(self._running):
            future.exception()

    def close(self) -> None:
        """Wait for the saves under way and stop writing; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.wait()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, step: int) -> None:
        if self._closed:
            raise InvalidInput("this writer is closed; open another with run.writer()")
        if self._fenced is not None:
            raise Fenced(self._fenced.message)
        if type(step) is not int or not 0 <= step < STEP_MAX:
            raise InvalidInput(f"step must be an int from 0 to {STEP_MAX}, not {step!r}")
        if step in self._steps:
            raise AlreadyExists(
                f"this job has saved step {step} before; a step is saved once per term"
            )

    def _busy(self) -> bool:
        return any(not future.done() for future in self._running)

    def _wait_staged(self) -> None:
        """Leave at most one earlier save running, so that memory holds at most two states."""
        while sum(not future.done() for future in self._running) > 1:
            next(f for f in self._running if not f.done()).exception()
        self._running = [f for f in self._running if not f.done()]

    def _next_turn(self) -> tuple[Future[None], Future[None]]:
        before, self._turn = self._turn, Future()
        return before, self._turn

    def _skip(self, request: SaveRequest, statistics: SaveStatistics) -> SaveHandle:
        self._engine.session.coordinator.put(part_key(request.save, self.rank), SKIPPED)
        if self._leader is not None:
            self._engine.session.coordinator.put(outcome_key(request.save), SKIPPED)
        future: Future[Checkpoint | None] = Future()
        future.set_result(None)
        return SaveHandle(request.step, future, statistics)

    def _announce_failure(self, save: int, error: BaseException) -> None:
        """Tell the other ranks, so that none waits for this one."""
        message = failure_message(error)
        self._engine.session.coordinator.put(part_key(save, self.rank), message)
        if self._leader is not None:
            self._engine.session.coordinator.put(outcome_key(save), message)

    def _finish(
        self,
        request: SaveRequest,
        prepared: Prepared,
        statistics: SaveStatistics,
        started: float,
        turn: tuple[Future[None], Future[None]],
    ) -> Checkpoint | None:
        before, after = turn
        try:
            before.result()
            checkpoint = self._write_and_commit(request, prepared, statistics)
        except BaseException as error:
            self._remember(request, error)
            raise
        finally:
            prepared.release()
            after.set_result(None)
        if checkpoint is None:
            self._steps.discard(request.step)
        statistics.durable_s = self._runtime.clock.monotonic() - started
        return checkpoint

    def _write_and_commit(
        self, request: SaveRequest, prepared: Prepared, statistics: SaveStatistics
    ) -> Checkpoint | None:
        if self._fenced is not None:
            raise Fenced(self._fenced.message)
        try:
            part = self._engine.write(request, prepared, statistics)
        except BaseException as error:
            self._announce_failure(request.save, error)
            raise
        committed = self._agree_on_outcome(request, prepared, part)
        if committed is None:
            return None
        self._engine.learn(prepared)
        _take_totals(statistics, committed.totals)
        return Checkpoint(self._engine.session.access, committed.entry)

    def _agree_on_outcome(
        self, request: SaveRequest, prepared: Prepared, part: bytes
    ) -> Committed | None:
        session = self._engine.session
        if self._leader is None:
            session.coordinator.put(part_key(request.save, self.rank), part_message(part))
            return wait_outcome(session, request.save)
        draft = Draft(
            save=request.save,
            step=request.step,
            state=prepared.inline_state,
            position=prepared.position,
            metrics=dict(request.metrics or {}),
        )
        voted = self._engine.agreement.voted_in == request.save
        return self._leader.commit(request, draft, part, voted=voted)

    def _remember(self, request: SaveRequest, error: BaseException) -> None:
        self._steps.discard(request.step)
        if isinstance(error, Conflict):
            # Ranks may disagree on their tensors, or reused bytes were condemned: begin afresh.
            self._engine.agreement.forget()
            self._engine.forget()
        if isinstance(error, Fenced):
            self._fenced = error


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _take_totals(statistics: SaveStatistics, totals: Totals) -> None:
    statistics.bytes_logical = totals.bytes_logical
    statistics.bytes_written = totals.bytes_written
    statistics.bytes_reused = totals.bytes_reused
    statistics.chunks = totals.chunks
    statistics.packs = totals.packs
    statistics.fragment_bytes = totals.bytes_fragments
