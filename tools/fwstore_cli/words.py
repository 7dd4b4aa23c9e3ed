"""What several commands say of checkpoints, to people and in JSON.

Invariant: a checkpoint looks the same in every listing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fwstore import Checkpoint, Repository


def checkpoint_row(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a listing says of a checkpoint."""
    return {
        "step": checkpoint.step,
        "id": checkpoint.id,
        "term": checkpoint.term,
        "parent": checkpoint.parent,
        "saved": checkpoint.wall_time,
        "metrics": dict(checkpoint.metrics),
    }


def site_names(repository: Repository) -> dict[str | None, str]:
    """Return the names of sites by uuid; nothing where there is but one."""
    if len(repository.topology.sites) == 1:
        return {}
    return {site.uuid: site.name for site in repository.status(runs=()).sites}


def show_time(seconds: float) -> str:
    """Return a time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def show_metrics(checkpoint: Checkpoint) -> str:
    """Return metrics on one line."""
    return " ".join(f"{name}={value:.6g}" for name, value in checkpoint.metrics.items())
