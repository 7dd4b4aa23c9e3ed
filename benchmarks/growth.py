"""What a save and a load cost in a job of 100,000 ranks: `python -m benchmarks.growth`.

One leader commits 14 TB with the code that commits every save, from the contributions of all ranks; the bytes
themselves are left out. The store is memory: requests and rounds are counted, and one thread does all of it.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

import fwstore
from benchmarks.descriptors import Job
from benchmarks.fragments import World
from fwstore.checkpoint.catalogue import make_catalogue
from fwstore.checkpoint.saveplan import make_plan, structure_of
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.format.paths import TensorPath
from fwstore.format.root import LineageRef
from fwstore.plan.layout import Layout, Split
from fwstore.sched import InlineScheduler, collection_paused

T = TypeVar("T")
R = TypeVar("R")

_RANK, _WORLD, _TENSORS = 4321, 100_000, 184_000
_SHAPES = ((2048, 7168), (7168, 2048), (7168,), (256, 7168), (16384, 7168), (7168, 16384))

JOBS = {
    100_000: Job("Llama-3-405B", 2.48, World(250, 8), 50),
    10_000: Job("Llama-3-405B", 2.48, World(125, 8), 10),
    1_000: Job("Llama-3-405B", 2.48, World(125, 8), 1),
}


class Meter(InlineScheduler):
    """Counts requests, and rounds: what one `map` begins side by side takes as long as its longest call."""

    def __init__(self) -> None:
        self.rounds = 0
        self.requests: Counter[str] = Counter()
        self.bytes = 0
        self.puts_from = -1
        self.lists_after = 0

    def clear(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]

    def map(self, function: Callable[[T], R], values: Iterable[T], *, limit: int = 0) -> list[R]:
        """Call one after another, and count as if side by side."""
        before = longest = self.rounds
        results = []
        for value in values:
            self.rounds = before
            results.append(function(value))
            longest = max(longest, self.rounds)
        self.rounds = longest
        return results


class MeteredStore:
    """Passes every call on and counts it."""

    def __init__(self, inner: Any, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._counted(name, found) if callable(found) else found

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if name == "put" and self._meter.puts_from < 0:
                self._meter.puts_from = self._meter.rounds
            self._meter.lists_after += name == "list" and self._meter.puts_from >= 0
            self._meter.rounds += 1
            self._meter.requests[name] += 1
            result = call(*args, **options)
            moved = [result] if isinstance(result, bytes) else args[1] if name == "put" else []
            self._meter.bytes += sum(len(part) for part in moved)
            return result

        return counted


def report(title: str, meter: Meter, seconds: float | None = None) -> None:
    """Print one line and begin anew."""
    requests = ", ".join(f"{count} {name}" for name, count in sorted(meter.requests.items()))
    spent = "" if seconds is None else f"{seconds:8.2f} s CPU"
    print(
        f"{title:44}{spent:>15}{meter.rounds:5} rounds{meter.bytes / 1e6:9.2f} MB  {requests}",
        flush=True,
    )
    meter.clear()


def save(repository: fwstore.Repository, job: Job, meter: Meter) -> fwstore.Checkpoint:
    """Commit what all ranks bring."""
    run = repository.run("bench")
    ticket = run.begin_save()
    label = f"{ticket.name}@{ticket.generation}"
    messages = list(job.messages(LineageRef(label, ticket.lineage), ticket.term))
    print(
        f"{job.ranks:,} ranks, {len(job.tensors):,} tensors, {job.size_bytes / 1e12:.1f} TB, "
        f"{sum(map(len, messages)) / len(messages):,.0f} bytes from a rank",
        flush=True,
    )
    meter.clear()
    started = time.process_time()
    checkpoint = run.commit_save(ticket, messages)
    rounds, lists = meter.rounds - meter.puts_from, meter.lists_after
    report("commit, from the last contribution", meter, time.process_time() - started)
    print(f"{'':44}from the first leaf to the record: {rounds} rounds, {lists} LIST")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'':44}peak {peak:,.0f} MiB with all messages in memory")
    return checkpoint


def load(repository: fwstore.Repository, job: Job, meter: Meter) -> None:
    """Read what one rank must know before it asks for bytes: rows of all tensors and packs of its shard."""
    meter.clear()
    started = time.process_time()
    checkpoint = repository.run("bench").latest()
    manifest = checkpoint.manifest
    report("open the run and its newest checkpoint", meter, time.process_time() - started)
    shards = job.world.fsdp * job.world.tensor
    packs = {pack.info.rank: pack.info for pack in manifest.all_packs()}
    mine = [packs[rank] for rank in range(1, job.ranks, shards) if rank in packs]
    numbers = {info.rank: number for number, info in enumerate(packs.values())}
    fresh = repository.run("bench").latest().manifest
    meter.clear()
    started = time.process_time()
    rows = [fresh.rows(info.path) for info in fresh.tensors()]
    fresh.packs([numbers[info.rank] for info in mine])
    footers = sum(info.footer_length for info in mine)
    meter.bytes += footers
    meter.requests["get_range"] += len(mine)
    meter.rounds += 1
    report("one rank: leaves, pack tables, footers", meter, time.process_time() - started)
    assert len(rows) == len(job.tensors)


def plan() -> None:
    """Plan for one rank of 100,000 with 184,000 tensors, then see in the next save that nothing changed."""
    divisions = _divisions()
    first, second = _shards(divisions), _shards(divisions)
    with collection_paused():
        catalogue = make_catalogue(first, {}, _WORLD)
        again = make_catalogue(second, {}, _WORLD)
        started = time.process_time()
        structure = structure_of(catalogue)
        made = make_plan(catalogue, {}, _RANK, structure)
        planned = time.process_time()
        assert structure_of(again) == structure
        compared = time.process_time()
    print(
        f"{len(made.tensors):,} tensors, {made.chunks:,} chunks: plan {planned - started:.2f} s CPU, "
        f"see that it still holds {1000 * (compared - planned):.0f} ms CPU"
    )


def _divisions() -> tuple[Layout, Layout, Layout]:
    mesh, ranks = (_WORLD // 32, 4, 8), tuple(range(_WORLD))
    rows = Layout(mesh, (Split(0), None, Split(0, outer=True)), ranks)
    columns = Layout(mesh, (Split(0), None, Split(1, outer=True)), ranks)
    return rows, columns, Layout(mesh, (None, None, None), ranks)


def _shards(divisions: tuple[Layout, Layout, Layout]) -> dict[TensorPath, Shard]:
    """Return what the rank holds of a mixture of experts; its tensors share memory, of which nobody reads."""
    memory = np.empty(1 << 24, np.uint16)
    found: dict[TensorPath, Shard] = {}
    for number in range(_TENSORS):
        shape = _SHAPES[number % len(_SHAPES)]
        layout = divisions[2 if len(shape) == 1 else number % 2]
        pieces = tuple(
            Piece(box, memory[: box.volume].reshape(box.sizes))
            for box in layout.boxes(shape, _RANK)
        )
        path = ("model", "layers", number // 300, "experts", number % 300)
        found[path] = Shard("bfloat16", shape, pieces, layout)
    return found


def main() -> None:
    """Print the table."""
    plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, choices=sorted(JOBS), default=100_000)
    job = JOBS[parser.parse_args().ranks]
    meter = Meter()
    with fwstore.open("memory://growth") as repository:
        repository.runtime = replace(repository.runtime, scheduler=meter)
        store: Any = MeteredStore(repository.store, meter)
        repository.store = store
        checkpoint = save(repository, job, meter)
        said = checkpoint.describe()
        print(f"{said.chunks:,} chunks, {said.packs:,} packs, {said.leaves} leaves")
    with fwstore.open("memory://growth") as repository:
        repository.runtime = replace(repository.runtime, scheduler=meter)
        store = MeteredStore(repository.store, meter)
        repository.store = store
        load(repository, job, meter)


if __name__ == "__main__":
    main()
