"""What a replication worker knows, in the text format of Prometheus.

Invariant: a file of metrics is whole at every moment: it is replaced by a rename.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fwstore import Lag, ReplicationReport, Repository, RepositoryStatus
from fwstore_migrate.files import local_failure

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Metric:
    """One family of samples.

    Attributes:
        name: With the prefix of all.
        kind: "gauge" or "counter".
        about: What it is, for people.
        samples: Labels and values.
    """

    name: str
    kind: str
    about: str
    samples: list[tuple[Labels, float]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the exposition format."""
        if not self.samples:
            return
        yield f"# HELP {self.name} {self.about}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{self.name}{{{shown}}} {value:.17g}" if shown else f"{self.name} {value:.17g}"


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
    def one(name: str, kind: str, about: str, value: float) -> Metric:
        return Metric(f"fwstore_replication_{name}", kind, about, [({}, value)])

    copied = [({"run": run, "source": source}, n) for (run, source), n in totals.copied.items()]
    troubles = [({"run": run, "site": site}, n) for (run, site), n in totals.troubles.items()]
    return [
        one("rounds_total", "counter", "Rounds that this worker has ended.", totals.rounds),
        one(
            "failed_rounds_total",
            "counter",
            "Rounds that ended with an error before they could copy.",
            totals.failed_rounds,
        ),
        one("round_seconds", "gauge", "Length of the last round.", totals.last_round_s),
        one(
            "last_round_timestamp_seconds",
            "gauge",
            "When the last round ended.",
            totals.last_round_at,
        ),
        Metric(
            "fwstore_replication_copied_checkpoints_total",
            "counter",
            "Checkpoints that this worker has brought.",
            list(copied),
        ),
        Metric(
            "fwstore_replication_troubles",
            "gauge",
            "What did not work in the last round.",
            list(troubles),
        ),
    ]


def _of_links(repository: Repository) -> list[Metric]:
    links = repository.links
    received = [({"source": name}, n) for name, n in links.bytes_received().items()]
    rates = links.statistics()
    return [
        Metric(
            "fwstore_link_received_bytes_total",
            "counter",
            "Bytes that this process has asked of other sites.",
            list(received),
        ),
        Metric(
            "fwstore_link_cap_bytes_per_second",
            "gauge",
            "What all workers of a link may take together.",
            [({"source": name}, rate.cap) for name, rate in rates.items()],
        ),
        Metric(
            "fwstore_link_share_bytes_per_second",
            "gauge",
            "What this worker may take of it.",
            [({"source": name}, rate.share) for name, rate in rates.items()],
        ),
        Metric(
            "fwstore_link_workers",
            "gauge",
            "Workers that share the link now.",
            [({"source": name}, rate.workers) for name, rate in rates.items()],
        ),
    ]


def _of_sites(status: RepositoryStatus) -> list[Metric]:
    answers = [({"site": s.name}, float(s.silent_since is None)) for s in status.sites]
    return [Metric("fwstore_site_up", "gauge", "Whether a site answers.", list(answers))]


def _of_lags(lags: tuple[Lag, ...]) -> list[Metric]:
    def of(lag: Lag) -> dict[str, str]:
        return {"run": lag.run, "site": lag.site}

    newest = {lag.run: lag.newest_step for lag in lags}
    buckets = [({**of(lag), "age": bucket.age}, bucket) for lag in lags for bucket in lag.ages]
    return [
        Metric(
            "fwstore_newest_step",
            "gauge",
            "Newest step of the canonical history at any site.",
            [({"run": run}, step) for run, step in newest.items() if step is not None],
        ),
        Metric(
            "fwstore_site_newest_step",
            "gauge",
            "Newest step of the canonical history that is complete at a site.",
            [(of(lag), lag.newest_there) for lag in lags if lag.newest_there is not None],
        ),
        Metric(
            "fwstore_site_missing_checkpoints",
            "gauge",
            "Checkpoints that are wanted at a site and not there, by age.",
            [(labels, bucket.checkpoints) for labels, bucket in buckets],
        ),
        Metric(
            "fwstore_site_missing_bytes",
            "gauge",
            "Bytes that were written for them.",
            [(labels, bucket.bytes_new) for labels, bucket in buckets],
        ),
        Metric(
            "fwstore_site_forecast_seconds",
            "gauge",
            "When nothing would be missing, at the rate at which checkpoints arrived lately.",
            [(of(lag), lag.forecast_s) for lag in lags if lag.forecast_s is not None],
        ),
    ]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
