"""Signals that ask a job to stop.

Invariant: a handler only remembers the number of the signal; nothing is sent, locked or allocated inside. A
process that was forked meanwhile asks nobody to stop, and dies of SIGTERM as it would have without the handler.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopTraining(SystemExit):
    """The job was asked to stop; everything is saved that could be, and the process should leave.

    Not caught, it ends the process with 128 plus the number of the signal, as the signal itself would, so
    that whoever asked for the stop starts the job again.

    Attributes:
        step: The step at which all ranks stopped.
        saved: Whether that step was saved durably.
    """

    def __init__(self, step: int, *, saved: bool, number: int) -> None:
        super().__init__(128 + number)
        self.step = step
        self.saved = saved

    def __str__(self) -> str:
        return f"stopped at step {self.step}, which was {'saved' if self.saved else 'not saved'}"


class SignalWatch:
    """Calls a function when a stop signal comes; hands it on to the earlier handler after `close`."""

    def __init__(self, signals: Sequence[int], notice: Callable[[int], None]) -> None:
        self._notice = notice
        self._process = os.getpid()
        self._open = True
        self._before: dict[int, Any] = {}
        # Python delivers signals to the main thread only; elsewhere handlers cannot be set.
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signature of handlers
        if not self._open:
            self._hand_on(number)
        elif os.getpid() == self._process:
            self._notice(number)
        elif number == signal.SIGTERM:
            # This is how a pool or a loader ends its workers, and then it waits for them. Other signals go to
            # all processes of a job; the workers go on, so that the step can be done and saved.
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        self._put_back(number)
        signal.raise_signal(number)

    def _put_back(self, number: int) -> None:
        before = self._before[number]
        signal.signal(number, signal.SIG_DFL if before is None else before)

    def close(self) -> None:
        """Put the earlier handlers back; a second call does nothing."""
        self._open = False
        for number in self._before:
            # Whoever watches since later keeps the signal; when it ends, this one hands on what comes.
            if signal.getsignal(number) == self._handle:
                self._put_back(number)
