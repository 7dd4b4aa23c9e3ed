"""The writing end of a run: one job, one term, many saves.

Invariant: at most one save uploads and one waits staged; at most one reads the caller's tensors; saves commit in the
order in which they were called; after `Fenced` nothing more is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, get_args

from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Fenced,
    FwstoreError,
    InternalError,
    InvalidInput,
)
from fwstore.base.notices import tell
from fwstore.checkpoint.coordinator import Coordinator
from fwstore.checkpoint.endings import Endings
from fwstore.checkpoint.engine import Prepared, SaveEngine
from fwstore.checkpoint.handle import SaveHandle, SaveStatistics
from fwstore.checkpoint.leader import Draft, Leader
from fwstore.checkpoint.messages import outcome_key, part_key
from fwstore.checkpoint.outcome import (
    SKIPPED,
    Committed,
    failure_message,
    part_message,
    wait_outcome,
)
from fwstore.checkpoint.saving import Saving
from fwstore.checkpoint.session import SaveRequest, Staging
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
        self._endings = Endings(engine.session.coordinator) if leader is None else leader.endings
        self._steps: set[int] = set()
        self._savings: list[Saving] = []
        # By number of the save; not the errors themselves, whose frames hold the states.
        self._unheard: dict[int, str] = {}
        self._fenced: Fenced | None = None
        self._closed = False

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
        staging: Staging = "eager",
        blocking: bool = False,
    ) -> SaveHandle:
        """Save a state; returns when the tensors may change again, unless staging is lazy.

        Args:
            step: The optimizer step; every rank passes the same.
            state: Nested dicts, lists and tuples of tensors and plain values. Plain values are taken from
                rank 0; tensors from the ranks that hold them.
            metrics: Numbers by name, from rank 0; those that are not finite are left out.
            position: Where the run stands in its data, a plain value from rank 0 of at most 128 KiB.
            per_rank: A plain value of this rank alone, such as the state of its random generators.
            on_busy: What to do when an earlier save is still staged: "wait" for it or "skip" this one.
            staging: "eager" copies the tensors before the call returns. "lazy" copies them afterwards: none may
                change until `SaveHandle.wait_staged` has returned. A function that is given a tensor says whether
                that one may be copied late. A state larger than `Limits.staging_bytes` is never copied late.
            blocking: Write straight from the live tensors and return when committed, without staging.

        Returns:
            A handle; its `result` waits until the checkpoint is durable on every rank.

        Raises:
            AlreadyExists: This job saved the step before.
            Fenced: A newer job owns the run.
            InvalidInput: The step or a value in the state is unusable, or the writer is closed.
            LimitExceeded: The position is too large, or there is no memory to copy the state aside.
            UnsupportedValue: A value in the state cannot be stored; its key path is named.
        """
        started = self._runtime.clock.monotonic()
        save = self._endings.begin()
        request = SaveRequest(
            save, step, state, metrics, position, per_rank, blocking=blocking, staging=staging
        )
        heard = partial(self._unheard.pop, save, None)
        saving = Saving(request, SaveStatistics(step=step), self._runtime.clock, started, heard)
        try:
            self._check(step, on_busy, staging)
            if on_busy == "skip" and self._busy():
                return self._skip(saving)
            self._make_room(0 if blocking else 1)
            saving.prepared = self._engine.prepare(request, saving.statistics)
            if saving.prepared is None:
                return self._skip(saving)
        except BaseException as error:
            self._announce_failure(save, error)
            self._endings.end(save)
            raise
        self._begin_or_abandon(saving, saving.prepared)
        saving.statistics.blocked_s = self._runtime.clock.monotonic() - started
        return saving.handle

    def warm_up(self, state: Any) -> None:
        """Get ready, in the background, for saves of a state like this one; returns at once.

        The first save copies into memory that the process has never touched, which takes several times as long
        as copying into memory that is there. Called as soon as the tensors exist, this makes it as fast as the
        later ones. Nothing is written, other ranks need not take part, and values do not matter.

        Args:
            state: As for `save`.

        Raises:
            LimitExceeded: There is no memory for a copy of the state.
            UnsupportedValue: A tensor in the state cannot be stored; its key path is named.
        """
        self._check_open()
        self._engine.warm_up(state)

    def wait(self) -> None:
        """Wait until every save called so far has ended, well or not."""
        for saving in list(self._savings):
            saving.ended.result()

    def close(self) -> None:
        """Wait for the saves under way and stop writing; a second call does nothing.

        Every save that failed and whose handle nobody asked is told by a warning: nothing else would tell of it.
        """
        if self._closed:
            return
        self._closed = True
        self.wait()
        self._engine.close()
        for save in sorted(self._unheard):
            tell(self._unheard.pop(save), stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, step: int, on_busy: str, staging: Staging) -> None:
        self._check_open()
        self._check_fence()
        if type(step) is not int or not 0 <= step < STEP_MAX:
            raise InvalidInput(f"step must be an int from 0 to {STEP_MAX - 1}, not {step!r}")
        if on_busy not in get_args(OnBusy):
            raise InvalidInput(f"on_busy is 'wait' or 'skip', not {on_busy!r}")
        if staging not in ("eager", "lazy") and not callable(staging):
            raise InvalidInput(
                f"staging is 'eager', 'lazy' or a function of a tensor, not {staging!r}"
            )
        if step in self._steps:
            raise AlreadyExists(
                f"this job has saved step {step} before; a step is saved once per term"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidInput("this writer is closed; open another with run.writer()")

    def _check_fence(self) -> None:
        if self._fenced is not None:
            raise Fenced(self._fenced.message)

    def _busy(self) -> bool:
        return any(not saving.result.done() for saving in self._savings)

    def _make_room(self, most: int) -> None:
        """Leave at most so many earlier saves running, so that memory holds few states, and none that copies."""
        running = [saving for saving in self._savings if not saving.result.done()]
        while len(running) > most:
            running.pop(0).result.exception()
        for saving in running:
            saving.staged.exception()
        self._savings = [saving for saving in self._savings if not saving.ended.done()]

    def _begin_or_abandon(self, saving: Saving, prepared: Prepared) -> None:
        if not prepared.late:
            saving.staged.set_result(None)
        self._steps.add(saving.request.step)
        try:
            self._begin(saving)
            if prepared.live:
                saving.handle.result()
        except BaseException:
            # The caller may change its tensors now, also those that are still being read.
            saving.abandoned = True
            raise

    def _begin(self, saving: Saving) -> None:
        before = self._savings[-1].ended if self._savings else None
        self._savings.append(saving)
        name = f"fwstore-save-{saving.request.step}"
        try:
            self._runtime.scheduler.spawn(name, self._finish, saving, before)
        except FwstoreError as error:
            self._announce_failure(saving.request.save, error)
            saving.end(None, error)
            self._endings.end(saving.request.save)
            saving.ended.set_result(None)
            raise

    def _skip(self, saving: Saving) -> SaveHandle:
        self._engine.session.coordinator.put(part_key(saving.request.save, self.rank), SKIPPED)
        if self._leader is not None:
            self._engine.session.coordinator.put(outcome_key(saving.request.save), SKIPPED)
        saving.end(None, None)
        self._endings.end(saving.request.save)
        return saving.handle

    def _announce_failure(self, save: int, error: BaseException) -> None:
        """Tell the other ranks, so that none waits for this one."""
        message, coordinator = failure_message(error), self._engine.session.coordinator
        # What failed here must not be hidden by a channel that failed as well: others wait at most so long.
        with suppress(FwstoreError):
            coordinator.put(part_key(save, self.rank), message)
            if self._leader is not None:
                coordinator.put(outcome_key(save), message)

    def _finish(self, saving: Saving, before: Future[None] | None) -> None:
        """Bring a save to its end in the background, after the one before it."""
        try:
            try:
                if not saving.staged.done():
                    self._copy_late(saving)
            finally:
                if before is not None:
                    before.result()
            checkpoint = self._write_and_commit(saving)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._remember(saving, error)
            saving.end(None, error)
        else:
            if checkpoint is None:
                self._steps.discard(saving.request.step)
            saving.statistics.durable_s = self._runtime.clock.monotonic() - saving.started
            saving.end(checkpoint, None)
            if self._leader is not None and checkpoint is not None:
                saving.statistics.bytes_freed = self._leader.after_commit(checkpoint.entry)
        finally:
            try:
                self._endings.end(saving.request.save)
            finally:
                saving.ended.set_result(None)

    def _copy_late(self, saving: Saving) -> None:
        """Copy what training may change next; it learns at once when it may."""
        request, prepared = saving.request, _prepared(saving)
        try:
            self._engine.copy_late(prepared, saving.statistics, saving.check)
        except BaseException as error:
            saving.staged.set_exception(error)
            self._announce_failure(request.save, error)
            raise
        saving.staged.set_result(None)

    def _write_and_commit(self, saving: Saving) -> Checkpoint | None:
        request, prepared, statistics = saving.request, _prepared(saving), saving.statistics
        try:
            self._check_fence()
            part = self._engine.write(request, prepared, statistics, saving.check)
        except BaseException as error:
            self._announce_failure(request.save, error)
            raise
        committed = self._agree_on_outcome(request, prepared, part)
        if committed is None:
            return None
        self._engine.learn(prepared)
        _take_totals(statistics, committed.totals)
        return self._engine.session.checkpoint(committed.entry)

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
            metrics=prepared.metrics,
        )
        voted = self._engine.agreement.voted_in == request.save
        return self._leader.commit(request, draft, part, voted=voted)

    def _remember(self, saving: Saving, error: BaseException) -> None:
        request = saving.request
        self._steps.discard(request.step)
        if not saving.abandoned:
            self._unheard[request.save] = (
                f"the save of step {request.step} failed and nobody asked for its result: "
                f"{type(error).__name__}: {error}"
            )
        if isinstance(error, Conflict):
            # Ranks may disagree on their tensors, or reused bytes were condemned: begin afresh.
            self._engine.agreement.forget(request.save)
            self._engine.forget()
        if isinstance(error, Fenced):
            self._fenced = error


def _prepared(saving: Saving) -> Prepared:
    if saving.prepared is None:
        raise InternalError("a save began before it was prepared")
    return saving.prepared


def _take_totals(statistics: SaveStatistics, totals: Totals) -> None:
    statistics.bytes_logical = totals.bytes_logical
    statistics.bytes_written = totals.bytes_written
    statistics.bytes_reused = totals.bytes_reused
    statistics.chunks = totals.chunks
    statistics.packs = totals.packs
    statistics.fragment_bytes = totals.bytes_fragments
