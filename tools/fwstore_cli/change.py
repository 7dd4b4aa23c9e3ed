"""Commands that change a run: fork, pin, unpin, rm."""

from __future__ import annotations

from typing import Annotated

import typer

from fwstore_cli.session import (
    Reference,
    RunArgument,
    Session,
    command,
    find_run,
    make_facts,
    need_step,
    parse_reference,
)

StepReference = Annotated[
    str, typer.Argument(metavar="RUN@STEP", help="One step of a run, such as gpt@1200.")
]


def add_change_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "fork")(fork)
    command(app, "pin")(pin)
    command(app, "unpin")(unpin)
    command(app, "rm")(rm)


def fork(
    session: Session,
    reference: Reference,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new run.")],
) -> None:
    """Begin a new run at a step of another one; no bytes are copied."""
    source, step = parse_reference(reference)
    with session.repository() as repository:
        run = find_run(repository, source)
        checkpoint = run.latest() if step is None else run[step]
        run.fork(name, at=checkpoint.step)
    value = {"run": name, "forked_from": source, "step": checkpoint.step}
    session.emit(value, make_facts(value))


def pin(
    session: Session,
    reference: StepReference,
    reason: Annotated[
        str, typer.Option("--reason", "-m", help="Why it must stay; shown to whoever asks.")
    ],
) -> None:
    """Keep a step whatever retention says, until it is unpinned; prints the id of the pin."""
    name, step = need_step(reference)
    with session.repository() as repository:
        pin_id = find_run(repository, name).pin(step, reason)
    value = {"pin": pin_id, "run": name, "step": step, "reason": reason}
    session.emit(value, make_facts(value))


def unpin(
    session: Session,
    run: RunArgument,
    pin_id: Annotated[str, typer.Argument(metavar="PIN", help="The id that `pin` printed.")],
) -> None:
    """Give up a pin; `fwstore inspect RUN` lists them."""
    with session.repository() as repository:
        find_run(repository, run).unpin(pin_id)
    value = {"unpinned": pin_id, "run": run}
    session.emit(value, make_facts(value))


def rm(
    session: Session,
    reference: Reference,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    lift_pins: Annotated[
        bool, typer.Option("--lift-pins", help="Remove a run although steps of it are pinned.")
    ] = False,
) -> None:
    """Remove a step, or a whole run when no step is named; `gc` then frees the bytes."""
    name, step = parse_reference(reference)
    with session.repository() as repository:
        run = find_run(repository, name)
        what = f"run {name!r}" if step is None else f"step {step} of run {name!r}"
        if step is not None:
            run[step]
        session.confirm(f"remove {what}", yes=yes)
        if step is None:
            run.delete(lift_pins=lift_pins)
        else:
            run.remove(step)
    value = {"removed": reference, "run": name, "step": step}
    session.emit(value, make_facts(value))
