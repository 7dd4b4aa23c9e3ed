"""What a replication worker knows, for Prometheus: as a file, or to whoever asks over HTTP.

Invariant: whoever asks gets what was measured last, whole; nothing is measured for a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fwstore import InvalidInput, Lag, Repository, RepositoryStatus
from fwstore_cli.totals import Totals
from fwstore_migrate.files import local_failure

Samples = Iterable[tuple[Mapping[str, str], float | None]]


class Measurements(Collector):
    """What was measured last."""

    def __init__(self) -> None:
        self._families: tuple[Metric, ...] = ()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return all families with their samples."""
        return self._families

    def measure(self, totals: Totals, repository: Repository, status: RepositoryStatus) -> None:
        """Take the place of what was measured before."""
        self._families = (
            *_of_rounds(totals),
            *_of_links(repository),
            *_of_sites(status),
            *_newest(status.lags),
            *_missing(status.lags),
        )

    def write(self, path: Path) -> None:
        """Replace a file of metrics.

        Raises:
            FwstoreError: It cannot be written.
        """
        try:
            write_to_textfile(str(path), self._registry)
        except OSError as error:
            raise local_failure(error, f"cannot write the metrics to {path}") from error

    @contextmanager
    def served(self, address: str) -> Iterator[int]:
        """Answer at HOST:PORT until the block ends; gives the port, which is a free one where 0 was asked for.

        Raises:
            InvalidInput: It is no address.
            FwstoreError: Nobody can listen there.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) >= 1 << 16:
            raise InvalidInput(f"{address!r} is no address to listen at, such as 0.0.0.0:9464")
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), self._registry)
        except OSError as error:
            raise local_failure(error, f"cannot listen at {address}") from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _of_rounds(totals: Totals) -> Iterator[Metric]:
    copied = [({"run": run, "source": source}, n) for (run, source), n in totals.copied.items()]
    troubles = [({"run": run, "site": site}, n) for (run, site), n in totals.troubles.items()]
    failed = "Rounds that ended with an error before they could copy."
    at = "When the last round ended."
    yield _counter("replication_rounds", "Rounds that this worker has ended.", totals.rounds)
    yield _counter("replication_failed_rounds", failed, totals.failed_rounds)
    yield _gauge("replication_round_seconds", "Length of the last round.", totals.last_round_s)
    yield _gauge("replication_last_round_timestamp_seconds", at, totals.last_round_at)
    yield _counter("replication_copied_checkpoints", "Checkpoints brought.", copied)
    yield _gauge("replication_troubles", "What did not work in the last round.", troubles)


def _of_links(repository: Repository) -> Iterator[Metric]:
    received = [({"source": name}, n) for name, n in repository.links.bytes_received().items()]
    rates = [({"source": name}, rate) for name, rate in repository.links.statistics().items()]
    caps = [(labels, rate.cap) for labels, rate in rates]
    shares = [(labels, rate.share) for labels, rate in rates]
    workers = [(labels, rate.workers) for labels, rate in rates]
    yield _counter("link_received_bytes", "Bytes asked of other sites.", received)
    yield _gauge("link_cap_bytes_per_second", "What all workers of a link may take.", caps)
    yield _gauge("link_share_bytes_per_second", "What this worker may take of it.", shares)
    yield _gauge("link_workers", "Workers that share the link now.", workers)


def _of_sites(status: RepositoryStatus) -> Iterator[Metric]:
    answers = [({"site": site.name}, site.silent_since is None) for site in status.sites]
    yield _gauge("site_up", "Whether a site answers.", answers)


def _newest(lags: tuple[Lag, ...]) -> Iterator[Metric]:
    newest = [({"run": run}, step) for run, step in {n.run: n.newest_step for n in lags}.items()]
    there = [(_labels(lag), lag.newest_there) for lag in lags]
    yield _gauge("newest_step", "Newest step of the canonical history at any site.", newest)
    yield _gauge("site_newest_step", "Newest step of it that is complete at a site.", there)


def _missing(lags: tuple[Lag, ...]) -> Iterator[Metric]:
    ages = [({**_labels(lag), "age": one.age}, one) for lag in lags for one in lag.ages]
    counts = [(labels, bucket.checkpoints) for labels, bucket in ages]
    sizes = [(labels, bucket.bytes_new) for labels, bucket in ages]
    forecasts = [(_labels(lag), lag.forecast_s) for lag in lags]
    wanted = "Checkpoints wanted at a site and not there."
    yield _gauge("site_missing_checkpoints", wanted, counts)
    yield _gauge("site_missing_bytes", "Bytes that were written for them.", sizes)
    yield _gauge("site_forecast_seconds", "When nothing would be missing any more.", forecasts)


def _labels(lag: Lag) -> Mapping[str, str]:
    return {"run": lag.run, "site": lag.site}


def _counter(name: str, about: str, samples: Samples | float) -> Metric:
    return _filled(CounterMetricFamily(f"fwstore_{name}", about), "_total", samples)


def _gauge(name: str, about: str, samples: Samples | float) -> Metric:
    return _filled(GaugeMetricFamily(f"fwstore_{name}", about), "", samples)


def _filled(family: Metric, suffix: str, samples: Samples | float) -> Metric:
    """Return a family with its samples; without a value there is nothing to tell."""
    told: Samples = [({}, samples)] if isinstance(samples, int | float) else samples
    for labels, value in told:
        if value is not None:
            family.add_sample(f"{family.name}{suffix}", dict(labels), value)
    return family
