"""What the demo does, step by step, and the table at its end.

Invariant: every claim that is printed was compared in this run; `tell` returns False when one did not hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

import fwstore
from fwstore_demo.jobs import Event, Job, run_job

STEPS = 14
EVERY = 2
KILL_AT = 6
SECOND_STOP = 10
LOSS_RTOL = 1e-5
# A file that no job sees come: it stands until it is killed.
NEVER = "/nonexistent/go-on"


@dataclass
class Trace:
    """What one history of the run did.

    Attributes:
        losses: Loss of every step, as it was last computed.
        ids: Sample ids of every step.
        ranks: Number of ranks that computed every step.
        saves: Figures of every save that became durable.
    """

    losses: dict[int, float] = field(default_factory=dict)
    ids: dict[int, list[int]] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    saves: dict[int, Event] = field(default_factory=dict)

    def take(self, event: Event, ranks: int) -> None:
        """Note an event of a job."""
        if event["event"] == "step":
            step = int(event["step"])
            self.losses[step] = float.fromhex(event["loss"])
            self.ids[step] = list(event["ids"])
            self.ranks[step] = ranks
        elif event["event"] == "saved":
            self.saves[int(event["step"])] = {**event, "ranks": ranks, "freed": 0}
        elif event["event"] == "freed":
            self.saves[int(event["step"])]["freed"] = event["freed"]

    def follow(self, other: Trace) -> None:
        """Take over what another history did."""
        self.losses |= other.losses
        self.ids |= other.ids
        self.ranks |= other.ranks
        self.saves |= other.saves


@dataclass(frozen=True)
class Leg:
    """What one job of a run does.

    Attributes:
        run: Name of the run.
        ranks: Processes.
        steps: Train up to this step.
        stands: After which steps it stands still until which file is there.
    """

    run: str
    ranks: int
    steps: int = STEPS
    stands: Mapping[int, str] = field(default_factory=dict)


class Story:
    """Runs the jobs one after the other and keeps what they report."""

    def __init__(self, url: str, environment: dict[str, str], console: Console) -> None:
        self._url = url
        self._environment = environment
        self._console = console
        self.problems: list[str] = []

    def say(self, text: str) -> None:
        """Print a line of progress."""
        self._console.print(text, highlight=False)

    def check(self, holds: bool, claim: str) -> None:  # noqa: FBT001 - reads as a sentence
        """Print a claim and whether it holds."""
        self.say(f"  {'[green]ok[/]' if holds else '[red]FAILED[/]'}  {claim}")
        if not holds:
            self.problems.append(claim)

    def train(
        self, leg: Leg, trace: Trace, watch: Callable[[Event], object] = lambda _: None
    ) -> int:
        """Run one job and return the step at which it started.

        Args:
            leg: What it does.
            trace: Notes what the job does.
            watch: Told of every event of rank 0; the job may stand still meanwhile. True kills the job.
        """
        job = Job(
            store=self._url,
            run=leg.run,
            ranks=leg.ranks,
            steps=leg.steps,
            every=EVERY,
            stands=leg.stands,
            environment=self._environment,
        )
        first = [0]
        started = time.monotonic()
        with self._console.status(f"{leg.ranks} ranks of {leg.run}") as status:
            listen = self._listener(trace, leg, first, status.update)

            def on_event(event: Event) -> bool:
                listen(event)
                return watch(event) is True

            run_job(job, on_event)
        self.say(f"  {leg.ranks} ranks from step {first[0]}: {time.monotonic() - started:.0f} s")
        return first[0]

    def _listener(
        self, trace: Trace, leg: Leg, first: list[int], update: Callable[[str], None]
    ) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            trace.take(event, leg.ranks)
            if event["event"] == "start":
                first[0] = int(event["step"])
            if event["event"] == "step":
                step = int(event["step"])
                update(
                    f"step {step} of {STEPS} on {leg.ranks} ranks, loss {trace.losses[step]:.4f}"
                )

        return listen


def begins_to_save(step: int) -> Callable[[Event], bool]:
    """Return what ends a job when it begins to save a step."""
    return lambda event: event["event"] == "saving" and int(event["step"]) == step


def tell(url: str, environment: dict[str, str], console: Console) -> bool:
    """Run the whole demo against an empty store.

    Args:
        url: The store.
        environment: What the ranks need to reach it.
        console: Where to print.

    Returns:
        Whether every claim held.
    """
    story = Story(url, environment, console)
    reference, trace = Trace(), Trace()
    story.say("[bold]1. A run that is never disturbed, for comparison[/]")
    story.train(Leg("reference", 2), reference)
    story.say(f"[bold]2. The same run, killed with SIGKILL during the save of step {KILL_AT}[/]")
    story.train(Leg("gpt", 2, stands={KILL_AT: NEVER}), trace, begins_to_save(KILL_AT))
    repository = fwstore.open(url)
    run = repository.run("gpt")
    newest = run.latest().step
    story.say(f"  newest checkpoint that survived: step {newest}")
    story.say("[bold]3. Resumed on 3 ranks, then on 1[/]")
    for ranks, steps in ((3, SECOND_STOP), (1, STEPS)):
        start = story.train(Leg("gpt", ranks, steps), trace)
        story.check(
            start == newest + 1,
            f"{ranks} ranks went on at step {start}, after the newest checkpoint",
        )
        newest = run.latest().step
    story.say("[bold]4. Compared with the undisturbed run[/]")
    compare(story, reference, trace)
    freed = free(story, repository, run)
    console.print(table(trace, freed))
    repository.close()
    return not story.problems


def compare(story: Story, reference: Trace, trace: Trace) -> None:
    """Compare the disturbed run with the undisturbed one."""
    story.check(
        sorted(trace.losses) == sorted(reference.losses), f"the same {len(reference.losses)} steps"
    )
    story.check(trace.ids == reference.ids, "the same samples in the same order")
    same_world = [step for step, ranks in trace.ranks.items() if ranks == 2]
    equal = all(trace.losses[step] == reference.losses[step] for step in same_world)
    story.check(equal, f"loss bit-equal in the {len(same_world)} steps on 2 ranks")
    worst = max(
        abs(trace.losses[step] - loss) / abs(loss) for step, loss in reference.losses.items()
    )
    story.check(
        math.isfinite(worst) and worst <= LOSS_RTOL,
        f"loss equal to rtol {LOSS_RTOL:g} on every number of ranks (worst {worst:.1e})",
    )


def free(story: Story, repository: fwstore.Repository, run: fwstore.Run) -> int:
    """Free what retention gave up and show that the rest still loads."""
    story.say(
        "[bold]5. Free what the killed job left behind; retention frees the rest as it goes[/]"
    )
    report = repository.gc()
    story.say(f"  freed {fwstore.format_size(report.bytes_freed)}")
    kept = [checkpoint.step for checkpoint in run.checkpoints()]
    problems = repository.verify(run="gpt", level="data").problems
    story.check(not problems, f"every byte of the kept checkpoints {kept} verified")
    return report.bytes_freed


def table(trace: Trace, freed: int) -> Table:
    """Return the closing table."""
    result = Table(title="saves")
    for name in (
        "step",
        "ranks",
        "blocked ms",
        "durable ms",
        "logical",
        "written",
        "reused",
        "freed",
    ):
        result.add_column(name, justify="right")
    for step, save in sorted(trace.saves.items()):
        result.add_row(
            str(step),
            str(save["ranks"]),
            f"{1e3 * save['blocked_s']:.0f}",
            f"{1e3 * save['durable_s']:.0f}",
            *(
                fwstore.format_size(save[name])
                for name in ("logical", "written", "reused", "freed")
            ),
        )
    result.add_section()
    result.add_row("gc", *[""] * 6, fwstore.format_size(freed))
    return result
