"""The choices of a `Saver`, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from fwstore import Checkpoint, Coordinator, InvalidInput, Keep, parse_duration
from fwstore_torch.signals import STOP_SIGNALS


class SaverOptions(TypedDict, total=False):
    """Keyword arguments of `Saver`; see there."""

    every: int | str | None
    keep: Keep | None
    grace: str | float
    trainable_only: bool
    rng: bool
    on_busy: Literal["wait", "skip"]
    staging: Literal["eager", "lazy"]
    max_failures: int
    max_unsaved: str | float
    signals: Sequence[int]
    bases: Sequence[Checkpoint]
    codec: Literal["raw", "zstd", "auto"]
    coordinator: Coordinator | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the options mean.

    Attributes:
        every_steps: Steps between saves, or 0.
        every_s: Seconds between saves, or 0.
        grace_s: Time between the notice of a stop and the moment to be gone.
        max_unsaved_s: Time without a durable checkpoint that failing saves may cost.
        options: The options that need no translation, defaults filled in.
    """

    every_steps: int
    every_s: float
    grace_s: float
    max_unsaved_s: float
    options: SaverOptions

    def is_due(self, step: int) -> bool:
        """Return whether the step alone makes a save due."""
        return bool(self.every_steps) and step > 0 and step % self.every_steps == 0


def make_settings(given: SaverOptions) -> Settings:
    """Return checked settings.

    Raises:
        InvalidInput: An option is unknown or senseless.
    """
    options: SaverOptions = {
        "every": None,
        "keep": None,
        "grace": "90s",
        "trainable_only": False,
        "rng": True,
        "on_busy": "wait",
        "staging": "eager",
        "max_failures": 3,
        "max_unsaved": "2h",
        "signals": STOP_SIGNALS,
        "bases": (),
        "codec": "raw",
        "coordinator": None,
    }
    if unknown := sorted(given.keys() - options.keys()):
        raise InvalidInput(f"Saver has no options {unknown}; it has {sorted(options)}")
    options.update(given)
    every = options["every"]
    if type(every) is bool or (isinstance(every, int | float) and (every < 1 or every % 1)):
        raise InvalidInput(
            f"every={every!r} must be a number of steps from 1, or a duration such as '10m'"
        )
    if options["max_failures"] < 1:
        raise InvalidInput("max_failures must be at least 1: the failure at which to raise")
    if options["staging"] not in ("eager", "lazy"):
        raise InvalidInput(f"staging is 'eager' or 'lazy', not {options['staging']!r}")
    return Settings(
        every_steps=every if isinstance(every, int) else 0,
        every_s=parse_duration(every) if isinstance(every, str) else 0.0,
        grace_s=parse_duration(options["grace"]),
        max_unsaved_s=parse_duration(options["max_unsaved"]),
        options=options,
    )
