"""What do a save and a load cost in a job of 100,000 ranks? ``python -m benchmarks.growth``.

One leader commits 14 TB with the code that commits every save, from the contributions of all ranks; the bytes
themselves are left out. The store is memory: requests and rounds are counted, and one thread does all of it.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

import fwstore
from benchmarks.common.meter import Meter, open_metered
from benchmarks.common.question import Figure, Mark, Point, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.descriptors import Job
from benchmarks.fragments import World
from fwstore.checkpoint.part import Part, encode_part
from fwstore.format.root import LineageRef

URL = "memory://growth"
MODEL, TIMES = "Llama-3-405B", 2.48
JOBS = {
    f"fwstore, {job.ranks:,} ranks": job
    for job in (
        Job(MODEL, TIMES, World(125, 8), 1),
        Job(MODEL, TIMES, World(125, 8), 10),
        Job(MODEL, TIMES, World(250, 8), 50),
    )
}
LARGEST = list(JOBS)[-1]

QUESTION = Question(
    name="growth",
    title="What do a save and a load cost in a job of 100,000 ranks?",
    subjects=tuple(JOBS),
    figures=(
        Figure("commit_s", "leader: from all contributions to the record, CPU"),
        Figure("commit_user_s", "the same without the kernel, which gives memory at first touch"),
        Figure("peak_mib", "leader: memory, all contributions included", "MiB"),
        Figure("message_bytes", "contribution of a rank", "bytes"),
        Figure("metadata_mb", "leaves, pack tables and root", "MB"),
        Figure("rounds", "serial rounds from the first leaf to the record", ""),
        Figure("lists", "LIST on the way", ""),
        Figure("load_s", "one rank: open the run, find its chunks, CPU"),
        Figure("load_mb", "one rank: metadata read", "MB"),
        Figure("load_requests", "one rank: requests", ""),
        Figure("load_rounds", "one rank: serial rounds", ""),
    ),
    marks=(
        Mark(LARGEST, "commit_s", 10.0),
        Mark(LARGEST, "metadata_mb", 60.0),
        Mark(LARGEST, "rounds", 4),
        Mark(LARGEST, "lists", 0),
        Mark(LARGEST, "load_mb", 4.0),
    ),
    axis="ranks",
    points=tuple(Point(subject, job.ranks) for subject, job in JOBS.items()),
    gigabytes=0.0,
    repeats=3,
    note=(
        "The layers of Llama-3-405B 2.48 times: 1 T parameters as bf16 weights, fp32 masters and two moments in 11,264 "
        "tensors. FSDP 250 x TP 8 and 50 replicas of each shard make 100,000 ranks; FSDP 125 x TP 8 and 10 or 1 the others. "
        "Real code on made-up descriptors in one thread; the leader gets all contributions at once."
    ),
)


def measure(trial: Trial) -> Figures:
    """Commit what all ranks of a job bring; then find what one of them would load."""
    job, meter = JOBS[trial.subject], Meter()
    with open_metered(URL, meter) as repository:
        figures, mine = save(repository, job, meter, trial.back_memory)
    with open_metered(URL, meter) as repository:
        return figures | load(repository, mine, meter)


def save(
    repository: fwstore.Repository, job: Job, meter: Meter, ready: Callable[[], None]
) -> tuple[Figures, list[int]]:
    """Commit what all ranks bring; return what it cost, and the numbers of the packs of one shard.

    Args:
        repository: Empty.
        job: Whose ranks bring it.
        meter: Counts requests.
        ready: Called before the clock starts.
    """
    run = repository.run("bench")
    ticket = run.begin_save()
    label = f"{ticket.name}@{ticket.generation}"
    brought = job.messages(LineageRef(label, ticket.lineage), ticket.term)
    messages = [encode_part(Part(ticket.step, (message,))) for message in brought]
    ready()
    meter.clear()
    started, before = time.process_time(), os.times().user
    checkpoint = run.commit_save(ticket, messages)
    figures = {
        "commit_s": time.process_time() - started,
        "commit_user_s": os.times().user - before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "message_bytes": sum(map(len, messages)) / len(messages),
        "metadata_mb": meter.bytes / 1e6,
        "rounds": meter.rounds - meter.puts_from,
        "lists": meter.lists_after,
    }
    packs, shards = checkpoint.manifest.all_packs(), job.world.fsdp * job.world.tensor
    return figures, [number for number, pack in enumerate(packs) if pack.info.rank % shards == 1]


def load(repository: fwstore.Repository, mine: list[int], meter: Meter) -> Figures:
    """Read what one rank must know before it asks for bytes: rows of all tensors and packs of its shard."""
    meter.clear()
    started = time.process_time()
    manifest = repository.run("bench").latest().manifest
    for info in manifest.tensors():
        manifest.rows(info.path)
    packs = manifest.packs(mine)
    spent = time.process_time() - started
    # One request reads the footer of a pack, all of them side by side.
    footers = sum(pack.info.footer_length for pack in packs.values())
    return {
        "load_s": spent,
        "load_mb": (meter.bytes + footers) / 1e6,
        "load_requests": meter.requests.total() + len(packs),
        "load_rounds": meter.rounds + 1,
    }


if __name__ == "__main__":
    run(QUESTION)
