"""Commands on several sites: status, resume-plan, site retire."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from fwstore import Lag, RepositoryStatus, format_duration, format_rate, format_size
from fwstore_cli.session import RunArgument, Session, command, make_facts, make_table
from fwstore_cli.words import show_time

RunsOption = Annotated[
    list[str] | None,
    typer.Option("--run", metavar="RUN", help="Only this run; may be repeated; default: all."),
]


def add_sites_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "status")(status)
    command(app, "resume-plan")(resume_plan)
    group = typer.Typer(help="Change which sites take part.")
    command(group, "retire")(retire)
    app.add_typer(group, name="site")


def status(session: Session, run: RunsOption = None) -> None:
    """Show the sites and their links, and how far each site is behind in steps, bytes and time.

    Bytes are those that were written for what is missing; the forecast is what they take at the rate
    at which checkpoints arrived lately. Sites that do not answer are named with since when and why.
    """
    with session.repository() as repository:
        found = repository.status(runs=run)
    session.emit(status_value(found), *_status_tables(found))
    for trouble in found.troubles:
        session.say(trouble)


def resume_plan(session: Session, run: RunArgument) -> None:
    """Show from which step a run would go on at this site, and from where each byte would come.

    Nothing is brought by it. The time is that of the slowest link at its cap.
    """
    with session.repository() as repository:
        plan = repository.replication.resume_plan(run)
    table = make_table(
        "from", "packs", "size", "cap", "time", right=("packs", "size", "cap", "time")
    )
    for source in plan.sources:
        cap = "" if source.bytes_per_second is None else format_rate(source.bytes_per_second)
        takes = "" if source.seconds is None else format_duration(source.seconds)
        table.add_row(source.site, str(source.packs), format_size(source.size_bytes), cap, takes)
    facts = {
        "run": plan.run,
        "at site": plan.site,
        "step": plan.step,
        "saved": show_time(plan.wall_time),
        "crosses links": format_size(plan.wan_bytes),
        "takes": "unknown: a link has no cap"
        if plan.seconds is None
        else format_duration(plan.seconds),
        "not heard": ", ".join(plan.unheard),
    }
    session.emit(plan, make_facts(facts), table)


def retire(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the site, as the topology has it.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="For people, kept for ever.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also a site that answers; also where less than a majority of the witnesses can agree: should the "
            "others be alive and go on without this one, a run may have two jobs at once and two histories.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Retire a site that is lost for good, or was wiped. It cannot be taken back.

    A majority of the witnesses must agree, the retired site counted: two of three, not one of two. From then
    on it has no vote, its jobs are fenced, its logs are not read and nothing is copied from it; what only
    it had is lost. Another site may be founded under its name: give the topology an empty store.
    """
    with session.repository() as repository:
        session.confirm(f"retire site {name} for ever", yes=yes)
        found = repository.retire_site(name, reason=reason, force=force)
    facts = {
        "retired": f"{found.site} ({found.uuid})",
        "reason": found.reason,
        "held at": ", ".join(found.held_at),
        "forced": "yes, by less than a majority" if found.forced else "",
    }
    session.emit(found, make_facts(facts))


def status_value(found: RepositoryStatus) -> dict[str, Any]:
    """Return a status for JSON."""
    return {
        "sites": found.sites,
        "links": found.links,
        "runs": [_lag_value(lag) for lag in found.lags],
        "troubles": found.troubles,
    }


def _lag_value(lag: Lag) -> dict[str, Any]:
    return {
        "run": lag.run,
        "site": lag.site,
        "newest_step": lag.newest_step,
        "newest_there": lag.newest_there,
        "bytes_missing": lag.bytes_missing,
        "missing": lag.missing,
        "ages": lag.ages,
        "bytes_per_second": lag.bytes_per_second,
        "forecast_s": lag.forecast_s,
    }


def _status_tables(found: RepositoryStatus) -> list[Table]:
    sites = make_table("site", "role", "votes", "store", "state")
    for site in found.sites:
        since = site.silent_since
        state = "answers" if since is None else f"silent since {show_time(since)}: {site.reason}"
        here = " (here)" if site.local else ""
        sites.add_row(
            f"{site.name}{here}",
            site.role,
            "yes" if site.witness else "",
            site.store,
            f"retired: {site.reason}" if site.retired else state,
        )
    tables = [sites]
    capped = [link for link in found.links if link.cap is not None]
    if capped:
        links = make_table("from", "to", "cap", right=("cap",))
        for link in capped:
            links.add_row(link.source, link.target, format_rate(link.cap or 0.0))
        tables.append(links)
    return [*tables, _lag_table(found)]


def _lag_table(found: RepositoryStatus) -> Table:
    ages = [bucket.age for bucket in found.lags[0].ages] if found.lags else []
    columns = ("newest", "there", "missing", "bytes", *ages, "rate", "forecast")
    table = make_table("run", "site", *columns, right=columns)
    for lag in found.lags:
        missing = len(lag.missing)
        table.add_row(
            lag.run,
            lag.site,
            _step(lag.newest_step),
            _step(lag.newest_there),
            str(missing or ""),
            format_size(lag.bytes_missing) if missing else "",
            *(str(bucket.checkpoints or "") for bucket in lag.ages),
            "" if lag.bytes_per_second is None else format_rate(lag.bytes_per_second),
            _forecast(lag),
        )
    return table


def _forecast(lag: Lag) -> str:
    if not lag.missing:
        return "complete"
    return "unknown" if lag.forecast_s is None else format_duration(lag.forecast_s)


def _step(step: int | None) -> str:
    return "-" if step is None else str(step)
