"""A replication worker: round after round, told as events and as metrics.

Invariant: no trouble ends a worker, and none is kept to itself: each is an event, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwstore import (
    FwstoreError,
    ReplicationReport,
    Repository,
    Unsupported,
    format_duration,
    format_size,
)
from fwstore_cli.session import Session
from fwstore_cli.totals import Totals

if TYPE_CHECKING:
    from fwstore_cli.metrics import Measurements

# Events and metrics come, and new runs are found, at least so often, and after every checkpoint that takes longer.
_ROUND_AT_MOST = "60s"


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker was asked for.

    Attributes:
        runs: Names of runs; None for all.
        pause_s: After a round.
        metrics: The file into which the metrics go, if any.
        listen: HOST:PORT where they are told to whoever asks, if anywhere.
        rounds: How many times all that can be brought is brought; 0 for no end.
    """

    runs: list[str] | None
    pause_s: float
    metrics: Path | None
    listen: str | None
    rounds: int


class Worker:
    """Works for one site.

    Args:
        session: Where events are told.
        repository: Of the site.
        options: What was asked for.

    Raises:
        Unsupported: Metrics are asked for, and prometheus-client is not installed.
    """

    def __init__(self, session: Session, repository: Repository, options: WorkerOptions) -> None:
        self._session = session
        self._repository = repository
        self._options = options
        self._totals = Totals()
        self._measurements = _measurements(options)

    def work(self) -> None:
        """Do the rounds; ends after as many as were asked for, or when it is interrupted.

        Raises:
            InvalidInput: Where to listen is no address.
            FwstoreError: Nobody can listen there.
        """
        with self._listening():
            self._tell("began", f"bringing to {self._repository.site} what other sites have")
            self._rounds()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        address = self._options.listen
        if self._measurements is None or address is None:
            yield
            return
        with self._measurements.served(address) as port:
            self._tell("listening", f"metrics are told at port {port}", port=port)
            yield

    def _rounds(self) -> None:
        rounds = 0
        while True:
            more = self._round()
            self._measure()
            if more:
                continue
            rounds += 1
            if rounds == self._options.rounds:
                return
            self._repository.runtime.clock.sleep(self._options.pause_s)

    def _round(self) -> bool:
        """Do one round; return whether its time was over before everything had its turn."""
        clock = self._repository.runtime.clock
        began_s = clock.monotonic()
        try:
            report = self._repository.replicate(runs=self._options.runs, at_most=_ROUND_AT_MOST)
        except FwstoreError as error:
            self._totals.failed_rounds += 1
            self._tell("failed", error.message, code=error.code)
            return False
        took_s = clock.monotonic() - began_s
        self._totals.count(report, took_s, clock.wall())
        self._tell_report(report)
        if report.copied or report.troubles:
            left = len(report.left)
            message = f"{len(report.copied)} brought, {left} left, {format_duration(took_s)}"
            counts = {"copied": len(report.copied), "left": left, "seconds": took_s}
            self._tell("round", message, **counts)
        return report.more

    def _tell_report(self, report: ReplicationReport) -> None:
        for copied in report.copied:
            self._tell(
                "copied",
                f"{copied.run}@{copied.step} from {copied.source}: "
                f"{format_size(copied.bytes_received)} in {format_duration(copied.seconds)}",
                run=copied.run,
                step=copied.step,
                snapshot=copied.snapshot,
                source=copied.source,
                packs=copied.packs,
                bytes_received=copied.bytes_received,
                seconds=copied.seconds,
            )
        for run in report.fenced:
            self._tell("fenced", f"the log of {run} was fenced here: a newer job runs", run=run)
        for trouble in report.troubles:
            self._tell(
                "trouble",
                trouble.error.message,
                run=trouble.run,
                site=trouble.site,
                snapshot=trouble.snapshot,
                code=trouble.error.code,
            )

    def _measure(self) -> None:
        if self._measurements is None:
            return
        try:
            status = self._repository.status(runs=self._options.runs)
            self._measurements.measure(self._totals, self._repository, status)
            if self._options.metrics is not None:
                self._measurements.write(self._options.metrics)
        except FwstoreError as error:
            # What cannot be measured now is measured after the next round.
            self._tell("unmeasured", error.message, code=error.code)

    def _tell(self, event: str, message: str, **about: Any) -> None:
        if self._session.as_json:
            at = self._repository.runtime.clock.wall()
            self._session.emit_line(
                {"time": at, "site": self._repository.site, "event": event, "message": message}
                | {name: value for name, value in about.items() if value != ""}
            )
        else:
            self._session.say(f"{event}: {message}")


def _measurements(options: WorkerOptions) -> Measurements | None:
    if options.metrics is None and options.listen is None:
        return None
    if find_spec("prometheus_client") is None:
        raise Unsupported("metrics need prometheus-client: pip install 'fwstore[metrics]'")
    from fwstore_cli.metrics import Measurements

    return Measurements()
