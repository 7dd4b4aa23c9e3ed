"""How all ranks agree on one step that none of them has passed: to stop there, or to save there.

A rank asks for a stop by a key that any rank may set. The leader opens a round; every rank answers with
the step at which it stands and, if it gets one step further before the answer is known, waits there. The
leader takes the largest answer plus one. All of this happens on a watcher thread; the training thread
looks at local values only and waits at most once per round.

Invariant: a decided step is larger than any step that any rank had begun when it was decided, so every
rank meets it. A rank that is gone makes a round fail at a deadline; it hangs no other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from fwstore import Coordinator, FwstoreError

Reason = Literal["stop", "due"]

_log = logging.getLogger("fwstore")
_WISH = "saver/wish"
_POLL_FIRST_S = 0.2
_RANKS_PER_POLL_S = 20_000
_HEARING_S = 2.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What all ranks do at one step.

    Attributes:
        reason: Why.
        step: The step; -1 when the ranks could not agree in time.
        signal: The number of the signal that asked for a stop, else 0.
        deadline: Monotonic second of this rank until which to be done.
    """

    reason: Reason
    step: int
    signal: int
    deadline: float


class _Opened(msgspec.Struct, frozen=True):
    reason: Reason
    signal: int


@dataclass(slots=True)
class _Round:
    """The round that is open on this rank.

    Attributes:
        name: What its messages begin with.
        opened: What it is about.
        answer: The step at which this rank stood.
        deadline: Monotonic second until which to be done.
        given_up: Monotonic second at which to go on without a decision.
    """

    name: str
    opened: _Opened
    answer: int
    deadline: float
    given_up: float


class Rounds:
    """One rank's end of the agreement.

    Args:
        coordinator: Reaches the other ranks.
        patience_s: Longest wait for the others in one round.
        monotonic: The clock that ends waits.
        is_due: Asked on the leader whether a timed save is due.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        patience_s: float,
        monotonic: Callable[[], float],
        is_due: Callable[[], bool] = lambda: False,
    ) -> None:
        self._coordinator = coordinator
        self._monotonic = monotonic
        self._patience_s = patience_s
        self._is_due = is_due
        self._changed = threading.Condition()
        self._step = -1
        self._wish = 0
        self._number = 0
        self._round: _Round | None = None
        self._decided: list[Decision] = []
        self._stopping = False
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def ask_stop(self, signal: int) -> None:
        """Ask all ranks to stop; only sets a number, so a signal handler may call it."""
        self._wish = signal

    def begin(self, step: int) -> None:
        """Start watching; `step` is the last one that counts as done."""
        self._step = step
        if self._coordinator.world_size > 1:
            self._watcher = threading.Thread(target=self._watch, name="fwstore-rounds", daemon=True)
            self._watcher.start()

    def arrive(self, step: int) -> list[Decision]:
        """Tell that this rank has done a step; returns what was decided for it.

        Waits when a round is open and this rank has gone past its own answer.
        """
        if self._coordinator.world_size == 1:
            # Alone, the step that is being done is one that no rank has passed.
            self.tick()
        with self._changed:
            self._step = step
            while (current := self._round) is not None and current.answer < step:
                left = current.given_up - self._monotonic()
                if left <= 0:
                    self._decide(current, -1)
                else:
                    self._changed.wait(min(left, 1.0))
            met = [d for d in self._decided if d.step <= step]
            self._decided = [d for d in self._decided if d.step > step]
        return met

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        self._closing.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(timeout=5.0)

    def farewell(self, patience_s: float) -> None:
        """Tell that this rank is done; the leader, in whose process the messages may live, leaves last."""
        here = self._coordinator
        deadline = self._monotonic() + patience_s
        try:
            here.put(f"saver/bye/{here.rank}", b"")
            for rank in range(here.world_size if here.rank == 0 else 0):
                while here.poll(f"saver/bye/{rank}") is None and self._monotonic() < deadline:
                    self._closing.wait(0.02)
        except FwstoreError as error:
            _log.debug("taking leave of ranks that are gone: %s", error)

    def tick(self) -> None:
        """Look once at what the other ranks wrote, and write what they wait for."""
        here = self._coordinator
        if self._wish and not self._stopping:
            here.put(_WISH, str(self._wish).encode())
        if here.rank == 0 and self._round is None:
            self._open_round()
        current = self._round or self._join_round()
        if current is not None:
            self._follow_round(current)

    def _watch(self) -> None:
        interval = _POLL_FIRST_S + self._coordinator.world_size / _RANKS_PER_POLL_S
        while not self._closing.wait(interval):
            try:
                self.tick()
            except FwstoreError as error:
                # The next look may succeed; the deadlines of rounds end what never does.
                _log.debug("looking for stop requests: %s", error)

    def _open_round(self) -> None:
        wish = None if self._stopping else self._coordinator.poll(_WISH)
        if wish is not None:
            opened = _Opened("stop", int(wish))
        elif not self._stopping and not self._decided and self._is_due():
            opened = _Opened("due", 0)
        else:
            return
        self._coordinator.put(f"saver/{self._number}/open", msgspec.msgpack.encode(opened))

    def _join_round(self) -> _Round | None:
        name = f"saver/{self._number}"
        message = self._coordinator.poll(f"{name}/open")
        if message is None:
            return None
        opened = msgspec.msgpack.decode(message, type=_Opened)
        with self._changed:
            deadline = self._monotonic() + self._patience_s
            # Whatever the leader decides before it gives up, all others still hear.
            given_up = deadline + (_HEARING_S if self._coordinator.rank else 0.0)
            current = self._round = _Round(name, opened, self._step, deadline, given_up)
            self._stopping = self._stopping or opened.reason == "stop"
        answer = str(current.answer).encode()
        self._coordinator.put(f"{name}/at/{self._coordinator.rank}", answer)
        return current

    def _follow_round(self, current: _Round) -> None:
        if self._coordinator.rank == 0:
            self._lead_round(current)
        decided = self._coordinator.poll(f"{current.name}/step")
        late = self._monotonic() > current.given_up
        if decided is not None or late:
            with self._changed:
                # The training thread may have given the round up meanwhile.
                if self._round is current:
                    self._decide(current, -1 if decided is None else int(decided))

    def _lead_round(self, current: _Round) -> None:
        here, ranks = self._coordinator, range(self._coordinator.world_size)
        if here.poll(f"{current.name}/step") is not None:
            return
        answers = []
        for rank in ranks:
            answer = here.poll(f"{current.name}/at/{rank}")
            if answer is None:
                if self._monotonic() > current.deadline:
                    here.put(f"{current.name}/step", b"-1")
                return
            answers.append(int(answer))
        with self._changed:
            # Once the training thread has given the round up, the others must not meet at a step without it.
            if self._round is not current:
                return
            here.put(f"{current.name}/step", str(max(answers) + 1).encode())
        for rank in ranks:
            here.drop(f"{current.name}/at/{rank}")

    def _decide(self, current: _Round, step: int) -> None:
        opened = current.opened
        self._decided.append(Decision(opened.reason, step, opened.signal, current.deadline))
        self._round = None
        self._number += 1
        self._changed.notify_all()
