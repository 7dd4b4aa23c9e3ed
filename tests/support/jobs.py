"""Ranks of jobs that know numpy alone, each a process of its own."""

from __future__ import annotations

import os

import numpy as np

import fwstore


def save_as_rank(url: str, rank: int, world_size: int, job: str) -> int:
    """Save two steps as one rank of a job that meets in the store; return the bytes of the second.

    Every rank has some rows of a tensor and the whole of another.
    """
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "FWSTORE_JOB": job}
    shape = (3 * world_size, 1)
    layout = fwstore.Layout((world_size,), (fwstore.Split(0),), tuple(range(world_size)))
    (box,) = layout.boxes(shape, rank)
    limits = fwstore.Limits(threads=2, commit_timeout_s=60)
    written = 0
    with (
        fwstore.open(url, limits=limits) as repository,
        repository.run("run").writer() as writer,
    ):
        for step in (0, 1):
            rows = np.arange(shape[0])[box.slices()[0], None] + step
            state = {
                "rows": fwstore.Shard("int64", shape, (fwstore.Piece(box, rows),), layout),
                "same": np.random.default_rng(step).random(600_000),
            }
            handle = writer.save(step, state, per_rank=10 + rank)
            handle.result(60)
            written = handle.statistics().rank_bytes_written
    return written
