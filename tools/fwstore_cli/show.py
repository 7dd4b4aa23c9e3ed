"""Commands that show what a repository holds: ls, show, log, du."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from fwstore import Run, format_size
from fwstore_cli.graph import show_graph
from fwstore_cli.session import (
    LimitOption,
    Reference,
    RunArgument,
    Session,
    command,
    find_checkpoint,
    find_run,
    make_facts,
    make_table,
)
from fwstore_cli.words import checkpoint_row, show_metrics, show_time, site_names


def add_show_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "ls")(ls)
    command(app, "show")(show)
    command(app, "log")(log)
    command(app, "du")(du)


def ls(
    session: Session,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="List the checkpoints of this run.")
    ] = None,
) -> None:
    """List runs, or the checkpoints of one run."""
    with session.repository() as repository:
        if run is None:
            _list_runs(session, [repository.run(name) for name in repository.runs()])
        else:
            _list_checkpoints(session, find_run(repository, run))


def _list_runs(session: Session, runs: list[Run]) -> None:
    rows = []
    table = make_table("run", "steps", "newest", "saved", right=("steps", "newest"))
    for run in runs:
        checkpoints = run.checkpoints()
        newest = checkpoints[-1] if checkpoints else None
        rows.append(
            {
                "run": run.name,
                "checkpoints": len(checkpoints),
                "newest_step": newest and newest.step,
                "saved": newest and newest.wall_time,
            }
        )
        table.add_row(
            run.name,
            str(len(checkpoints)),
            str(newest.step) if newest else "-",
            show_time(newest.wall_time) if newest else "-",
        )
    session.emit(rows, table)


def _list_checkpoints(session: Session, run: Run) -> None:
    pinned = Counter(pin.step for pin in run.pins())
    table = make_table("step", "saved", "term", "pins", "metrics", right=("step", "term", "pins"))
    rows = []
    for found in run.checkpoints():
        rows.append(checkpoint_row(found) | {"pins": pinned[found.step]})
        table.add_row(
            str(found.step),
            show_time(found.wall_time),
            str(found.term),
            str(pinned[found.step] or ""),
            show_metrics(found),
        )
    session.emit(rows, table)


def show(session: Session, reference: Reference) -> None:
    """Show one checkpoint: where it came from, what it holds, what it cost."""
    with session.repository() as repository:
        found = find_checkpoint(repository, reference)
        about = found.describe()
        plain_keys = found.state()
    facts = {
        "run": about.run,
        "step": about.step,
        "id": about.id,
        "parent": about.parent or "none",
        "term": about.term,
        "saved": show_time(about.wall_time),
        "metrics": show_metrics(found) or "none",
        "tensors": f"{about.tensors} with {format_size(about.bytes_logical)}",
        "written": format_size(about.bytes_written),
        "reused": format_size(about.bytes_reused),
        "chunks": f"{about.chunks} ({about.fragments} of them fragments) in {about.packs} packs",
        "software": ", ".join(f"{name} {version}" for name, version in about.software.items()),
        "state": show_keys(plain_keys),
    }
    session.emit(about, make_facts(facts))


def show_keys(state: object) -> str:
    """Return the top of a nested state on one line."""
    if not isinstance(state, dict):
        return type(state).__name__
    shown = [f"{k}: {type(v).__name__}" for k, v in list(state.items())[:12]]
    return ", ".join(shown) + (" ..." if len(state) > len(shown) else "")


def log(
    session: Session,
    run: RunArgument,
    limit: LimitOption = 50,
    graph: Annotated[
        bool, typer.Option("--graph", help="Draw terms, checkpoints and branches, newest first.")
    ] = False,
) -> None:
    """Show the records of a run's log, newest last; those that do not count are marked.

    With --graph, show what came of them: who extended the run from which step, the canonical history
    (*), and what was left beside it (o).
    """
    with session.repository() as repository:
        found = find_run(repository, run)
        if graph:
            show_graph(session, found, site_names(repository), limit)
            return
        entries = list(found.log())[-limit:]
    table = make_table("slot", "time", "term", "kind", "", "what", right=("slot", "term"))
    for entry in entries:
        table.add_row(
            str(entry.sequence),
            show_time(entry.wall_time),
            str(entry.term),
            entry.kind,
            "" if entry.counts else "void",
            entry.note,
        )
    session.emit(entries, table)


def du(session: Session, run: RunArgument) -> None:
    """Show what each checkpoint of a run costs: bytes it alone keeps, and bytes it shares."""
    with session.repository() as repository:
        checkpoints = find_run(repository, run).checkpoints()
        packs = {
            found.step: {pack.key: pack.size_bytes for pack in found.packs()}
            for found in checkpoints
        }
    users = Counter(key for keys in packs.values() for key in keys)
    rows = [_cost(step, keys, users) for step, keys in packs.items()]
    total = sum({key: size for keys in packs.values() for key, size in keys.items()}.values())
    table = make_table(
        "step", "packs", "refers to", "only here", right=("step", "packs", "refers to", "only here")
    )
    for row in rows:
        sizes = (format_size(row["bytes_referred"]), format_size(row["bytes_only_here"]))
        table.add_row(str(row["step"]), str(row["packs"]), *sizes)
    table.add_section()
    table.add_row("all", str(len(users)), format_size(total), "")
    session.emit({"run": run, "bytes_stored": total, "checkpoints": rows}, table)


def _cost(step: int, keys: dict[str, int], users: Counter[str]) -> dict[str, int]:
    return {
        "step": step,
        "packs": len(keys),
        "bytes_referred": sum(keys.values()),
        "bytes_only_here": sum(size for key, size in keys.items() if users[key] == 1),
    }
