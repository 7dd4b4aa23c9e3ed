"""What does planning cost at the sizes of the format's arithmetic? ``python -m benchmarks.planning``.

One rank among 100,000 that holds 184,000 tensors, and a leader that checks 3e7 cells in 1e7 runs.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from fwstore.format.rows import FragmentTable, RunTable
from fwstore.plan.box import Box
from fwstore.plan.coverage import check_coverage
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.layout import Layout, Split
from fwstore.plan.owner import Holding, plan_owned
from fwstore.plan.reshard import plan_reads

Result = TypeVar("Result")

RANK, WORLD, TENSORS = 4321, 100_000, 184_000
OURS = "fwstore async"

QUESTION = Question(
    name="planning",
    title="What does planning cost at the sizes of the format's arithmetic?",
    subjects=(OURS,),
    figures=(
        Figure("describe_s", f"describe {TENSORS:,} tensors of one rank of {WORLD:,}"),
        Figure("plan_s", "plan what it writes"),
        Figure("coverage_s", "leader: coverage of 3e7 cells in 1e7 runs"),
        Figure("reads_s", "plan the reads of 262,144 chunks"),
        Figure("describe_mib", "describing", "MiB"),
        Figure("plan_mib", "planning", "MiB"),
        Figure("coverage_mib", "coverage", "MiB"),
    ),
    marks=(
        Mark(OURS, "plan_s", 1.0),
        Mark(OURS, "plan_mib", 200.0),
        Mark(OURS, "coverage_s", 10.0),
    ),
    gigabytes=0.0,
    note="Real code on made-up descriptors, no byte moved. Memory is by how much the peak of the process grew.",
)

SHAPES = ((2048, 7168), (7168, 2048), (7168,), (256, 7168), (16384, 7168), (7168, 16384))


def holdings() -> list[Holding]:
    """Return what one rank holds of a mixture of experts under HSDP and tensor parallelism."""
    mesh, ranks = (WORLD // 32, 4, 8), tuple(range(WORLD))
    rows = Layout(mesh, (Split(0), None, Split(0, outer=True)), ranks)
    columns = Layout(mesh, (Split(0), None, Split(1, outer=True)), ranks)
    whole = Layout(mesh, (None, None, None), ranks)
    result = []
    for number in range(TENSORS):
        shape = SHAPES[number % len(SHAPES)]
        layout = whole if len(shape) == 1 else (rows, columns)[number % 2]
        grid = grid_of_layout(shape, 2, layout)
        result.append(Holding(number, 2, grid, layout, layout.boxes(shape, RANK)))
    return result


def leader(tensors: int, cells: int, run: int) -> tuple[list[Grid | None], RunTable]:
    """Return grids and runs of tensors that were saved in short runs."""
    grids: list[Grid | None] = [Grid((cells * 4,), ((1, 4),))] * tensors
    per_tensor = -(-cells // run)
    first = np.tile(np.arange(per_tensor, dtype=np.uint64) * np.uint64(run), tensors)
    count = np.minimum(np.uint64(run), np.uint64(cells) - first)
    chunk = np.zeros(len(first), np.uint32)
    tensor = np.repeat(np.arange(tensors, dtype=np.uint32), per_tensor)
    return grids, RunTable(tensor, first, count, chunk, chunk)


@dataclass
class Meter:
    """What calls cost, by name."""

    figures: Figures = field(default_factory=dict)

    def measure(self, name: str, call: Callable[[], Result]) -> Result:
        """Note how long a call takes and by how much the peak of the process's memory grew."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        result = call()
        self.figures[f"{name}_s"] = time.perf_counter() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        self.figures[f"{name}_mib"] = grown / 1024
        return result


def measure(trial: Trial) -> Figures:
    """Plan for a rank and for a leader."""
    meter = Meter()
    held = meter.measure("describe", holdings)
    meter.measure("plan", lambda: plan_owned(held, RANK))
    grids, cells = leader(30_000, 1000, 3)
    meter.measure("coverage", lambda: check_coverage(grids, cells, FragmentTable.of()))
    grid = Grid((1 << 20, 1024), ((1, 4), (1, 1024)))
    rows = RunTable.of([(0, first, 8, first // 8, 0) for first in range(0, 1 << 18, 8)])
    wanted = [Box((0, 0), (1 << 20, 512))]
    meter.measure("reads", lambda: list(plan_reads(grid, rows, FragmentTable.of(), wanted)))
    return meter.figures


if __name__ == "__main__":
    run(QUESTION)
