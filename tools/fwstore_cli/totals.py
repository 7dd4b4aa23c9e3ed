"""What a replication worker counted since it began.

Invariant: troubles are those of the last round; everything else only grows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fwstore import ReplicationReport


@dataclass
class Totals:
    """Counts of one worker.

    Attributes:
        rounds: Rounds that ended.
        failed_rounds: Rounds that ended with an error before they could copy.
        last_round_s: Length of the last one.
        last_round_at: When it ended, seconds since 1970.
        copied: Checkpoints brought, by run and source.
        troubles: What did not work in the last round, by run and site.
    """

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
