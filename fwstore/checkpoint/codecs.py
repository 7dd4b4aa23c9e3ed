"""Which codec the chunks of a tensor get.

Invariant: the choice never changes what is read back; it is a hint that `write_chunks` drops for every chunk
that encoding does not make smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from fwstore.base.errors import InvalidInput
from fwstore.checkpoint.saveplan import PlannedSegment, SavePlan
from fwstore.checkpoint.session import CodecChoice
from fwstore.checkpoint.sources import Source
from fwstore.checkpoint.stage import StagedSegment
from fwstore.codec.auto import AutoChoices, Sample, choose, sample_cells
from fwstore.codec.registry import Codec, codec_of_name
from fwstore.sched import Runtime


def check_choice(choice: str) -> None:
    """Refuse what is no choice of a codec.

    Raises:
        InvalidInput: It is not among those that there are.
    """
    known = get_args(CodecChoice)
    if choice not in known:
        raise InvalidInput(f"there is no codec {choice!r}; choose one of {', '.join(known)}")


class CodecPolicy:
    """The codec of every tensor of a writer.

    Args:
        choice: ``"raw"``, ``"zstd"`` for all, or ``"auto"`` to measure.
        runtime: Its clock times the samples.
    """

    def __init__(self, choice: CodecChoice, runtime: Runtime) -> None:
        self._choice = choice
        self._runtime = runtime
        self._auto = AutoChoices()
        self._store_rate = 0.0

    def learn(self, stored_bytes: int, seconds: float) -> None:
        """Note how fast the store took bytes."""
        if stored_bytes and seconds > 0:
            self._store_rate = stored_bytes / seconds

    def codecs(
        self, plan: SavePlan, sources: Sequence[tuple[PlannedSegment, Source]], save: int
    ) -> Mapping[int, Codec]:
        """Return the codec of every tensor that is not stored raw, by its number in the plan's dictionary."""
        if self._choice == "raw":
            return {}
        if self._choice == "zstd":
            zstd = codec_of_name("zstd-1")
            return dict.fromkeys(plan.numbers, zstd)
        self._sample(plan, sources, save)
        chosen = {number: self._auto.choice(plan.tensors[number].path) for number in plan.numbers}
        return {number: codec_of_name(name) for number, name in chosen.items() if name != "raw"}

    def _sample(
        self, plan: SavePlan, sources: Sequence[tuple[PlannedSegment, Source]], save: int
    ) -> None:
        """Encode a few cells of every tensor whose choice is due."""
        memories: dict[int, list[memoryview]] = {}
        for planned, source in sources:
            number = plan.numbers[planned.segment.chunks.tensor]
            due = self._auto.due(plan.tensors[number].path, save)
            if due and isinstance(source, StagedSegment):
                memories.setdefault(number, []).extend(_cells(planned, source.memory))
        for number, cells in memories.items():
            picked = [cells[index] for index in sample_cells(len(cells))]
            sample = self._measure(picked)
            threads = self._runtime.scheduler.workers
            self._auto.keep(
                plan.tensors[number].path, save, choose(sample, self._store_rate, threads)
            )

    def _measure(self, cells: Sequence[memoryview]) -> Sample:
        codec = codec_of_name("zstd-1")
        started = self._runtime.clock.monotonic()
        stored = sum(len(codec.encode(cell) or cell) for cell in cells)
        elapsed = self._runtime.clock.monotonic() - started
        return Sample(sum(cell.nbytes for cell in cells), stored, elapsed)


def _cells(planned: PlannedSegment, memory: memoryview) -> list[memoryview]:
    cells, position = [], 0
    for length in planned.segment.chunks.lengths.tolist():
        cells.append(memory[position : position + length])
        position += length
    return cells
