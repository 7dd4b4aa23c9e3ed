"""Which share of the bytes is in fragments, for the shapes of large models? ``python -m benchmarks.fragments``.

The figures come from the planning code that saves use; no byte is read or written. Every tensor counts
as a bf16 weight and three fp32 copies (master weight and the two moments of AdamW).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.common.question import Figure, Mark, Point, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures as Counted
from benchmarks.common.trial import Trial
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
    """Yield the worlds of a model, each with those that it may be changed to."""
    for world in WORLDS[model]:
        for to in changed(world):
            yield world, to


def changed(world: World) -> Iterator[World]:
    """Yield the worlds that are a power of two, up to 8, of FSDP or EP away from one."""
    for factor in (2, 4, 8):
        yield replace(world, fsdp=world.fsdp * factor)
        yield replace(world, fsdp=world.fsdp // factor)
        if world.expert > 1:
            yield replace(world, expert=max(1, world.expert // factor))


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


def _everywhere(
    fsdp: Iterable[int], tensor: Iterable[int], expert: Iterable[int] = (1,)
) -> tuple[World, ...]:
    found = itertools.product(tensor, expert, fsdp)
    # Expert parallelism divides the ranks that FSDP has.
    return tuple(
        World(shards, parts, groups) for parts, groups, shards in found if shards >= groups
    )


# What the page shows over the size of the job.
SHOWN: dict[str, tuple[World, ...]] = {
    "Llama-3-405B": _everywhere((8, 64, 256, 1024), (1, 4, 8)),
    "Mixtral-8x22B": _everywhere((8, 64, 256, 1024), (1, 4, 8), (8,)),
    "DeepSeek-V3": _everywhere((8, 64, 256, 1024), (1, 8), (8, 64)),
}
SUBJECTS = {
    f"fwstore, {model} {world}": (model, world)
    for model, worlds in SHOWN.items()
    for world in worlds
}


def _line(model: str, world: World) -> str:
    experts = f", EP {world.expert}" if world.expert > 1 else ""
    return f"{model}, TP {world.tensor}{experts}"


QUESTION = Question(
    name="fragments",
    title="Which share of the bytes is in fragments?",
    subjects=tuple(SUBJECTS),
    figures=(
        Figure("gb_per_rank", "GB per rank", ""),
        Figure("chunks_per_rank", "chunks per rank", ""),
        Figure("kib_per_chunk", "KiB per chunk", ""),
        Figure("percent", "in fragments", "%"),
        Figure("shrunk_percent", "worst after fewer ranks", "%"),
        Figure("grown_percent", "worst after more ranks", "%"),
    ),
    marks=tuple(
        Mark(f"fwstore, {model} {worlds[-1]}", "percent", 0.09) for model, worlds in SHOWN.items()
    ),
    axis="ranks",
    points=tuple(
        Point(subject, world.fsdp * world.tensor, _line(model, world))
        for subject, (model, world) in SUBJECTS.items()
    ),
    gigabytes=0.0,
    repeats=1,
    note=(
        "Real models under FSDP x TP x EP, from the planning code that saves use; no byte is moved. The last columns are "
        "of what the first save after a change of FSDP or EP by a power of two, up to 8, finds with the grids of before; "
        "trained tensors then take new grids (docs/adr/fragments-after-growth.md says where a change cuts much)."
    ),
)


def measure(trial: Trial) -> Counted:
    """Count what one model makes of one world, and of every change of it."""
    model, world = SUBJECTS[trial.subject]
    found, ranks = figures(model, world), world.fsdp * world.tensor
    fewer, more = [0.0], [0.0]
    for to in changed(world):
        (fewer if to.fsdp < world.fsdp else more).append(figures(model, to, world).percent)
    return {
        "gb_per_rank": found.bytes_total / ranks / 1e9,
        "chunks_per_rank": found.chunks / ranks,
        "kib_per_chunk": found.bytes_total / found.chunks / 1024,
        "percent": found.percent,
        "shrunk_percent": max(fewer),
        "grown_percent": max(more),
    }


if __name__ == "__main__":
    run(QUESTION)
