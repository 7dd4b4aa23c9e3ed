"""A run that loses its site and goes on at another: what the demo of several sites does, step by step.

Invariant: every claim that is printed was compared in this run; `tell` returns False when one did not hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

import fwstore
from fwstore_demo.jobs import Event, JobFailed
from fwstore_demo.places import TRAINING_SITES, Sites
from fwstore_demo.story import EVERY, NEVER, Leg, Story, Trace, compare

HOME, OTHER = TRAINING_SITES
CUT_AFTER = 4
LOST_AT = 8
_PATIENCE_S = 60.0


@dataclass
class Loss:
    """What one loss of a site cost.

    Attributes:
        title: What happened.
        trained: Newest step trained at the site that was lost.
        again: Steps that were trained there and again at the other site.
        resumed: Step of the checkpoint that the other site went on from.
        unreplicated: Bytes that had been written and had not come over.
        seconds: Age of that checkpoint when the site was lost.
        phases: Seconds from the start of the job at the other site, by phase.
        crossed: Bytes that crossed the WAN, against those of the checkpoints that were brought by them.
    """

    title: str
    trained: int = 0
    again: int = 0
    resumed: int = 0
    unreplicated: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    crossed: float = 0.0


class SitesStory:
    """Runs the jobs of both sites and keeps what they report."""

    def __init__(self, places: Sites, console: Console) -> None:
        self._places = places
        # Bytes of every checkpoint that came to a site.
        self.crossed: list[int] = []
        self.at = {
            site: Story(
                places.topologies[site], {**places.environment, "FWSTORE_SITE": site}, console
            )
            for site in TRAINING_SITES
        }

    @property
    def problems(self) -> list[str]:
        """Claims that did not hold."""
        return [problem for story in self.at.values() for problem in story.problems]

    def open(self, site: str) -> fwstore.Repository:
        """Open the repository as a site sees it."""
        return fwstore.open(self._places.topologies[site], site=site)

    def steps_at(self, site: str, run: str) -> list[int]:
        """Return the steps of a run that are complete at a site."""
        with self.open(site) as repository:
            found = repository.run(run)
            return [c.step for c in found.checkpoints()] if found.exists() else []

    def lose(self, run: str, reference: Trace, *, kill: bool) -> Loss:
        """Train at home, lose the site, go on elsewhere, and let the link heal."""
        loss = Loss("killed" if kill else "cut off, and left running")
        trace = Trace()
        home, other = self.at[HOME], self.at[OTHER]
        times: dict[int, float] = {}

        due = {("saved", LOST_AT - EVERY), ("saving", LOST_AT)}
        cut = self._gate(f"{run}-cut")

        def watch(event: Event) -> bool:
            if event["event"] == "step":
                loss.trained = int(event["step"])
            if event["event"] == "saved":
                times[int(event["step"])] = time.monotonic()
                if int(event["step"]) == CUT_AFTER:
                    self._await(OTHER, run, CUT_AFTER)
                    self._places.cut(HOME)
                    home.say(f"  step {CUT_AFTER} has come to {OTHER}; the WAN is cut")
                    cut.touch()
            due.discard((event["event"], int(event.get("step", -1))))
            # Killed while a save is under way, and not before there is one that nobody else knows of.
            return kill and not due

        if kill:
            with self.worker(OTHER):
                home.train(Leg(run, 2, stands={CUT_AFTER: str(cut), LOST_AT: NEVER}), trace, watch)
            self._go_on(run, trace, times, loss)
            self._heal(run)
        else:
            self._zombie(run, trace, times, loss, cut, watch)
        other.say("  compared with the undisturbed run:")
        compare(other, reference, trace)
        logical = next(iter(trace.saves.values()))["logical"]
        loss.crossed = sum(self.crossed) / (logical * len(self.crossed))
        self.crossed.clear()
        return loss

    def _gate(self, name: str) -> Path:
        """Return a file that lets a job go on when it is there."""
        return Path(self._places.topologies[HOME]).with_name(name)

    def _zombie(
        self,
        run: str,
        trace: Trace,
        times: dict[int, float],
        loss: Loss,
        cut: Path,
        watch: Callable[[Event], object],
    ) -> None:
        home = self.at[HOME]
        gate = self._gate("go-on")
        zombie = Trace()

        def then(event: Event) -> None:
            watch(event)
            if event["event"] == "saved" and int(event["step"]) == LOST_AT:
                # The job stands still and believes that all is well.
                trace.follow(zombie)
                self._go_on(run, trace, times, loss)
                self._heal(run)
                gate.touch()

        fenced = False
        with self.worker(OTHER):
            try:
                stands = {CUT_AFTER: str(cut), LOST_AT + 1: str(gate)}
                home.train(Leg(run, 2, stands=stands), zombie, then)
            except JobFailed as error:
                fenced = "Fenced" in str(error)
        home.check(fenced, f"the job that was left running at {HOME} stops as Fenced")

    def _go_on(self, run: str, trace: Trace, times: dict[int, float], loss: Loss) -> None:
        other = self.at[OTHER]
        lost_at = time.monotonic()
        known = self.steps_at(OTHER, run)
        loss.resumed = known[-1]
        loss.again = loss.trained - loss.resumed
        loss.seconds = lost_at - times[loss.resumed]
        loss.unreplicated = sum(
            int(save["written"]) for step, save in trace.saves.items() if step > loss.resumed
        )
        other.say(
            f"  {OTHER} has steps {known}; of {HOME}, which does not answer, it lacks what was saved after step "
            f"{loss.resumed}"
        )
        began = time.monotonic()

        def watch(event: Event) -> None:
            if event["event"] == "start":
                loss.phases["elect"] = float(event["elect_s"])
                loss.phases["load"] = float(event["load_s"])
                loss.phases["start processes"] = (
                    time.monotonic() - began - loss.phases["elect"] - loss.phases["load"]
                )
            if event["event"] == "step" and "first step" not in loss.phases:
                loss.phases["first step"] = time.monotonic() - began - sum(loss.phases.values())

        start = other.train(Leg(run, 4), trace, watch)
        other.check(
            start == loss.resumed + 1, f"{OTHER} goes on at step {start} on 4 ranks, without {HOME}"
        )

    def _heal(self, run: str) -> None:
        """Mend the link, and wait until both sites tell the same."""
        self._places.heal(HOME)
        story = self.at[OTHER]
        story.say("  the link heals, and both sites fetch what they lack")
        for site in (HOME, OTHER, HOME):
            self.replicate(site)
        told = {site: self._history(site, run) for site in TRAINING_SITES}
        story.check(
            told[HOME] == told[OTHER], f"both sites tell the same history: {told[OTHER][0]}"
        )
        story.check(bool(told[OTHER][1]), f"what was left behind is listed as {told[OTHER][1]}")

    def _history(self, site: str, run: str) -> tuple[list[int], dict[str, list[int]]]:
        with self.open(site) as repository:
            found = repository.run(run)
            steps = [c.step for c in found.checkpoints(elsewhere=True)]
            tails = {b.name: [c.step for c in b.checkpoints] for b in found.branches()}
        return steps, tails

    def _await(self, site: str, run: str, step: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while step not in self.steps_at(site, run):
            if time.monotonic() > deadline:
                raise TimeoutError(f"step {step} of {run} has not come to {site}")
            time.sleep(0.2)

    def replicate(self, site: str) -> None:
        """Let a site fetch what it lacks, once."""
        with self.open(site) as repository:
            self.crossed += [copied.bytes_received for copied in repository.replicate().copied]

    @contextmanager
    def worker(self, site: str) -> Iterator[None]:
        """Keep a replication worker at a site."""
        command = [sys.executable, "-m", "fwstore_cli", "replicate", "worker", "--json"]
        command += ["--repo", self._places.topologies[site], "--site", site, "--every", "0.2s"]
        with tempfile.TemporaryFile("w+") as told:
            process = subprocess.Popen(
                command,
                env={**os.environ, **self._places.environment},
                stdout=told,
                stderr=subprocess.DEVNULL,
            )
            try:
                yield
            finally:
                process.kill()
                process.wait()
                told.seek(0)
                for event in map(json.loads, told.read().splitlines()):
                    if event["event"] == "copied":
                        self.crossed.append(int(event["bytes_received"]))


def tell(places: Sites, console: Console) -> bool:
    """Run the whole demo on empty sites; return whether every claim held."""
    story = SitesStory(places, console)
    home = story.at[HOME]
    reference = Trace()
    home.say("[bold]1. A run that is never disturbed, for comparison[/]")
    home.train(Leg("reference", 2), reference)
    home.say(f"[bold]2. {HOME} trains, the WAN is cut after step {CUT_AFTER}, {HOME} is killed[/]")
    losses = [story.lose("killed", reference, kill=True)]
    home.say(f"[bold]3. The same, but {HOME} goes on training behind the cut[/]")
    losses.append(story.lose("zombie", reference, kill=False))
    console.print(table(losses))
    return not story.problems


def table(losses: list[Loss]) -> Table:
    """Return the closing table."""
    result = Table(title="what the loss of a site cost")
    result.add_column("")
    for loss in losses:
        result.add_column(loss.title, justify="right")
    rows: dict[str, Callable[[Loss], str]] = {
        "steps trained again": lambda loss: str(loss.again),
        "bytes not replicated": lambda loss: fwstore.format_size(loss.unreplicated),
        "age of the checkpoint": lambda loss: f"{loss.seconds:.1f} s",
        "WAN bytes per byte of checkpoints": lambda loss: f"{loss.crossed:.2f}",
    }
    for name, show in rows.items():
        result.add_row(name, *(show(loss) for loss in losses))
    for phase in ("start processes", "elect", "load", "first step"):
        result.add_row(
            f"until training: {phase}", *(f"{loss.phases[phase]:.2f} s" for loss in losses)
        )
    return result
