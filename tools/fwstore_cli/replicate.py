"""Commands that bring here what other sites have: replicate once, run, plan, explain, worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fwstore import (
    LineagePlan,
    ReplicationReport,
    RoundPlan,
    format_duration,
    format_size,
    parse_duration,
)
from fwstore_cli.change import StepReference
from fwstore_cli.exits import ExitCode
from fwstore_cli.session import Session, command, make_table, need_step
from fwstore_cli.sites import RunsOption
from fwstore_cli.words import site_names
from fwstore_cli.worker import Worker, WorkerOptions

EveryOption = Annotated[
    str, typer.Option("--every", metavar="TIME", help="Pause after a round, such as 10s.")
]


def add_replicate_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="Bring to this site what other sites of the topology have.")
    command(group, "once")(once)
    command(group, "run")(run_until_complete)
    command(group, "plan")(plan)
    command(group, "explain")(explain)
    command(group, "worker")(worker)
    app.add_typer(group, name="replicate")


def once(session: Session, run: RunsOption = None) -> None:
    """Bring what this site wants and other sites have, until nothing is left that can be brought now.

    Exit code 6 means that something did not come; the report says what, and why.
    """
    with session.repository() as repository:
        report = repository.replicate(runs=run)
    _show_report(session, report)
    if report.left or report.troubles:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def run_until_complete(
    session: Session,
    run: RunsOption = None,
    every: EveryOption = "10s",
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="Give up after so long; default: never."),
    ] = None,
) -> None:
    """Go on until everything that is wanted has come, trying again what did not.

    Exit code 6 means that the deadline came first.
    """
    pause_s = parse_duration(every)
    left_s = None if deadline is None else parse_duration(deadline)
    with session.repository() as repository:
        clock = repository.runtime.clock
        end_s = None if left_s is None else clock.monotonic() + left_s
        while True:
            report = repository.replicate(runs=run)
            complete = not report.left and not report.troubles
            if complete or (end_s is not None and clock.monotonic() + pause_s > end_s):
                break
            _tell_troubles(session, report)
            clock.sleep(pause_s)
    _show_report(session, report)
    if not complete:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def plan(session: Session, run: RunsOption = None) -> None:
    """Show what would be brought, in which order and from where, and what would not, with why.

    Exit code 6 means that not everything could be looked at: there may be more to bring.
    """
    with session.repository() as repository:
        found = repository.replication.plan(run)
        names = site_names(repository)
    table = make_table("run", "step", "", "why", "from", "written", right=("step", "written"))
    rows = [_plan_row(one, names) for one in found.runs]
    for row in rows:
        for copy in row["copy"]:
            sites, written = ", ".join(copy["from"]), format_size(copy["bytes_written"])
            table.add_row(row["run"], str(copy["step"]), "copy", copy["reason"], sites, written)
        for left in row["leave"]:
            table.add_row(row["run"], str(left["step"]), "leave", left["reason"], "", "")
    session.emit(rows, table)
    _tell_troubles(session, found)
    if found.troubles:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def explain(
    session: Session,
    reference: StepReference,
) -> None:
    """Show at which sites a step is, and why it is not at the others."""
    name, step = need_step(reference)
    with session.repository() as repository:
        found = repository.replication.explain(name, step)
    table = make_table("site", "there", "why", "id")
    for place in found:
        table.add_row(place.site, "yes" if place.here else "no", place.verdict, place.snapshot)
    session.emit(found, table)


def worker(
    session: Session,
    run: RunsOption = None,
    every: EveryOption = "10s",
    metrics: Annotated[
        Path | None,
        typer.Option("--metrics", metavar="PATH", help="Write Prometheus metrics to this file."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Tell Prometheus metrics at /metrics there."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="End after so many rounds; 0: never.")
    ] = 0,
) -> None:
    """Bring what this site wants, round after round; any number of workers may do so beside each other.

    A worker keeps nothing: it may be killed at any time, and another one goes on. With --json every
    event is one line of JSON on standard output. The metrics file suits the textfile collector of
    the Prometheus node exporter; with --listen Prometheus asks the worker itself.
    """
    options = WorkerOptions(run, parse_duration(every), metrics, listen, rounds)
    with session.repository() as repository:
        Worker(session, repository, options).work()


def report_value(report: ReplicationReport) -> dict[str, Any]:
    """Return a report for JSON."""
    return {
        "copied": report.copied,
        "left": [
            {"run": run, "step": left.step, "snapshot": left.snapshot} for run, left in report.left
        ],
        "passed_over": [
            {"run": run, "step": one.step, "snapshot": one.snapshot, "reason": one.reason}
            for run, one in report.passed_over
        ],
        "troubles": [
            {
                "run": trouble.run,
                "site": trouble.site,
                "snapshot": trouble.snapshot,
                "code": trouble.error.code,
                "message": trouble.error.message,
            }
            for trouble in report.troubles
        ],
        "withdrawn": report.withdrawn,
        "fenced": report.fenced,
    }


def _show_report(session: Session, report: ReplicationReport) -> None:
    columns = ("step", "packs", "received", "time")
    table = make_table("run", "step", "from", "packs", "received", "time", right=columns)
    for copied in report.copied:
        table.add_row(
            copied.run,
            str(copied.step),
            copied.source,
            str(copied.packs),
            format_size(copied.bytes_received),
            format_duration(copied.seconds),
        )
    session.emit(report_value(report), table)
    _tell_troubles(session, report)
    left = f", {len(report.left)} did not come" if report.left else ""
    session.say(f"{len(report.copied)} checkpoints brought{left}")


def _tell_troubles(session: Session, report: ReplicationReport | RoundPlan) -> None:
    for trouble in report.troubles:
        where = " ".join(word for word in (trouble.site, trouble.run, trouble.snapshot) if word)
        session.say(f"{where}: {trouble.error.message}")


def _plan_row(plan: LineagePlan, names: dict[str | None, str]) -> dict[str, Any]:
    return {
        "run": plan.run,
        "copy": [
            {
                "step": transfer.step,
                "snapshot": transfer.snapshot,
                "reason": transfer.reason,
                "from": [names.get(uuid, uuid) for uuid, _ in transfer.offers],
                "bytes_written": transfer.entry.bytes_written,
                "bytes_logical": transfer.entry.bytes_logical,
            }
            for transfer in plan.plan.transfers
        ],
        "leave": [
            {"step": one.step, "snapshot": one.snapshot, "reason": one.reason}
            for one in plan.plan.passed_over
        ],
    }
