"""What does fwstore add to the requests of an object store? ``python -m benchmarks.s3``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import obstore

from benchmarks.common.gateway import Bucket, warm_bucket
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.state import State, change, size_of
from benchmarks.common.trial import Figures, Trial
from benchmarks.peers.base import Peer, Wait, done
from benchmarks.peers.floors import Bytes, split_buffers, views
from benchmarks.peers.ours import Fwstore
from fwstore import Limits

OURS, FLOOR = "fwstore sync", "obstore put and get_range"
PARTS_IN_FLIGHT = 4
OBJECTS_IN_FLIGHT = 2
READS_IN_FLIGHT = 16
GIB = 1 << 30

QUESTION = Question(
    name="s3",
    title="What does fwstore add to the requests of an object store?",
    subjects=(FLOOR, OURS),
    floors=(FLOOR,),
    figures=(
        Figure("save_s", "second save, committed"),
        Figure("load_s", "load into existing tensors"),
        Figure("save_requests", "requests of the save, per GiB", ""),
        Figure("load_requests", "requests of the load, per GiB", ""),
    ),
    marks=(
        Mark(OURS, "save_s", 1.1, (FLOOR,)),
        Mark(OURS, "load_s", 1.1, (FLOOR,)),
        Mark(OURS, "save_requests", 40),
    ),
    gigabytes=1.0,
    note=(
        "A Ceph gateway on loopback that keeps its objects in memory and shares the processor with its client. The "
        "floor puts the same bytes in objects and parts of the same sizes, from one piece of memory, and reads them "
        "back in ranges of the same size; it neither hashes nor verifies."
    ),
)


class Objects(Peer):
    """The bytes of the tensors in a row, in objects of the size of packs."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._limits = Limits()
        self._row: Bytes = np.zeros(0, np.uint8)

    def prepare(self, state: State) -> None:
        self._row = np.zeros(size_of(state), np.uint8)

    def gather(self, state: State) -> None:
        """Lay the tensors in a row, which is no part of what is measured."""
        np.concatenate(views(state), out=self._row)

    def save(self, state: State, step: int) -> Wait:
        def put(start: int) -> object:
            piece = self._row[start : start + self._limits.pack_bytes]
            return obstore.put(
                self._store,
                f"{step}/{start}",
                piece.data,
                chunk_size=self._limits.part_bytes,
                max_concurrency=PARTS_IN_FLIGHT,
            )

        self._in_threads(OBJECTS_IN_FLIGHT, put, self._limits.pack_bytes)
        return done

    def load(self, into: State, step: int) -> None:
        size, rest = self._limits.read_request_bytes, views(into)
        pieces: list[list[Bytes]] = []
        while rest:
            piece, rest = split_buffers(rest, size)
            pieces.append(piece)

        def get(start: int) -> None:
            pack, targets = start - start % self._limits.pack_bytes, pieces[start // size]
            length = sum(target.nbytes for target in targets)
            found = obstore.get_range(
                self._store, f"{step}/{pack}", start=start - pack, length=length
            )
            source, position = np.frombuffer(memoryview(found), np.uint8), 0
            for target in targets:
                np.copyto(target, source[position : position + target.nbytes])
                position += target.nbytes

        self._in_threads(READS_IN_FLIGHT, get, size)

    def _in_threads(self, threads: int, work: Callable[[int], object], size: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(0, self._row.nbytes, size)))


def measure(trial: Trial) -> Figures:
    """Save twice and load once."""
    state = trial.state()
    with warm_bucket() as bucket, _peer(trial.subject, bucket) as peer:
        peer.prepare(state)
        _save(trial, peer, state, 1)
        change(state)
        before = bucket.requests()
        saved = _save(trial, peer, state, 2)
        between = bucket.requests()
        loaded = trial.load(peer, state, 2)
        after = bucket.requests()
    gib = size_of(state) / GIB
    return {
        "save_s": saved,
        "load_s": loaded,
        "save_requests": (between - before) / gib,
        "load_requests": (after - between) / gib,
    }


def _peer(subject: str, bucket: Bucket) -> Peer:
    if subject == FLOOR:
        return Objects(bucket.store)
    return Fwstore(f"s3://{bucket.name}/checkpoints", blocking=True)


def _save(trial: Trial, peer: Peer, state: State, step: int) -> float:
    if isinstance(peer, Objects):
        peer.gather(state)
    return trial.save(peer, state, step)[1]


if __name__ == "__main__":
    run(QUESTION)
