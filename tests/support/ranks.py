"""Runs a function on real gloo ranks, each a process of its own, with a deadline.

Functions must be importable by name: they live in modules of `support`, not in test modules.
"""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")
# Torch is imported once, in the fork server, and not once per rank.
_context.set_forkserver_preload(
    ["torch.distributed.tensor", "torch.distributed.fsdp", "fwstore_torch"]
)

DEADLINE_S = 90.0


def fork(function: Callable[..., None], *args: Any) -> BaseProcess:
    """Start a process that is forked from a warm server; it ends with this one at the latest."""
    process = _context.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    survivors: Sequence[int] | None = None,
) -> list[Any]:
    """Return what `function(rank, world_size, *args)` returned on every rank of a gloo job.

    Args:
        world_size: How many ranks.
        function: Importable by name.
        args: Passed on.
        survivors: The ranks that must return; the others may die. None: all.

    Raises:
        AssertionError: A rank raised, died or did not end in time; its traceback is the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes: list[Any] = []
    processes = []
    for rank in range(world_size):
        here, there = _context.Pipe(duplex=False)
        process = _context.Process(
            target=_rank,
            args=(there, _Place(rank, world_size, port, survivors is None), function, args),
            daemon=True,
        )
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        return _collect([pipes[r] for r in survivors or range(world_size)])
    finally:
        for process in processes:
            process.join(5.0)
            process.kill()
            process.join()


def _collect(pipes: list[Any]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready: list[Any] = wait(waiting, DEADLINE_S)
        assert ready, (
            f"ranks {[r for r in range(len(pipes)) if r not in results]} did not end in time"
        )
        for pipe in ready:
            rank = next(r for r, candidate in enumerate(pipes) if candidate is pipe)
            try:
                failed, results[rank] = pipe.recv()
            except EOFError:
                failed, results[rank] = True, "the process died"
            assert not failed, f"rank {rank}: {results[rank]}"
    return [results[rank] for rank in range(len(pipes))]


@dataclass(frozen=True)
class _Place:
    rank: int
    world_size: int
    port: int
    meet_at_end: bool


def _rank(pipe: Any, place: _Place, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{place.port}",
            rank=place.rank,
            world_size=place.world_size,
        )
        result = function(place.rank, place.world_size, *args)
        if place.meet_at_end:
            # The store lives in rank 0: nobody leaves before all are done with it.
            dist.barrier()
            dist.destroy_process_group()
        pipe.send((False, result))
    except BaseException:  # noqa: BLE001 - whatever ended the rank is what the test must show
        pipe.send((True, traceback.format_exc()))
