"""One measurement in a process of its own: ``python -m benchmarks.common.trial PEER FOLDER BYTES``.

Prints one line of JSON: seconds until the tensors may change, until durable, and to load into existing
tensors with a warm cache; the second save is the one that is measured, the first is reported beside it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks.common.peers import PEERS, Peer, State
from benchmarks.common.state import change, empty_like, make_state, same, size_of


def back_memory(size_bytes: int) -> None:
    """Touch and free so much memory.

    A virtual machine may hand free pages back to its host after a few seconds, and touching them again then
    runs at 0.5 GB/s for everybody. What follows within those seconds finds pages that are there.
    """
    torch.ones(size_bytes, dtype=torch.uint8)


def timed_save(peer: Peer, state: State, step: int) -> tuple[float, float]:
    """Return the seconds until the tensors may change and until the save is durable."""
    back_memory(size_of(state))
    started = time.perf_counter()
    wait = peer.save(state, step)
    blocked = time.perf_counter() - started
    wait()
    return blocked, time.perf_counter() - started


def main() -> None:
    """Measure one peer."""
    name, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(2)
    state = make_state(size)
    folder.mkdir(parents=True, exist_ok=True)
    peer = PEERS[name](folder)
    first = timed_save(peer, state, 1)
    change(state)
    second = timed_save(peer, state, 2)
    into = empty_like(state)
    back_memory(size_of(state))
    started = time.perf_counter()
    peer.load(into, 2)
    load = time.perf_counter() - started
    if not same(state, into):
        raise SystemExit(f"{name} did not give back what it was given")
    peer.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "peer": name,
        "state_bytes": size_of(state),
        "first_blocked_s": first[0],
        "first_durable_s": first[1],
        "blocked_s": second[0],
        "durable_s": second[1],
        "load_s": load,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
