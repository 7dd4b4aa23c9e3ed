"""Commands on branches: what jobs left beside the canonical history, and how it comes back."""

from __future__ import annotations

from typing import Annotated

import typer

from fwstore import BranchDescription, Checkpoint
from fwstore_cli.session import (
    RunArgument,
    Session,
    command,
    find_run,
    make_facts,
    make_table,
)
from fwstore_cli.words import checkpoint_row, show_metrics, show_time


def add_branch_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="Look at what was left beside the canonical history, and take it up.")
    command(group, "list")(list_branches)
    command(group, "promote")(promote)
    app.add_typer(group, name="branch")


def list_branches(session: Session, run: RunArgument) -> None:
    """List the branches of a run: checkpoints that a later job left behind."""
    with session.repository() as repository:
        found = find_run(repository, run).branches()
    table = make_table("branch", "steps", "newest", "saved", "metrics", right=("steps", "newest"))
    for branch in found:
        head = branch.checkpoints[0]
        steps = str(len(branch.checkpoints))
        saved = show_time(head.wall_time)
        table.add_row(branch.name, steps, str(head.step), saved, show_metrics(head))
    session.emit([_row(branch) for branch in found], table)


def promote(
    session: Session,
    run: RunArgument,
    branch: Annotated[
        str, typer.Argument(metavar="BRANCH", help="Its name, as `branch list` shows it.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make a branch the canonical history; what it replaces becomes a branch, and nothing is lost.

    A job that is writing to the run is stopped by it. The next job continues the branch.
    """
    with session.repository() as repository:
        found = find_run(repository, run)
        superseded = found.superseded_by(branch)
        session.confirm(f"continue run {run!r} from branch {branch}{_loses(superseded)}", yes=yes)
        head = found.promote(branch)
    value = {
        "promoted": branch,
        "run": run,
        "newest_step": head.step,
        "superseded": [checkpoint_row(checkpoint) for checkpoint in superseded],
    }
    facts = {"promoted": branch, "run": run, "newest step": head.step}
    session.emit(value, make_facts(facts | {"left behind": _steps(superseded)}))


def _row(branch: BranchDescription) -> dict[str, object]:
    rows = [checkpoint_row(checkpoint) for checkpoint in branch.checkpoints]
    return {"branch": branch.name, "term": branch.term, "checkpoints": rows}


def _loses(superseded: list[Checkpoint]) -> str:
    return f", and leave steps {_steps(superseded)} behind as a branch" if superseded else ""


def _steps(checkpoints: list[Checkpoint]) -> str:
    """Return steps on one line, oldest first."""
    steps = [str(checkpoint.step) for checkpoint in reversed(checkpoints)]
    return ", ".join(steps) if len(steps) <= 8 else f"{steps[0]} ... {steps[-1]} ({len(steps)})"
