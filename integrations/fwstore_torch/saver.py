"""`Saver`: everything between a training loop and a run.

Invariant: after `step` or `save` returns, the parts may change; with lazy staging, by the step of an optimizer part
and, after `wait_staged`, by anything. A checkpoint appears in the run only complete, on all ranks or on none. A failed
save, a stop signal or a dead rank never hangs a rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, Unpack

from fwstore import Checkpoint, FwstoreError, InvalidInput, Run, SaveHandle, Unavailable, Writer
from fwstore_torch.failures import FailureLimit, tell
from fwstore_torch.late import LateCopies
from fwstore_torch.models import ModelPart
from fwstore_torch.optimizers import OptimizerPart
from fwstore_torch.options import SaverOptions, make_settings
from fwstore_torch.parts import make_parts
from fwstore_torch.restore import SAVER_KEY, Restore
from fwstore_torch.rng import capture_rng
from fwstore_torch.rounds import Decision, Rounds
from fwstore_torch.signals import SignalWatch, StopTraining

_FAREWELL_S = 10.0


@dataclass(frozen=True, kw_only=True)
class ResumeStatistics:
    """What `Saver.resume` took on this rank.

    Attributes:
        elect_s: Until the term was won, its base chosen, and all ranks knew both.
        load_s: Until the parts held what the base holds; 0 for a new run.
        base_step: Step of the base, or None for a new run.
    """

    elect_s: float
    load_s: float
    base_step: int | None


class Saver:
    """Saves the parts of a training run and resumes them on any number of ranks.

    Every rank makes one and calls it in the same way.

    Args:
        run: The run to extend.
        parts: What makes up the state, by name: modules, optimizers, and anything with `state_dict` and
            `load_state_dict`. `PerRank` marks a part that differs from rank to rank.
        frozen: By name, checkpoints whose tensors every save takes over by reference, such as the model
            that this one is compared with; no byte of them is written.
        options: Keyword options.

            - every: Steps (``100``) or time (``"10m"``) between saves; None saves only when asked to.
            - keep: What to keep of the run, a `Keep`.
            - grace: Time between the notice of a stop and the moment to be gone.
            - trainable_only: Leave out parameters that do not require gradients.
            - rng: Save and restore the random generators of every rank.
            - on_busy: ``"wait"`` for an earlier save that is still staged, or ``"skip"``.
            - staging: ``"eager"`` copies all tensors before a save returns. ``"lazy"`` copies what the optimizers
              own while the next forward and backward pass run; their next step waits for it. See `wait_staged`.
            - max_failures: The failed save in a row that raises; those before it warn.
            - max_unsaved: Time without a durable checkpoint after which a failed save raises.
            - signals: The signals that ask the job to stop; SIGTERM and SIGUSR1.
            - bases: Checkpoints whose bytes need not be written again.
            - codec: ``"raw"``, ``"zstd"`` or ``"auto"``.
            - coordinator: How ranks meet; found by itself under torch.distributed.
    """

    def __init__(
        self,
        run: Run,
        parts: Mapping[str, Any],
        *,
        frozen: Mapping[str, Checkpoint] | None = None,
        **options: Unpack[SaverOptions],
    ) -> None:
        self._settings = make_settings(options)
        self._run = run
        self._shared, self._own = make_parts(
            parts, trainable_only=self._settings.options["trainable_only"]
        )
        self._frozen = dict(frozen or {})
        if clash := sorted(self._frozen.keys() & parts.keys()):
            raise InvalidInput(f"{clash} are both parts and frozen references")
        self._limit = FailureLimit(
            self._settings.options["max_failures"],
            self._settings.max_unsaved_s,
            time.monotonic,
        )
        self._writer: Writer | None = None
        self._rounds: Rounds | None = None
        self._signals: SignalWatch | None = None
        self._resumed: ResumeStatistics | None = None
        self._handle: SaveHandle | None = None
        self._saved_at = time.monotonic()
        self._warm = False
        self._next = 0
        self._last: int | None = None
        self._tried: int | None = None
        self._final: int | None = None
        self._closed = False
        self._stopped: StopTraining | None = None
        self._late = (
            LateCopies([p for p in self._shared.values() if isinstance(p, OptimizerPart)])
            if self._settings.options["staging"] == "lazy"
            else None
        )

    @property
    def writer(self) -> Writer:
        """The writer of the run; made by `resume`."""
        if self._writer is None:
            raise InvalidInput(
                "call saver.resume() first: it takes over the run and returns the next step"
            )
        return self._writer

    @property
    def frozen(self) -> Mapping[str, Checkpoint]:
        """The checkpoints that this run builds on."""
        return dict(self._frozen)

    @property
    def resumed(self) -> ResumeStatistics | None:
        """What `resume` took, or None before it was called."""
        return self._resumed

    @property
    def stopped(self) -> StopTraining | None:
        """How the job was stopped, or None."""
        return self._stopped

    def resume(self, *, strict: bool = True) -> int:
        """Take over the run and load its newest checkpoint into the parts.

        Args:
            strict: Parts and tensor names must match the checkpoint one to one.

        Returns:
            The next step to do: 0, or the one after the loaded checkpoint.

        Raises:
            InvalidInput: A part does not fit the checkpoint, or `resume` was called before.
        """
        if self._writer is not None or self._closed:
            raise InvalidInput("resume() is called once, before the first step")
        options = self._settings.options
        began = time.monotonic()
        self._writer = writer = self._run.writer(
            keep=options["keep"],
            bases=options["bases"],
            references=self._frozen,
            codec=options["codec"],
            coordinator=options["coordinator"],
        )
        self._rounds = Rounds(
            writer.coordinator, self._settings.grace_s, time.monotonic, self._is_timed_save_due
        )
        self._signals = SignalWatch(options["signals"], self._rounds.ask_stop)
        elected = time.monotonic()
        if writer.base is not None:
            restore = Restore(
                self._shared, self._own, writer.rank, writer.world_size, rng=options["rng"]
            )
            restore.run(writer.base, strict=strict)
            self._next = writer.base.step + 1
        self._resumed = ResumeStatistics(
            elect_s=elected - began,
            load_s=time.monotonic() - elected,
            base_step=None if writer.base is None else writer.base.step,
        )
        self._rounds.begin(self._next - 1)
        return self._next

    def step(
        self, step: int, *, metrics: Mapping[str, float] | None = None, position: Any = None
    ) -> SaveHandle | None:
        """Tell that a step is done: saves if that is due, and leaves if the job is to stop.

        Args:
            step: The optimizer step, the same on every rank, larger than the one before.
            metrics: Numbers by name, stored with the save; those that are not finite are left out.
            position: Where the run stands in its data, a plain value, stored with the save.

        Returns:
            The handle of the save, or None when none was due.

        Raises:
            StopTraining: The job was asked to stop and everything is saved that could be; inside `steps`
                the iteration ends instead.
            FwstoreError: Too many saves failed, or the run belongs to a newer job.
        """
        _ = self.writer
        self._last = step
        self._limit.check()
        decisions = [] if self._rounds is None else self._rounds.arrive(step)
        stop = next((d for d in decisions if d.reason == "stop"), None)
        agreed = any(d.step >= 0 for d in decisions)
        handle = None
        if agreed or self._settings.is_due(step):
            # Whether `save` was called for this step, not what came of it: ranks must not differ in that.
            handle = (
                self._handle_of(step)
                if self._tried == step
                else self._try_save(step, metrics, position, stopping=stop is not None)
            )
        if stop is not None:
            self._leave(step, stop, handle)
        elif not self._warm:
            # Only now is everything there that a save will copy: optimizers begin empty.
            self._warm_up()
        return handle

    def save(
        self, step: int, *, metrics: Mapping[str, float] | None = None, position: Any = None
    ) -> SaveHandle:
        """Save now, whether due or not; every rank must call it.

        Args:
            step: The optimizer step, not saved before by this job.
            metrics: Numbers by name; those that are not finite are left out.
            position: Where the run stands in its data, a plain value.

        Returns:
            A handle; its `result` waits until the checkpoint is durable.
        """
        return self._save(step, metrics, position, on_busy="wait")

    def wait_staged(self) -> None:
        """Wait until anything may change the parts; with eager staging that is always so.

        The optimizers wait by themselves. A loop that changes parameters in another way after a save and before
        the next step of an optimizer calls this first.
        """
        if self._late is not None:
            self._late.wait()

    def steps(self, total: int) -> Iterator[int]:
        """Yield the steps that are left, and save the last one.

        Resumes if that was not done. A body that calls `step` itself passes metrics; for one that does
        not, `step` is called after it. Ends early when the job is to stop; see `stopped`.
        """
        if self._writer is None:
            self.resume()
        self._final = total - 1
        try:
            for step in range(self._next, total):
                yield step
                if self._last != step:
                    self.step(step)
                if self._stopped is not None:
                    return
                if step == self._final and self._tried != step:
                    self._try_save(step, None, None, stopping=False)
        finally:
            self._final = None

    def close(self) -> None:
        """Wait for the saves under way and let go of the run; a second call does nothing.

        Raises:
            Unavailable: The last save failed, so that the newest steps are not durable.
        """
        if self._closed:
            return
        try:
            if self._writer is not None:
                self._writer.wait()
                self._limit.check()
        finally:
            self._let_go()
        if self._limit.failures:
            raise Unavailable(
                f"the last {self._limit.failures} saves of run {self._run.name!r} failed and the newest "
                f"steps are not durable: {self._limit.last}"
            ) from self._limit.last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            # Another rank may be gone: what is under way gets the grace time and not a commit's deadline.
            self._wait_saved(time.monotonic() + self._settings.grace_s)
            self._let_go(patience_s=0.0)

    def _warm_up(self) -> None:
        self._warm = True
        # Other parts are small, and their owners may not expect to be asked but for a save.
        large = {n: p for n, p in self._shared.items() if isinstance(p, ModelPart | OptimizerPart)}
        try:
            self.writer.warm_up({name: part.state() for name, part in large.items()})
        except FwstoreError as error:
            tell(f"the first save will be slower than the others: {error}")

    def _is_timed_save_due(self) -> bool:
        every_s = self._settings.every_s
        return every_s > 0 and time.monotonic() - self._saved_at >= every_s

    def _try_save(
        self,
        step: int,
        metrics: Mapping[str, float] | None,
        position: Any,
        *,
        stopping: bool,
    ) -> SaveHandle | None:
        """Save; a failure is told or raised as the options say."""
        last = stopping or step == self._final
        on_busy = "wait" if last else self._settings.options["on_busy"]
        try:
            return self._save(step, metrics, position, on_busy=on_busy)
        except FwstoreError as error:
            self._limit.failed(step, error)
            return None

    def _save(
        self, step: int, metrics: Mapping[str, float] | None, position: Any, *, on_busy: Any
    ) -> SaveHandle:
        self._saved_at = time.monotonic()
        self._warm = True
        self._tried = step
        handle = self.writer.save(
            step,
            self._state(),
            metrics=metrics,
            position=position,
            per_rank=self._per_rank(),
            on_busy=on_busy,
            staging="eager" if self._late is None else self._late.is_late(),
        )
        if self._late is not None:
            self._late.watch(handle)
        self._handle = handle
        self._limit.watch(handle)
        return handle

    def _handle_of(self, step: int) -> SaveHandle | None:
        return self._handle if self._handle is not None and self._handle.step == step else None

    def _state(self) -> dict[str, Any]:
        about = {
            "version": 1,
            "world_size": self.writer.world_size,
            "per_rank": sorted(self._own),
            "rng": self._settings.options["rng"],
            "frozen": {
                name: {"run": c.run, "step": c.step, "id": c.id} for name, c in self._frozen.items()
            },
        }
        return {name: part.state() for name, part in self._shared.items()} | {SAVER_KEY: about}

    def _per_rank(self) -> dict[str, Any]:
        parts = {name: part.state() for name, part in self._own.items()}
        rng = capture_rng() if self._settings.options["rng"] else None
        return {"parts": parts, "rng": rng}

    def _leave(self, step: int, stop: Decision, handle: SaveHandle | None) -> None:
        """Make the stop durable within the grace time and end the loop."""
        saved = self._wait_saved(stop.deadline) and handle is not None
        self._stopped = StopTraining(step, saved=saved, number=stop.signal)
        left = max(0.0, stop.deadline - time.monotonic())
        self._let_go(patience_s=min(left, _FAREWELL_S))
        if self._final is None:
            raise self._stopped

    def _wait_saved(self, deadline: float) -> bool:
        """Wait for the newest save; returns whether it is durable."""
        if self._handle is None:
            return False
        try:
            left = max(0.0, deadline - time.monotonic())
            return self._handle.result(timeout=left) is not None
        except FwstoreError as error:
            tell(f"leaving without the save of step {self._handle.step}: {error}")
            return False

    def _let_go(self, patience_s: float = _FAREWELL_S) -> None:
        self._closed = True
        if self._late is not None:
            self._late.close()
        if self._signals is not None:
            self._signals.close()
        if self._rounds is not None:
            self._rounds.farewell(patience_s)
            self._rounds.close()
        # A save that is still running has outlived its deadline; waiting for it here would hang.
        if self._writer is not None and (self._handle is None or self._handle.done()):
            self._writer.close()
