"""What does planning cost at the sizes of the format's arithmetic? ``python -m benchmarks.planning``.

One rank among 100,000 that holds up to 184,000 tensors, and a leader that checks up to 3e7 cells in 1e7 runs.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.common.question import Figure, Mark, Point, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from fwstore.checkpoint.catalogue import Catalogue, make_catalogue
from fwstore.checkpoint.saveplan import make_plan, structure_of
from fwstore.checkpoint.shard import Piece, Shard
from fwstore.format.paths import TensorPath
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.plan.box import Box
from fwstore.plan.coverage import check_coverage
from fwstore.plan.grid import Grid
from fwstore.plan.layout import Layout, Split
from fwstore.plan.reshard import plan_reads
from fwstore.sched import collection_paused

Result = TypeVar("Result")

RANK, WORLD = 4321, 100_000
TENSORS = {f"fwstore, {count:,} tensors": count for count in (1_000, 10_000, 50_000, 184_000)}
LARGEST = list(TENSORS)[-1]
SHAPES = ((2048, 7168), (7168, 2048), (7168,), (256, 7168), (16384, 7168), (7168, 16384))
CELLS_PER_TENSOR, CELLS_PER_RUN = 163, 3
CHUNKS_PER_RUN = 8

QUESTION = Question(
    name="planning",
    title="What does planning cost at the sizes of the format's arithmetic?",
    subjects=tuple(TENSORS),
    figures=(
        Figure("describe_s", "describe what a rank holds"),
        Figure("sort_s", "sort the names, first save"),
        Figure("sort_again_s", "sort the names, later saves"),
        Figure("plan_s", "plan what the rank writes"),
        Figure("unchanged_s", "see that the plan still holds"),
        Figure("coverage_s", "leader: coverage, 163 cells a tensor in runs of 3"),
        Figure("reads_s", "plan the reads of as many chunks"),
        Figure("plan_mib", "planning", "MiB"),
        Figure("coverage_mib", "leader: coverage", "MiB"),
    ),
    marks=(
        Mark(LARGEST, "plan_s", 1.0),
        Mark(LARGEST, "plan_mib", 200.0),
        Mark(LARGEST, "unchanged_s", 0.02),
        Mark(LARGEST, "coverage_s", 10.0),
    ),
    axis="tensors",
    points=tuple(Point(subject, count) for subject, count in TENSORS.items()),
    gigabytes=0.0,
    note=(
        "Real code on made-up descriptors, no byte moved: one rank of 100,000 under HSDP and TP 8 holds a mixture of "
        "experts. Seconds are of the processor; memory is by how much the peak of the process grew."
    ),
)


@dataclass
class Meter:
    """What calls cost, by name."""

    figures: Figures = field(default_factory=dict)

    def measure(self, name: str, call: Callable[[], Result]) -> Result:
        """Note the processor's time of a call and by how much the peak of the process's memory grew."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        result = call()
        self.figures[f"{name}_s"] = time.process_time() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        self.figures[f"{name}_mib"] = grown / 1024
        return result


def measure(trial: Trial) -> Figures:
    """Plan for a rank, once and again; then for a leader and for a load."""
    meter, tensors = Meter(), QUESTION.size(trial.subject)
    with collection_paused():
        plan_save(meter, tensors)
        grids, rows = united(tensors)
        meter.measure("coverage", lambda: check_coverage(grids, rows, FragmentTable.of()))
        plan_load(meter, tensors)
    return {figure.name: meter.figures[figure.name] for figure in QUESTION.figures}


def plan_save(meter: Meter, tensors: int) -> None:
    """Plan the first save of a rank, then see in the second that nothing changed."""
    layouts, memory = divisions(), np.empty(1 << 24, np.uint16)
    shards = meter.measure("describe", lambda: holdings(tensors, layouts, memory))
    first = meter.measure("sort", lambda: make_catalogue(shards, {}, WORLD))
    structure = structure_of(first)
    meter.measure("plan", lambda: make_plan(first, {}, RANK, structure))
    shards = holdings(tensors, layouts, memory)
    second = meter.measure("sort_again", lambda: make_catalogue(shards, {}, WORLD))
    if not meter.measure("unchanged", lambda: _same(second, structure)):
        raise SystemExit("the plan of the first save does not hold for the second")


def plan_load(meter: Meter, chunks: int) -> None:
    """Plan the reads of half of a tensor whose chunks lie in short runs."""
    grid = Grid((4 * chunks, 1024), ((1, 4), (1, 1024)))
    runs = [
        (0, first, CHUNKS_PER_RUN, first // CHUNKS_PER_RUN, 0)
        for first in range(0, chunks, CHUNKS_PER_RUN)
    ]
    rows, wanted = RunTable.of(runs), [Box((0, 0), (4 * chunks, 512))]
    meter.measure("reads", lambda: list(plan_reads(grid, rows, FragmentTable.of(), wanted)))


def divisions() -> tuple[Layout, Layout, Layout]:
    """Return how the job divides tensors: by rows, by columns, or not at all."""
    mesh, ranks = (WORLD // 32, 4, 8), tuple(range(WORLD))
    rows = Layout(mesh, (Split(0), None, Split(0, outer=True)), ranks)
    columns = Layout(mesh, (Split(0), None, Split(1, outer=True)), ranks)
    return rows, columns, Layout(mesh, (None, None, None), ranks)


def holdings(
    tensors: int, layouts: tuple[Layout, Layout, Layout], memory: npt.NDArray[np.uint16]
) -> dict[TensorPath, Shard]:
    """Return what the rank holds; all tensors share memory, of which nobody reads."""
    found: dict[TensorPath, Shard] = {}
    for number in range(tensors):
        shape = SHAPES[number % len(SHAPES)]
        layout = layouts[2 if len(shape) == 1 else number % 2]
        pieces = tuple(
            Piece(box, memory[: box.volume].reshape(box.sizes)) for box in layout.boxes(shape, RANK)
        )
        path = ("model", "layers", number // 300, "experts", number % 300)
        found[path] = Shard("bfloat16", shape, pieces, layout)
    return found


def united(tensors: int) -> tuple[list[Grid | None], RunTable]:
    """Return grids and runs of tensors that were saved in short runs."""
    grids: list[Grid | None] = [Grid((CELLS_PER_TENSOR * 4,), ((1, 4),))] * tensors
    per_tensor = -(-CELLS_PER_TENSOR // CELLS_PER_RUN)
    first = np.tile(np.arange(per_tensor, dtype=np.uint64) * np.uint64(CELLS_PER_RUN), tensors)
    count = np.minimum(np.uint64(CELLS_PER_RUN), np.uint64(CELLS_PER_TENSOR) - first)
    chunk = np.zeros(len(first), np.uint32)
    tensor = np.repeat(np.arange(tensors, dtype=np.uint32), per_tensor)
    return grids, RunTable(tensor, first, count, chunk, chunk)


def _same(catalogue: Catalogue, structure: object) -> bool:
    return bool(structure_of(catalogue) == structure)


if __name__ == "__main__":
    run(QUESTION)
