"""Runs a function on real gloo ranks, each a process of its own, with a deadline.

Functions must be importable by name: they live in modules of `support`, not in test modules.
"""

from __future__ import annotations

import faulthandler
import importlib
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
    name = function.__module__, function.__qualname__
    pipes: list[Any] = []
    processes: list[BaseProcess] = []
    # Rank 0 is handed the socket itself: a port that is only known to be free may be taken by then.
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        for rank in range(world_size):
            here, there = _context.Pipe(duplex=False)
            place = _Place(rank, world_size, port, survivors is None)
            process = fork(_rank, there, place, door if rank == 0 else None, name, args)
            there.close()
            pipes.append(here)
            processes.append(process)
    try:
        wanted = survivors or range(world_size)
        return _collect([(pipes[rank], processes[rank]) for rank in wanted])
    finally:
        for process in processes:
            process.join(5.0)
            process.kill()
            process.join()


def _collect(ranks: Sequence[tuple[Any, BaseProcess]]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        waiting = {pipe: rank for rank, (pipe, _) in enumerate(ranks) if rank not in results}
        ready: list[Any] = wait(list(waiting), DEADLINE_S)
        assert ready, f"ranks {sorted(waiting.values())} did not end in time"
        for pipe in ready:
            rank = waiting[pipe]
            try:
                failed, results[rank] = pipe.recv()
            except EOFError:
                process = ranks[rank][1]
                process.join(5.0)
                failed, results[rank] = True, f"the process died with {process.exitcode}"
            assert not failed, f"rank {rank}: {results[rank]}"
    return [results[rank] for rank in range(len(ranks))]


@dataclass(frozen=True)
class _Place:
    rank: int
    world_size: int
    port: int
    meet_at_end: bool


def _rank(
    pipe: Any,
    place: _Place,
    door: socket.socket | None,
    name: tuple[str, str],
    args: tuple[Any, ...],
) -> None:
    faulthandler.enable()
    try:
        # Found here and not while the arguments are unpickled, so that what an import raises is told.
        function = getattr(importlib.import_module(name[0]), name[1])
        _join(place, door)
        result = function(place.rank, place.world_size, *args)
        if place.meet_at_end:
            _part()
        pipe.send((False, result))
    except BaseException:  # noqa: BLE001 - whatever ended the rank is what the test must show
        pipe.send((True, traceback.format_exc()))


def _join(place: _Place, door: socket.socket | None) -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    torch.set_num_threads(1)
    store = TCPStore(
        "127.0.0.1",
        place.port,
        is_master=door is not None,
        master_listen_fd=None if door is None else door.detach(),
    )
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.world_size)


def _part() -> None:
    import torch.distributed as dist

    # The store lives in rank 0: nobody leaves before all are done with it.
    dist.barrier()
    dist.destroy_process_group()
