"""What does saving cost a training loop whose copies overlap its passes? ``python -m benchmarks.lazy``."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import fwstore
from benchmarks.common.backing import back_memory
from benchmarks.common.question import Figure, Mark, Question
from benchmarks.common.series import run
from benchmarks.common.trial import Figures, Trial
from benchmarks.peers.floors import Bytes, views
from fwstore_torch import Saver

LAZY, EAGER = "fwstore lazy, 1 thread", "fwstore eager, 1 thread"
ALONE, BARE = "without saving", "bare thread"

WIDTH = 1024
BYTES_PER_LAYER = 12 * WIDTH * WIDTH * 12
TOKENS = 128
EVERY = 6
SAVES = 4

QUESTION = Question(
    name="lazy",
    title="What does saving cost a training loop whose copies overlap its passes?",
    subjects=(ALONE, BARE, LAZY, "fwstore lazy", EAGER),
    floors=(ALONE, BARE),
    figures=(
        Figure("staged", "step in which a save is staged", "x step alone"),
        Figure("durable", "steps until it is durable", "x step alone"),
        Figure("lost_ms", "lost per save", "ms"),
        Figure("call_ms", "call of the save", "ms"),
        Figure("wait_ms", "wait before the optimizer's step", "ms"),
        Figure("step_ms", "step alone", "ms"),
    ),
    marks=(
        Mark(LAZY, "staged", 1.03),
        Mark(LAZY, "durable", 1.03),
        Mark(LAZY, "lost_ms", 1.15, (BARE,)),
    ),
    gigabytes=1.0,
    note=(
        "A transformer on one thread of torch: forward, backward, AdamW. Every sixth step is saved by a Saver; a step "
        "begins with the call of the save and ends with the optimizer's, so that every wait is in it. Steps without a save "
        "under way are the yardstick, in the same process. On two cores one is free for the single thread of fwstore; with "
        "its default of two threads none is. The bare thread copies the same bytes into memory that it keeps and writes "
        "them to a file with fsync: what is lost with it no lazy save can win back."
    ),
)


class Block(nn.Module):
    """A layer of a transformer without attention's mask or dropout: 12 WIDTH^2 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.first(inputs)).chunk(3, -1)
        inputs = inputs + self.out(nn.functional.scaled_dot_product_attention(query, key, value))
        found: torch.Tensor = inputs + self.down(nn.functional.gelu(self.up(self.second(inputs))))
        return found


