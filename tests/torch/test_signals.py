"""Handlers only remember, chain to nothing, and leave no trace."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

from fwstore_torch.signals import SignalWatch, StopTraining


def test_signals_are_noticed_and_handlers_put_back() -> None:
    seen: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    watch = SignalWatch([signal.SIGUSR1], seen.append)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    watch.close()
    watch.close()
    assert seen == [signal.SIGUSR1, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def _wait_for_signals(ready: Any, seen: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    ready.send(seen)
    threading.Event().wait(60.0)


def test_a_forked_worker_outlives_the_stop_of_its_job_and_dies_when_it_is_terminated() -> None:
    fork = multiprocessing.get_context("fork")
    seen: list[int] = []
    watch = SignalWatch([signal.SIGUSR1, signal.SIGTERM], seen.append)
    here, there = fork.Pipe()
    worker = fork.Process(target=_wait_for_signals, args=(there, seen), daemon=True)
    worker.start()
    assert here.poll(30.0)
    assert here.recv() == []
    worker.terminate()
    worker.join(30.0)
    assert worker.exitcode == -signal.SIGTERM
    watch.close()


def test_watches_that_close_in_any_order_leave_the_first_handler() -> None:
    heard: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("script"))
    try:
        first = SignalWatch([signal.SIGUSR1], lambda _: heard.append("first"))
        second = SignalWatch([signal.SIGUSR1], lambda _: heard.append("second"))
        first.close()
        signal.raise_signal(signal.SIGUSR1)
        second.close()
        second.close()
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == ["second", "script", "script"]


def test_a_forked_worker_dies_however_many_watches_it_inherited() -> None:
    fork = multiprocessing.get_context("fork")
    both = [signal.SIGUSR1, signal.SIGTERM]
    watches = [SignalWatch(both, lambda _: None) for _ in range(3)]
    watches[1].close()
    here, there = fork.Pipe()
    worker = fork.Process(target=_wait_for_signals, args=(there, []), daemon=True)
    worker.start()
    try:
        assert here.poll(30.0)
        worker.terminate()
        worker.join(30.0)
    finally:
        for watch in reversed(watches):
            watch.close()
    assert worker.exitcode == -signal.SIGTERM


def test_other_threads_set_no_handlers() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    watches: list[SignalWatch] = []
    thread = threading.Thread(
        target=lambda: watches.append(SignalWatch([signal.SIGUSR1], lambda _: None))
    )
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before
    watches[0].close()


def test_a_stop_leaves_as_the_signal_would() -> None:
    stop = StopTraining(7, saved=True, number=15)
    assert stop.code == 143
    assert str(stop) == "stopped at step 7, which was saved"
