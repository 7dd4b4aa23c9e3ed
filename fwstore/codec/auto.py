"""The choice of ``codec="auto"``: encode only where the store is slower than the codec.

Invariant: choices are functions of measurements that are handed in; nothing here measures, so the same
measurements always give the same choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fwstore.format.paths import TensorPath

Choice = Literal["raw", "zstd-1"]

CELLS_PER_SAMPLE = 64
_LEAST_GAIN = 1 / 16


@dataclass(frozen=True, slots=True)
class Sample:
    """What encoding the sampled cells of a tensor gave.

    Attributes:
        raw_bytes: Bytes that were given to the codec.
        stored_bytes: Bytes that came back; as many as were given where encoding did not pay.
        encode_s: Seconds it took on one thread.
    """

    raw_bytes: int
    stored_bytes: int
    encode_s: float


def sample_cells(cells: int) -> range:
    """Return which of the first, second ... of `cells` cells to sample: 1/64 of them, at least one."""
    return range(min(cells, CELLS_PER_SAMPLE) // 2, cells, CELLS_PER_SAMPLE)


def choose(sample: Sample, store_bytes_per_s: float, threads: int) -> Choice:
    """Return the codec under which a tensor becomes durable sooner.

    Encoding overlaps with the transfer, so it costs no time while `threads` encoders together are
    faster than the store; then every byte saved is time saved.

    Args:
        sample: What was measured on this tensor.
        store_bytes_per_s: What the store took of this process lately; 0 when that is not known.
        threads: Encoders that run at the same time.
    """
    gain = 1 - sample.stored_bytes / sample.raw_bytes if sample.raw_bytes else 0.0
    if gain < _LEAST_GAIN or store_bytes_per_s <= 0:
        return "raw"
    if sample.encode_s <= 0:
        return "zstd-1"
    codec_bytes_per_s = threads * sample.raw_bytes / sample.encode_s
    return "zstd-1" if store_bytes_per_s < codec_bytes_per_s else "raw"


class AutoChoices:
    """The choices of one writer by tensor, each kept for some saves.

    Args:
        keep_saves: Saves for which a choice holds before the tensor is sampled again.
    """

    def __init__(self, keep_saves: int = 16) -> None:
        self._keep_saves = keep_saves
        self._choices: dict[TensorPath, tuple[Choice, int]] = {}

    def due(self, path: TensorPath, save: int) -> bool:
        """Return whether the tensor must be sampled in this save."""
        found = self._choices.get(path)
        return found is None or save >= found[1]

    def keep(self, path: TensorPath, save: int, choice: Choice) -> None:
        """Hold to a choice made in this save."""
        self._choices[path] = (choice, save + self._keep_saves)

    def choice(self, path: TensorPath) -> Choice:
        """Return what was chosen last; raw for a tensor that was never sampled."""
        found = self._choices.get(path)
        return found[0] if found is not None else "raw"
