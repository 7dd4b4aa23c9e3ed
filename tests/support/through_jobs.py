"""Processes at one site that load a checkpoint of another one at the same time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fwstore
from fwstore.checkpoint.snapshot import Checkpoint

SIZE = 200_000
WEIGHTS = 16
LIMITS = fwstore.Limits(pack_bytes=1_000_000, hashing_processes=0)


def state() -> dict[str, np.ndarray]:
    """What is saved."""
    return {f"w{n}": np.random.default_rng(n).random(SIZE, np.float32) for n in range(WEIGHTS)}


def write_topology(folder: Path, names: tuple[str, ...]) -> Path:
    """Name directories as sites."""
    file = folder / "topology.toml"
    lines = (f'[sites.{name}]\nstore = "{name}"' for name in names)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def load_through(topology: str, site: str, told: str) -> None:
    """Load the newest checkpoint of any site, compare it, and tell how many bytes this process asked of others."""
    with fwstore.open(topology, site=site, limits=LIMITS) as repository:
        loaded = newest(repository).load()
        assert all(np.array_equal(loaded[name], value) for name, value in state().items())
        received = sum(repository.links.bytes_received().values())
    Path(told).write_text(str(received), encoding="utf-8")


def newest(repository: fwstore.Repository) -> Checkpoint:
    """The newest checkpoint of run `run` at the first other site that has one."""
    access = repository.find("run")
    assert access is not None
    other = repository.sites.reachable(keeping=True)[0]
    with fwstore.open(other.store.url, limits=LIMITS) as there:
        entry = there.run("run").latest().entry
    return Checkpoint(repository.through(access), entry)
