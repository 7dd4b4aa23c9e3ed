"""The share of bytes in fragments, for the shapes of large models: `python -m benchmarks.fragments`.

The figures come from the planning code that saves use; no byte is read or written. Every tensor counts
as a bf16 weight and three fp32 copies (master weight and the two moments of AdamW).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from rich.console import Console

from benchmarks.common.question import Figure, Question
from benchmarks.common.results import RESULTS, Results, write_results
from benchmarks.common.statistics import Row
from benchmarks.common.tables import show
from fwstore.plan.fragments import fragmentation
from fwstore.plan.grid import Grid, grid_of_layout
from fwstore.plan.layout import Layout, Placement, Split

COPIES = ((2, 1), (4, 3))


@dataclass(frozen=True)
class Weight:
    """Tensors of one shape; `outer` is the dimension that tensor parallelism divides."""

    shape: tuple[int, ...]
    count: int
    outer: int | None = 0
    expert: bool = False


@dataclass(frozen=True)
class World:
    """Degrees of FSDP, tensor and expert parallelism."""

    fsdp: int
    tensor: int = 1
    expert: int = 1

    def __str__(self) -> str:
        return f"{self.fsdp}x{self.tensor}x{self.expert}"


def _llama(width: int, inner: int, layers: int, vocabulary: int) -> tuple[Weight, ...]:
    return (
        Weight((width, width), layers),
        Weight((1024, width), 2 * layers),
        Weight((width, width), layers, 1),
        Weight((inner, width), 2 * layers),
        Weight((width, inner), layers, 1),
        Weight((width,), 2 * layers, None),
        Weight((vocabulary, width), 2),
    )


MODELS: dict[str, tuple[Weight, ...]] = {
    "Llama-3-70B": _llama(8192, 28672, 80, 128256),
    "Llama-3-405B": _llama(16384, 53248, 126, 128256),
    "DeepSeek-V3": (
        Weight((1536, 7168), 61, None),
        Weight((24576, 1536), 61),
        Weight((576, 7168), 61, None),
        Weight((32768, 512), 61),
        Weight((7168, 16384), 61, 1),
        Weight((7168,), 122, None),
        Weight((18432, 7168), 6),
        Weight((7168, 18432), 3, 1),
        Weight((2048, 7168), 116),
        Weight((7168, 2048), 58, 1),
        Weight((256, 7168), 58, None),
        Weight((256, 2048, 7168), 116, expert=True),
        Weight((256, 7168, 2048), 58, expert=True),
        Weight((129280, 7168), 2),
    ),
    "Mixtral-8x22B": (
        Weight((6144, 6144), 56),
        Weight((1024, 6144), 112),
        Weight((6144, 6144), 56, 1),
        Weight((6144,), 112, None),
        Weight((8, 6144), 56, None),
        Weight((8, 16384, 6144), 112, expert=True),
        Weight((8, 6144, 16384), 56, expert=True),
        Weight((32000, 6144), 2),
    ),
    "GPT-2-like": (
        Weight((18432, 6144), 48),
        Weight((6144, 6144), 48, 1),
        Weight((24576, 6144), 48),
        Weight((6144, 24576), 48, 1),
        Weight((50257, 6144), 1),
        Weight((1280, 1280, 3, 3), 60, None),
        Weight((320, 4, 3, 3), 1, None),
        Weight((6144,), 96, None),
    ),
}

WORLDS: dict[str, tuple[World, ...]] = {
    "Llama-3-70B": (World(8), World(64), World(256), World(1024), World(64, 8), World(128, 8)),
    "Llama-3-405B": (World(64), World(512), World(1024), World(128, 8), World(1024, 8)),
    "DeepSeek-V3": (
        World(64, 1, 8),
        World(256, 1, 64),
        World(1024, 1, 64),
        World(128, 8, 64),
    ),
    "Mixtral-8x22B": (World(8, 1, 8), World(64, 1, 8), World(512, 1, 8), World(64, 4, 8)),
    "GPT-2-like": (World(8), World(48), World(64), World(512), World(32, 8)),
}


@dataclass(frozen=True)
class Figures:
    """What one model makes of one world."""

    bytes_total: int
    bytes_fragments: int
    chunks: int

    @property
    def percent(self) -> float:
        """Bytes in fragments, in % of all."""
        return 100 * self.bytes_fragments / self.bytes_total


def figures(model: str, world: World, born: World | None = None) -> Figures:
    """Return the figures of a model saved in one world with the grids of another."""
    totals = [0, 0, 0]
    for weight in MODELS[model]:
        layout = layout_of(weight, world)
        for itemsize, copies in COPIES:
            result = fragmentation(_grid(weight, itemsize, born or world), layout)
            scale = copies * weight.count
            totals[0] += result.elements * itemsize * scale
            totals[1] += result.fragment_elements * itemsize * scale
            totals[2] += result.chunks * scale
    return Figures(*totals)


def changes(model: str) -> Iterator[tuple[World, World]]:
    """Yield the worlds of a model with each that a power of two, up to 8, of FSDP or EP away from it."""
    for world in WORLDS[model]:
        for factor in (2, 4, 8):
            yield world, World(world.fsdp * factor, world.tensor, world.expert)
            yield world, World(world.fsdp // factor, world.tensor, world.expert)
            if world.expert > 1:
                yield world, World(world.fsdp, world.tensor, max(1, world.expert // factor))


@cache
def _grid(weight: Weight, itemsize: int, world: World) -> Grid:
    return grid_of_layout(weight.shape, itemsize, layout_of(weight, world))


def layout_of(weight: Weight, world: World) -> Layout:
    """Return the layout of a weight: FSDP cuts what tensor or expert parallelism has left."""
    if weight.expert:
        within = max(1, world.fsdp // world.expert)
        dim = 0 if -(-weight.shape[0] // world.expert) >= within else 1
        return _mesh((world.expert, Split(0, outer=True)), (within, Split(dim)))
    outer = None if weight.outer is None else Split(weight.outer, outer=True)
    return _mesh((world.tensor, outer), (world.fsdp, Split(0)))


def _mesh(*dimensions: tuple[int, Placement]) -> Layout:
    mesh = tuple(size for size, _ in dimensions)
    placements = tuple(placement for _, placement in dimensions)
    return Layout(mesh, placements, tuple(range(math.prod(mesh))))


def subject_of(model: str, world: World) -> str:
    """Return the row of a model in a world."""
    return f"fwstore, {model} {world}"


def rows() -> Iterator[Row]:
    """Yield the figures of every model in every world, and the worst of what growth makes of them."""
    for model, worlds in WORLDS.items():
        for world in worlds:
            found, ranks = figures(model, world), world.fsdp * world.tensor
            grown = [
                figures(model, to, born).percent for born, to in changes(model) if born == world
            ]
            yield {
                "subject": subject_of(model, world),
                "repeat": 0,
                "figures": {
                    "gb_per_rank": found.bytes_total / ranks / 1e9,
                    "chunks_per_rank": found.chunks / ranks,
                    "kib_per_chunk": found.bytes_total / found.chunks / 1024,
                    "percent": found.percent,
                    "grown_percent": max(grown),
                },
            }


TABLE = Question(
    name="fragments",
    title="Which share of the bytes is in fragments?",
    subjects=tuple(
        subject_of(model, world) for model, worlds in WORLDS.items() for world in worlds
    ),
    figures=(
        Figure("gb_per_rank", "GB per rank", ""),
        Figure("chunks_per_rank", "chunks per rank", ""),
        Figure("kib_per_chunk", "KiB per chunk", ""),
        Figure("percent", "in fragments", "%"),
        Figure("grown_percent", "worst after growth", "%"),
    ),
    note=(
        "Real models under FSDP x TP x EP, from the planning code that saves use; no byte is moved. Growth is a change "
        "of FSDP or EP by a power of two, up to 8, with the grids of the world before: what the first save after it finds; "
        "trained tensors then take new grids."
    ),
)


def main() -> None:
    """Print the table and store it."""
    results = Results(question=TABLE, machine={}, gigabytes=0.0, repeats=1, rows=list(rows()))
    write_results(results, RESULTS / f"{TABLE.name}.json")
    show(TABLE, results.rows, Console())
    print("\nafter a change of FSDP or EP by a power of two, up to 8")
    for model in MODELS:
        for born, world in changes(model):
            percent = figures(model, world, born).percent
            print(f"{model:14}{born!s:>12} -> {world!s:<12}{percent:8.3f}%")


if __name__ == "__main__":
    main()
