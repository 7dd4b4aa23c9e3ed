"""One save under way, from the call to its end.

Invariant: `staged` ends before `result`, and when it has ended nothing reads the caller's tensors any more; but for
a blocking save, whose caller has nothing to wait for until it is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field

from fwstore.base.clock import Clock
from fwstore.base.errors import Unavailable
from fwstore.checkpoint.engine import Prepared
from fwstore.checkpoint.handle import SaveHandle, SaveStatistics
from fwstore.checkpoint.session import SaveRequest
from fwstore.checkpoint.snapshot import Checkpoint


@dataclass(eq=False)
class Saving:
    """A save under way.

    Attributes:
        request: What was asked for.
        statistics: Its figures.
        clock: Measures how long the caller waits.
        started: Monotonic second of the call.
        heard: Called when somebody asked how the save ended.
        prepared: What will be written, once it is known.
        abandoned: The caller gave up waiting for a blocking save, or for its tensors.
        staged: Ends when the tensors may change.
        result: The checkpoint, as soon as it is durable.
        ended: Set when nothing of the save runs any more, retention included.
    """

    request: SaveRequest
    statistics: SaveStatistics
    clock: Clock
    started: float
    heard: Callable[[], object]
    prepared: Prepared | None = None
    abandoned: bool = False
    staged: Future[None] = field(default_factory=Future)
    result: Future[Checkpoint | None] = field(default_factory=Future)
    ended: Future[None] = field(default_factory=Future)

    @property
    def handle(self) -> SaveHandle:
        """What the caller holds."""
        return SaveHandle(
            self.request.step, self.result, self.statistics, self.heard, self.wait_staged
        )

    def check(self) -> None:
        """Stop a save whose caller has gone.

        Raises:
            Unavailable: It has.
        """
        if self.abandoned:
            raise Unavailable(f"the save of step {self.request.step} was interrupted by its caller")

    def wait_staged(self, timeout: float | None = None) -> None:
        """Wait until the tensors may change; see `SaveHandle.wait_staged`."""
        began = self.clock.monotonic()
        try:
            error = self.staged.exception(timeout)
        except FutureTimeout as late:
            raise Unavailable(
                f"the tensors of step {self.request.step} are still being copied after {timeout} s and must not change"
            ) from late
        except BaseException:
            # The caller may change its tensors now: what has not been copied by then must not be saved.
            self.abandoned = True
            wait([self.staged])
            raise
        finally:
            self.statistics.blocked_s += self.clock.monotonic() - began
        if error is not None:
            raise error

    def end(self, checkpoint: Checkpoint | None, error: BaseException | None) -> None:
        """Give the memory back and tell whoever waits."""
        if self.prepared is not None:
            self.prepared.release()
            self.prepared = None
        if not self.staged.done():
            self.staged.set_result(None)
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(checkpoint)
