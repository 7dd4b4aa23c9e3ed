"""Runs a function on gloo ranks, each a process of its own.

Invariant: a rank that fails ends the others by the timeout of their next meeting; nobody waits for ever.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

_MEETING = dt.timedelta(seconds=120)


def on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `function(*args)` returned on every rank of a gloo job; it must be importable by name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(world_size, context) as pool:
        futures = [
            pool.submit(_rank, rank, world_size, port, function, args) for rank in range(world_size)
        ]
        return [future.result() for future in futures]


def together(work: Callable[[], object]) -> float:
    """Return the seconds that work took from the moment all ranks began until all had ended."""
    dist.barrier()
    started = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - started


def _rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }
    dist.init_process_group("gloo", timeout=_MEETING)
    try:
        return function(*args)
    finally:
        dist.destroy_process_group()
