"""Commands that look after a repository: verify, doctor, gc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from fwstore import VerifyReport, format_size
from fwstore_cli.exits import ExitCode
from fwstore_cli.layers import first
from fwstore_cli.session import (
    LimitOption,
    Session,
    command,
    find_checkpoint,
    find_run,
    make_table,
    parse_reference,
)

RunOption = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="Only this run; default: all.")
]


def add_care_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "verify")(verify)
    command(app, "doctor")(doctor)
    command(app, "gc")(gc)


def verify(
    session: Session,
    reference: Annotated[
        str | None,
        typer.Argument(metavar="RUN[@STEP]", help="Only this run or step; default: everything."),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option("--sample", min=0, max=100, metavar="PERCENT", help="Read so many chunks."),
    ] = None,
    everything: Annotated[bool, typer.Option("--data", help="Read every byte.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Heal what is bad here from other sites.")
    ] = False,
) -> None:
    """Check that what was written can be read.

    Without options the log, all manifests and the heads of all packs are checked. Exit code 5 means
    that something is corrupt; the report names run, step, tensor and object.

    With --repair, packs and manifests that are damaged or missing at this site are brought from other sites of
    the topology and proven here; exit code 5 then means that something is left. Bad bytes are kept in quarantine
    until `fwstore gc --quarantine`.
    """
    level: Literal["quick", "sample", "data"] = "quick"
    if everything or sample is not None:
        level = "data" if everything else "sample"
    run, step = parse_reference(reference) if reference is not None else (None, None)
    with session.repository() as repository, session.progress("verifying") as bar:
        if reference is not None and step is not None:
            find_checkpoint(repository, reference)
        elif run is not None:
            find_run(repository, run)
        report = repository.verify(
            run=run,
            step=step,
            level=level,
            sample=(sample if sample is not None else 1.0) / 100,
            repair=repair,
            progress=bar.update,
        )
        elsewhere = sum(site.keeps for site in repository.topology.sites.values()) > 1
    _show(session, report, repair=repair)
    if report.left:
        if elsewhere and not repair:
            session.say("other sites may have good bytes: `fwstore verify --repair` brings them")
        raise typer.Exit(ExitCode.CORRUPT)


def _show(session: Session, report: VerifyReport, *, repair: bool) -> None:
    """Show what a verification found and healed."""
    table = make_table("run", "step", "tensor", "problem", "object", right=("step",))
    for problem in report.problems:
        step_text = "" if problem.step is None else str(problem.step)
        table.add_row(problem.run, step_text, problem.tensor or "", problem.message, problem.key)
    repairs = make_table("healed", "from", "why not", "bad bytes", "object")
    for one in report.repairs:
        healed, sites = "yes" if one.healed else "no", ", ".join(one.sites)
        repairs.add_row(healed, sites, one.reason, one.quarantined or "", one.key)
    session.emit(
        report, *([table] if report.problems else []), *([repairs] if report.repairs else [])
    )
    session.say(
        f"{report.checkpoints} checkpoints, {report.objects} objects, {report.chunks} chunks, "
        f"{format_size(report.bytes_read)} read: {len(report.problems)} problems"
        + (f", {len(report.left)} of them left" if repair else "")
    )
    if report.quarantined:
        kept = format_size(sum(one.size for one in report.quarantined))
        session.say(
            f"{len(report.quarantined)} objects of bad bytes ({kept}) are in quarantine; "
            "`fwstore gc --quarantine` removes them"
        )


def doctor(
    session: Session,
    racers: Annotated[
        int, typer.Option("--racers", min=2, max=256, help="Writers that race for one key.")
    ] = 32,
) -> None:
    """Probe whether a store keeps its promises, and refuse one that does not (exit code 9).

    Writes and removes a few small objects. A race for one key must have exactly one winner; a read
    must see the last write; ranges, metadata, versioning, lifecycle rules and the clock are checked.
    """
    with session.repository() as repository:
        report = repository.doctor(racers=racers)
    table = make_table("check", "", "what was seen", "what to do")
    for check in report.checks:
        verdict = "ok" if check.passed else ("FAILED" if check.required else "warning")
        advice = "" if check.passed else check.advice
        table.add_row(check.name, verdict, check.detail, advice)
    session.emit({"passed": report.passed, "checks": report.checks}, table)
    if not report.passed:
        session.say("this store must not be used: a promise that fwstore rests on does not hold")
        raise typer.Exit(ExitCode.UNSUPPORTED)


def gc(
    session: Session,
    run: RunOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only explain what would be freed, and what not.")
    ] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Also the bad bytes that repairs have kept.")
    ] = False,
    limit: LimitOption = 100,
) -> None:
    """Free what retention gave up and what failed saves left behind.

    Safe while jobs write and read. Nothing is freed that a checkpoint, a pin or an open job needs.
    """
    with session.repository() as repository, session.progress("collecting") as bar:
        if run is not None:
            find_run(repository, run)
        report = repository.gc(run=run, dry_run=dry_run, quarantine=quarantine, progress=bar.update)
    session.emit(report, _gc_table(report.actions, limit))
    verb = "would be freed" if dry_run else "freed"
    session.say(f"{format_size(report.bytes_freed)} {verb}, {format_size(report.bytes_kept)} kept")


def _gc_table(actions: Sequence[Any], limit: int) -> Table:
    table = make_table("run", "action", "size", "reason", "object", right=("size",))
    for action in first(list(actions), limit):
        size = format_size(action.size_bytes) if action.size_bytes else ""
        table.add_row(action.run, action.action, size, action.reason, action.key)
    return table
