"""What a caller holds while its save becomes durable.

Invariant: `result` returns a checkpoint only after its commit record counts; every other ending is an
error, or None for a save that was skipped because an earlier one still ran.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fwstore.base.errors import Unavailable

if TYPE_CHECKING:
    from fwstore.checkpoint.snapshot import Checkpoint


@dataclass(kw_only=True)
class SaveStatistics:
    """Figures of one save on one rank; those of the whole job are known once it is committed.

    Attributes:
        step: The step that was saved.
        blocked_s: Time the caller waited until its tensors could change again: in `save`, and in `wait_staged`.
        durable_s: Time from the call to the acknowledged commit.
        bytes_logical: Bytes of all tensors of the snapshot, counted once.
        bytes_written: Bytes that all ranks wrote to packs.
        bytes_reused: Bytes of the snapshot that stood in the store before.
        rank_bytes_written: Bytes that this rank wrote to packs.
        rank_bytes_staged: Bytes that this rank copied out of the caller's memory.
        chunks: Chunks of the snapshot.
        packs: Packs that the snapshot refers to, old ones too.
        fragment_bytes: Bytes of the snapshot in chunks that are parts of cells.
        bytes_freed: Bytes that retention freed after this save, on rank 0, once that has ended.
    """

    step: int
    blocked_s: float = 0.0
    durable_s: float = 0.0
    bytes_logical: int = 0
    bytes_written: int = 0
    bytes_reused: int = 0
    rank_bytes_written: int = 0
    rank_bytes_staged: int = 0
    chunks: int = 0
    packs: int = 0
    fragment_bytes: int = 0
    bytes_freed: int = 0


def _nobody_counts() -> None:
    """Note nowhere that somebody heard how a save ended."""


def _nothing_is_late(timeout: float | None) -> None:
    """Return at once: no tensor is being read."""


@dataclass
class SaveHandle:
    """A save under way; behaves like a future of its checkpoint.

    A save that failed and whose handle told nobody so, by `result` or `exception`, is told by the writer when it
    closes.

    Attributes:
        step: The step that is being saved.
    """

    step: int
    _future: Future[Checkpoint | None] = field(repr=False)
    _statistics: SaveStatistics = field(repr=False)
    _heard: Callable[[], object] = field(default=_nobody_counts, repr=False, compare=False)
    _wait_staged: Callable[[float | None], None] = field(
        default=_nothing_is_late, repr=False, compare=False
    )

    @property
    def skipped(self) -> bool:
        """True when the save ended without a checkpoint because an earlier one still ran."""
        return self.done() and self._error() is None and self._future.result() is None

    def done(self) -> bool:
        """Return whether the save has ended, well or not."""
        return self._future.done()

    def wait_staged(self, timeout: float | None = None) -> None:
        """Wait until the tensors of the save may change.

        Only after a save with lazy staging is there anything to wait for. Interrupted while it waits, it gives the
        save up.

        Args:
            timeout: Seconds to wait; None waits until the tensors are copied.

        Raises:
            Unavailable: The time ran out; the tensors are still being read and must not change.
            FwstoreError: What made the copy, and with it the save, fail; the tensors may change.
        """
        self._wait_staged(timeout)

    def result(self, timeout: float | None = None) -> Checkpoint | None:
        """Wait until the save is durable and committed on every rank.

        Args:
            timeout: Seconds to wait; None waits as long as the save's own deadlines allow.

        Returns:
            The checkpoint, or None when the save was skipped.

        Raises:
            Unavailable: The time ran out here; the save itself goes on.
            FwstoreError: Whatever made the save fail.
        """
        try:
            self._future.exception(timeout)
        except FutureTimeout as error:
            raise Unavailable(
                f"the save of step {self.step} has not ended after {timeout} s"
            ) from error
        except CancelledError as error:
            raise Unavailable(
                f"the save of step {self.step} was given up before it began"
            ) from error
        self._heard()
        return self._future.result()

    def exception(self) -> BaseException | None:
        """Return the error of a save that has failed, or None; does not wait."""
        if self.done():
            self._heard()
        return self._error()

    def statistics(self) -> SaveStatistics:
        """Return the figures known so far."""
        return self._statistics

    def _error(self) -> BaseException | None:
        if not self._future.done() or self._future.cancelled():
            return None
        return self._future.exception()
