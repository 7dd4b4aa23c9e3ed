"""How many failed saves a run bears.

Invariant: a save that failed is told once; a run never goes on for longer than it was allowed to without
a durable checkpoint, once a save has failed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from fwstore import (
    AlreadyExists,
    Fenced,
    FwstoreError,
    InvalidInput,
    PermissionDenied,
    SaveHandle,
    Unavailable,
)

_log = logging.getLogger("fwstore")

# Errors that the next save would meet again, so that going on would only hide them.
_FATAL = (Fenced, InvalidInput, AlreadyExists, PermissionDenied)


class SaveFailedWarning(UserWarning):
    """A save failed and training goes on; the next save is tried as usual."""


def tell(message: str) -> None:
    """Warn of a failure that must not stop what is under way; where warnings are errors, log it."""
    try:
        warnings.warn(message, SaveFailedWarning, stacklevel=4)
    except SaveFailedWarning:
        # A job that is leaving, or that saves without having freed what it could, goes on all the same.
        _log.warning(message)


@dataclass
class FailureLimit:
    """Counts failed saves.

    Args:
        max_failures: Failures in a row that are borne.
        max_unsaved_s: Seconds without a durable checkpoint that are borne once a save has failed.
        monotonic: The clock.
    """

    max_failures: int
    max_unsaved_s: float
    monotonic: Callable[[], float]

    def __post_init__(self) -> None:
        self.failures = 0
        self.last: FwstoreError | None = None
        self._saved_at = self.monotonic()
        self._handles: list[SaveHandle] = []

    def watch(self, handle: SaveHandle) -> None:
        """Look after a save from now on."""
        self._handles.append(handle)

    def check(self) -> None:
        """Take note of every save that has ended.

        Raises:
            FwstoreError: One failed and it was one too many, or the next would fail as well.
        """
        for handle in [h for h in self._handles if h.done()]:
            self._handles.remove(handle)
            error = handle.exception()
            if error is not None:
                self.failed(handle.step, error)
            elif not handle.skipped:
                self.failures = 0
                self._saved_at = self.monotonic()

    def failed(self, step: int, error: BaseException) -> None:
        """Take note of a failure: warn, or raise when it is one too many.

        Raises:
            FwstoreError: See `check`.
        """
        if isinstance(error, _FATAL) or not isinstance(error, FwstoreError):
            raise error
        self.failures += 1
        self.last = error
        unsaved_s = self.monotonic() - self._saved_at
        if self.failures >= self.max_failures or unsaved_s > self.max_unsaved_s:
            raise Unavailable(
                f"{self.failures} saves in a row failed and nothing was saved for {unsaved_s:.0f} s; "
                f"the last, of step {step}: {error}"
            ) from error
        warnings.warn(
            f"the save of step {step} failed and training goes on ({self.failures} of at most "
            f"{self.max_failures - 1} in a row): {error}",
            SaveFailedWarning,
            stacklevel=4,
        )
