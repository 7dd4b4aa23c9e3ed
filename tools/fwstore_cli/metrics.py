"""What a replication worker knows, in the text format of Prometheus.

Invariant: a file of metrics is whole at every moment: it is replaced by a rename.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fwstore import Lag, ReplicationReport, Repository, RepositoryStatus
from fwstore_migrate.files import local_failure

Labels = Mapping[str, str]
Samples = Sequence[tuple[Labels, float | None]]


@dataclass(frozen=True)
class Metric:
    """One family of samples.

    Attributes:
        name: Of the family.
        kind: "gauge" or "counter".
        about: What it is, for people.
        samples: Labels and values; without a value there is nothing to tell.
    """

    name: str
    kind: str
    about: str
    samples: Samples

    def lines(self) -> list[str]:
        """Return the lines of the exposition format."""
        told = [(_shown(labels), value) for labels, value in self.samples if value is not None]
        head = [f"# HELP {self.name} {self.about}", f"# TYPE {self.name} {self.kind}"]
        return [*head, *(f"{self.name}{labels} {value:.17g}" for labels, value in told)]


@dataclass
class Totals:
    """What a worker counted since it began."""

    rounds: int = 0
    failed_rounds: int = 0
    last_round_s: float = 0.0
    last_round_at: float = 0.0
    copied: dict[tuple[str, str], int] = field(default_factory=dict)
    troubles: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, report: ReplicationReport, seconds: float, at: float) -> None:
        """Take in a round."""
        self.rounds += 1
        self.last_round_s, self.last_round_at = seconds, at
        for copied in report.copied:
            key = copied.run, copied.source
            self.copied[key] = self.copied.get(key, 0) + 1
        self.troubles = {}
        for trouble in report.troubles:
            where = trouble.run, trouble.site
            self.troubles[where] = self.troubles.get(where, 0) + 1


def exposition(totals: Totals, repository: Repository, status: RepositoryStatus) -> str:
    """Return all metrics as text."""
    metrics = [
        *_of_rounds(totals),
        *_of_links(repository),
        *_of_sites(status),
        *_of_lags(status.lags),
    ]
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def write_metrics(path: Path, text: str) -> None:
    """Replace a file of metrics.

    Raises:
        FwstoreError: It cannot be written.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise local_failure(error, f"cannot write the metrics to {path}") from error


def _of_rounds(totals: Totals) -> list[Metric]:
    copied = [({"run": run, "source": source}, n) for (run, source), n in totals.copied.items()]
    troubles = [({"run": run, "site": site}, n) for (run, site), n in totals.troubles.items()]
    about = "Rounds that ended with an error before they could copy."
    return [
        *_counts(totals, about),
        *_times(totals),
        _counter("replication_copied_checkpoints", "Checkpoints brought.", copied),
        _gauge("replication_troubles", "What did not work in the last round.", troubles),
    ]


def _counts(totals: Totals, about: str) -> list[Metric]:
    return [
        _counter("replication_rounds", "Rounds that this worker has ended.", [({}, totals.rounds)]),
        _counter("replication_failed_rounds", about, [({}, totals.failed_rounds)]),
    ]


def _times(totals: Totals) -> list[Metric]:
    ended: Samples = [({}, totals.last_round_at)]
    return [
        _gauge(
            "replication_round_seconds", "Length of the last round.", [({}, totals.last_round_s)]
        ),
        _gauge("replication_last_round_timestamp_seconds", "When the last round ended.", ended),
    ]


def _of_links(repository: Repository) -> list[Metric]:
    links = repository.links
    received = [({"source": name}, n) for name, n in links.bytes_received().items()]
    rates = [({"source": name}, rate) for name, rate in links.statistics().items()]
    caps = [(labels, rate.cap) for labels, rate in rates]
    shares = [(labels, rate.share) for labels, rate in rates]
    workers = [(labels, rate.workers) for labels, rate in rates]
    return [
        _counter("link_received_bytes", "Bytes asked of other sites.", received),
        _gauge("link_cap_bytes_per_second", "What all workers of a link may take.", caps),
        _gauge("link_share_bytes_per_second", "What this worker may take of it.", shares),
        _gauge("link_workers", "Workers that share the link now.", workers),
    ]


def _of_sites(status: RepositoryStatus) -> list[Metric]:
    answers = [({"site": site.name}, site.silent_since is None) for site in status.sites]
    return [_gauge("site_up", "Whether a site answers.", answers)]


def _of_lags(lags: tuple[Lag, ...]) -> list[Metric]:
    return [*_newest(lags), *_missing(lags)]


def _newest(lags: tuple[Lag, ...]) -> list[Metric]:
    newest = [({"run": run}, step) for run, step in {n.run: n.newest_step for n in lags}.items()]
    there = [(_labels(lag), lag.newest_there) for lag in lags]
    return [
        _gauge("newest_step", "Newest step of the canonical history at any site.", newest),
        _gauge("site_newest_step", "Newest step of it that is complete at a site.", there),
    ]


def _missing(lags: tuple[Lag, ...]) -> list[Metric]:
    ages = [({**_labels(lag), "age": one.age}, one) for lag in lags for one in lag.ages]
    counts = [(labels, bucket.checkpoints) for labels, bucket in ages]
    sizes = [(labels, bucket.bytes_new) for labels, bucket in ages]
    forecasts = [(_labels(lag), lag.forecast_s) for lag in lags]
    return [
        _gauge("site_missing_checkpoints", "Checkpoints wanted at a site and not there.", counts),
        _gauge("site_missing_bytes", "Bytes that were written for them.", sizes),
        _gauge("site_forecast_seconds", "When nothing would be missing any more.", forecasts),
    ]


def _labels(lag: Lag) -> Labels:
    return {"run": lag.run, "site": lag.site}


def _counter(name: str, about: str, samples: Samples) -> Metric:
    return Metric(f"fwstore_{name}_total", "counter", about, samples)


def _gauge(name: str, about: str, samples: Samples) -> Metric:
    return Metric(f"fwstore_{name}", "gauge", about, samples)


def _shown(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
