"""Commands that bring checkpoints in and out: import, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwstore import format_size, parse_size
from fwstore_cli.session import (
    Reference,
    Session,
    command,
    find_checkpoint,
    make_facts,
    parse_reference,
)
from fwstore_migrate.exports import SHARD_BYTES, ExportOptions, export_safetensors, select_tensors
from fwstore_migrate.imports import ImportOptions, import_checkpoint
from fwstore_migrate.states import open_foreign


def add_transfer_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "import")(import_)
    command(app, "export")(export)


def import_(
    session: Session,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .safetensors or torch.save file, an index, or a DCP directory.",
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="The run and step it becomes; default: 0.")
    ],
    under: Annotated[
        str | None, typer.Option("--under", metavar="KEY", help="Put all under this key.")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="GLOB", help="Leave out these names; may be repeated."),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add a step to a run that exists.")
    ] = False,
) -> None:
    """Store a checkpoint of another system as a step (default 0) of a run.

    Nothing in the file is executed. Memory does not grow with its size. If it fails or is
    interrupted, nothing of it is visible.
    """
    name, step = parse_reference(target)
    options = ImportOptions(step=step or 0, under=under, append=append)
    foreign = open_foreign(source, skip=skip or ())
    with (
        session.repository() as repository,
        session.progress("importing", foreign.size_bytes) as bar,
    ):
        import_checkpoint(repository.run(name), foreign, options, bar.advance)
    value = {
        "run": name,
        "step": options.step,
        "format": foreign.kind,
        "tensors": foreign.tensors,
        "size_bytes": foreign.size_bytes,
    }
    session.emit(value, make_facts(value | {"size_bytes": format_size(foreign.size_bytes)}))


def export(
    session: Session,
    reference: Reference,
    destination: Annotated[
        Path,
        typer.Argument(
            metavar="DESTINATION", help="FILE.safetensors, or a directory for shards with an index."
        ),
    ],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GLOB", help="Only these tensors; may be repeated."),
    ] = None,
    shard_size: Annotated[
        str, typer.Option("--shard-size", help="Largest file of a directory, such as 5GB.")
    ] = str(SHARD_BYTES),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write the tensors of a checkpoint as safetensors; the plain state is not exported."""
    options = ExportOptions(
        only=tuple(only or ()), shard_bytes=parse_size(shard_size), overwrite=overwrite
    )
    with session.repository() as repository:
        found = find_checkpoint(repository, reference)
        total = sum(tensor.nbytes for tensor in select_tensors(found, options.only).values())
        with session.progress("exporting", total) as bar:
            done = export_safetensors(found, destination, options, bar.advance)
    facts = {
        "destination": destination,
        "files": len(done.files),
        "tensors": done.tensors,
        "size": format_size(done.size_bytes),
    }
    session.emit(
        {"destination": str(destination), "step": found.step, "written": done}, make_facts(facts)
    )
