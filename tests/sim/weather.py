"""Faults, drawn from a seed.

Every fault has a name that says where it strikes - the process, the number of its operation and the kind - and not when,
so that a play can be repeated with some of its faults and without the others.

Invariant: what befalls an operation depends on the seed, the process and the number of the operation alone; leaving one
fault out changes no draw for the others.
"""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass, field

from support.faults import WRITES, Fault

READS = frozenset({"get", "get_range", "read_into", "list", "head"})
_UPLOAD = frozenset({"begin", "write"})

# How often an operation of a kind is struck, in plays in which the kind occurs at all.
RATES: dict[Fault, float] = {
    "fail": 0.05,
    "lose": 0.08,
    "late": 0.08,
    "conflict": 0.05,
    "crash": 0.008,
    "crash_during": 0.008,
    "crash_after": 0.005,
    "flip": 0.03,
    "truncate": 0.02,
    "stale": 0.08,
}
PAUSE = 0.01
# Stores repeat reads by themselves, so a read rarely fails.
_READ_SHARE = 0.15
_MEDIAN_LATENCY_S = 0.05
_LATE_S = (1.0, 5.0, 30.0, 120.0)
_PAUSE_S = (10.0, 60.0, 300.0)
_STALE_S = 5.0

_STRIKES: dict[Fault, frozenset[str]] = {
    "fail": WRITES | READS | _UPLOAD,
    "lose": WRITES,
    "late": WRITES,
    "conflict": frozenset({"create"}),
    "crash": WRITES | READS | _UPLOAD,
    "crash_during": WRITES,
    "crash_after": WRITES,
    "flip": frozenset({"get", "get_range", "read_into"}),
    "truncate": frozenset({"get", "get_range", "read_into"}),
    "stale": frozenset({"get", "list", "head"}),
}


class _All:
    def __contains__(self, name: object) -> bool:
        return True


@dataclass(frozen=True)
class Stroke:
    """What befalls one operation.

    Attributes:
        latency_s: Until the request is there.
        fault: What happens to it.
        pause_s: The process stands still for so long after it.
        delay_s: When the fault is "late": until it lands.
        age_s: When the fault is "stale": how old the answer is.
    """

    latency_s: float
    fault: Fault | None = None
    pause_s: float = 0.0
    delay_s: float = 0.0
    age_s: float = 0.0


@dataclass
class Weather:
    """The faults of one play.

    Args:
        seed: Of the play.
        only: Names of the faults that may strike; others are left out.

    Attributes:
        struck: Names of those that did.
        calm: Nothing strikes any more.
        median_latency_s: Of a request.
    """

    seed: int
    only: Container[str] = field(default_factory=_All)
    struck: list[str] = field(default_factory=list)
    calm: bool = False
    median_latency_s: float = _MEDIAN_LATENCY_S

    def __post_init__(self) -> None:
        # Swarm testing: each kind is absent from some of the plays, or the rare ones are never alone.
        rng = random.Random(f"kinds {self.seed}")
        scale = rng.choice((0.3, 1.0, 1.0, 2.0))
        self.rates = {k: scale * rate for k, rate in RATES.items() if rng.random() < 0.6}
        self.pause = PAUSE * scale if rng.random() < 0.5 else 0.0
        self.chances = {
            name: [
                (fault, rate * (_READ_SHARE if name in READS else 1.0))
                for fault, rate in self.rates.items()
                if name in _STRIKES[fault]
            ]
            for name in WRITES | READS | _UPLOAD
        }

    def sky(self, process: str) -> Sky:
        """Return what comes over one process."""
        return Sky(self, process, random.Random(f"{self.seed} {process}"))

    def strikes(self, name: str) -> bool:
        """Say whether a fault that was drawn strikes, and note it if so."""
        if self.calm or name not in self.only:
            return False
        self.struck.append(name)
        return True


@dataclass
class Sky:
    """The faults of one process."""

    weather: Weather
    process: str
    rng: random.Random
    number: int = 0

    def next(self, name: str) -> Stroke:
        """Draw what befalls the next operation."""
        self.number += 1
        # Always as many draws, so that one fault more or less moves no other.
        draw = self.rng.random
        latency, drawn, late, pause, long = draw(), draw(), draw(), draw(), draw()
        latency_s = self.weather.median_latency_s * latency / (1.001 - latency)
        if self.weather.calm:
            return Stroke(latency_s)
        fault = self._fault(name, drawn)
        if fault is not None and not self.weather.strikes(f"{self.process}.{self.number}.{fault}"):
            fault = None
        pause_s = 0.0
        if pause < self.weather.pause and self.weather.strikes(
            f"{self.process}.{self.number}.pause"
        ):
            pause_s = _PAUSE_S[int(long * len(_PAUSE_S))]
        delay_s = _LATE_S[int(late * len(_LATE_S))] * (0.5 + long)
        return Stroke(latency_s, fault, pause_s, delay_s, long * _STALE_S)

    def _fault(self, name: str, drawn: float) -> Fault | None:
        for fault, rate in self.weather.chances[name]:
            drawn -= rate
            if drawn < 0:
                return fault
        return None