class Loop:
    """A model, its optimizer, and one step of training."""

    def __init__(self, size_bytes: int) -> None:
        torch.manual_seed(0)
        layers = max(1, size_bytes // BYTES_PER_LAYER)
        self.model = nn.Sequential(*(Block() for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self._inputs = torch.randn(1, TOKENS, WIDTH)
        self.train()

    def train(self) -> None:
        """Do a step."""
        self.model(self._inputs).square().mean().backward()
        self.optimizer.step()
        # Gradients that are freed at every step would come back as cold pages, which the save's files compete for.
        self.optimizer.zero_grad(set_to_none=False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all that a save of the loop copies."""
        found = {name: p.detach() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                found[f"{name}.{key}"] = value
        return found


@dataclass(eq=False)
class Ticket:
    """A save under way.

    Attributes:
        done: Whether it is durable.
        waited: Seconds that it has cost its caller.
    """

    done: Callable[[], bool]
    waited: Callable[[], float]


Begin = Callable[[int], Ticket | None]


@contextmanager
def nobody(_: Trial, loop: Loop) -> Iterator[Begin]:
    """Save nothing."""
    yield lambda _: None


@contextmanager
def saver(
    trial: Trial, loop: Loop, *, threads: int, staging: Literal["eager", "lazy"]
) -> Iterator[Begin]:
    """Save by a Saver."""
    parts = {"model": loop.model, "optimizer": loop.optimizer}
    limits = fwstore.Limits(threads=threads)
    with (
        fwstore.open(trial.folder / "store", limits=limits) as repository,
        Saver(repository.run("bench"), parts, every=EVERY, staging=staging) as saves,
    ):
        saves.resume()

        def begin(step: int) -> Ticket | None:
            handle = saves.step(step)
            if handle is None:
                return None
            return Ticket(handle.done, lambda: handle.statistics().blocked_s)

        yield begin


class Bare:
    """A thread that copies tensors, lets the optimizer go on, and writes the copies to a file."""

    def __init__(self, folder: Path, loop: Loop) -> None:
        self._path = folder / "bare"
        self._sources = views(loop.tensors())
        self._kept = [np.zeros_like(view) for view in self._sources]
        self._staged, self._durable = threading.Event(), threading.Event()
        self._waited = 0.0
        self._staged.set()
        loop.optimizer.register_step_pre_hook(self._wait)

    def begin(self, step: int) -> Ticket | None:
        """Save every so many steps."""
        if not step or step % EVERY:
            return None
        self._staged, self._durable, self._waited = threading.Event(), threading.Event(), 0.0
        threading.Thread(target=self._save, args=(self._staged, self._durable)).start()
        return Ticket(self._durable.is_set, lambda: self._waited)

    def _save(self, staged: threading.Event, durable: threading.Event) -> None:
        for target, source in zip(self._kept, self._sources, strict=True):
            np.copyto(target, source)
        staged.set()
        _write(self._path, self._kept)
        durable.set()

    def _wait(self, *_: Any) -> None:
        started = time.perf_counter()
        self._staged.wait()
        self._waited += time.perf_counter() - started


def _write(path: Path, buffers: Iterable[Bytes]) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        for buffer in buffers:
            file.write(buffer.data)
        os.fsync(file.fileno())


@contextmanager
def bare(trial: Trial, loop: Loop) -> Iterator[Begin]:
    """Save by the bare thread."""
    yield Bare(trial.folder, loop).begin


SAVERS: dict[str, Callable[[Trial, Loop], Any]] = {
    ALONE: nobody,
    BARE: bare,
    LAZY: partial(saver, threads=1, staging="lazy"),
    "fwstore lazy": partial(saver, threads=0, staging="lazy"),
    EAGER: partial(saver, threads=1, staging="eager"),
}


@dataclass
class Steps:
    """The seconds of steps by what went on in them; pure.

    Attributes:
        alone: No save was under way, and the first one has been.
        staged: By save, the step that began it.
        later: By save, the steps until it was durable.
        calls: Seconds until the save returned.
        waits: Seconds for which the optimizer had to wait.
    """

    alone: list[float] = field(default_factory=list)
    staged: list[float] = field(default_factory=list)
    later: list[list[float]] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def begin(self, seconds: float, called: float, waited: float) -> None:
        """Add the step that began a save."""
        self.staged.append(seconds)
        self.later.append([])
        self.calls.append(called)
        self.waits.append(waited)

    def figures(self) -> Figures:
        """Return the figures; the first save only made everything ready and does not count."""
        alone = statistics.median(self.alone)
        later = [seconds for of_save in self.later[1:] for seconds in of_save]
        pairs = zip(self.staged[1:], self.later[1:], strict=True)
        lost = [sum(seconds - alone for seconds in (first, *rest)) for first, rest in pairs]
        return {
            "staged": statistics.median(self.staged[1:]) / alone,
            "durable": statistics.median(later or [alone]) / alone,
            "lost_ms": 1e3 * statistics.median(lost),
            "call_ms": 1e3 * statistics.median(self.calls[1:]),
            "wait_ms": 1e3 * statistics.median(self.waits[1:]),
            "step_ms": 1e3 * alone,
        }


def measure(trial: Trial) -> Figures:
    """Train, and save every so many steps."""
    torch.set_num_threads(1)
    loop, steps = Loop(trial.size_bytes), Steps()
    with SAVERS[trial.subject](trial, loop) as begin:
        ticket: Ticket | None = None
        for number in range(1, EVERY * (SAVES + 1)):
            if number % EVERY == EVERY - 1:
                # The step after such a pause finds cold caches: it is no yardstick for the others.
                back_memory(trial.socket)
            under_way = ticket is not None and not ticket.done()
            started = time.perf_counter()
            begun = begin(number)
            called = time.perf_counter() - started
            loop.train()
            seconds = time.perf_counter() - started
            if number % EVERY == 0:
                ticket = begun
                waited = max(0.0, ticket.waited() - called) if ticket else 0.0
                steps.begin(seconds, called, waited)
            elif under_way:
                steps.later[-1].append(seconds)
            elif steps.staged and number % EVERY < EVERY - 1:
                steps.alone.append(seconds)
    return steps.figures()


if __name__ == "__main__":
    run(QUESTION)
