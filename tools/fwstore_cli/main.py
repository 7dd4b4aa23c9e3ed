"""The program `fwstore`: declares the commands, runs one, and turns its failure into one line.

Invariant: without `--debug` no traceback is shown, and the exit code is one of `exits.ExitCode`.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from fwstore import FwstoreError
from fwstore_cli.branch import add_branch_commands
from fwstore_cli.care import add_care_commands
from fwstore_cli.change import add_change_commands
from fwstore_cli.compare import add_diff_command
from fwstore_cli.exits import ExitCode, exit_code, exit_table
from fwstore_cli.layers import add_inspect_command
from fwstore_cli.replicate import add_replicate_commands
from fwstore_cli.session import printable
from fwstore_cli.show import add_show_commands
from fwstore_cli.sites import add_sites_commands
from fwstore_cli.transfer import add_transfer_commands

_DEBUG = "--debug"


def make_app() -> typer.Typer:
    """Return the program with all of its commands."""
    codes = exit_table().replace("\n", "\n\n")
    app = typer.Typer(
        name="fwstore",
        help="Checkpoints of training runs in an object store.",
        epilog=f"Exit codes:\n\n{codes}",
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    add_show_commands(app)
    add_inspect_command(app)
    add_diff_command(app)
    add_care_commands(app)
    add_change_commands(app)
    add_branch_commands(app)
    add_transfer_commands(app)
    add_sites_commands(app)
    add_replicate_commands(app)
    return app


def _options(
    _show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version and exit."
        ),
    ] = False,
    _debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; also after a command.")
    ] = False,
) -> None:
    """Options of the program itself; `run` and `_version` act on them."""


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(version("fwstore"), highlight=False)
        raise typer.Exit


def main() -> NoReturn:
    """Run the program on the arguments of this process."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Asked to end in whatever way, a command takes back what it began; `nohup` stays in force.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    # The option means the same wherever it stands, as people add it to the end of a line that failed.
    words = [word for word in arguments if word != _DEBUG] or ["--help"]
    try:
        return _run(words)
    except Exception as error:  # noqa: BLE001 - whatever it is becomes one line
        if _DEBUG in arguments:
            traceback.print_exception(error)
        if isinstance(error, FwstoreError):
            return _fail(error.code, error.message, exit_code(error), words)
        message = f"{type(error).__name__}: {error} (a bug of fwstore; {_DEBUG} shows where)"
        return _fail("internal_error", message, ExitCode.BUG, words)


def _run(words: Sequence[str]) -> int:
    program = typer.main.get_command(make_app())
    try:
        code = int(program.main(words, prog_name="fwstore", standalone_mode=False) or ExitCode.OK)
    except SystemExit:
        # Shell completion ends this way, and rich when the reader of our output left, as `head` does.
        return ExitCode.OK
    except typer.TyperException as error:
        message = f"{error.format_message()} (see `fwstore --help`)"
        return _fail("usage", message, ExitCode.USAGE, words)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    # typer makes a code of Ctrl-C as well, and says nothing.
    if code == ExitCode.INTERRUPTED:
        _fail("interrupted", "interrupted", ExitCode.INTERRUPTED, words)
    return code


def _fail(kind: str, message: str, code: ExitCode, words: Sequence[str]) -> int:
    if "--json" in words:
        report = {"error": {"code": kind, "message": message, "exit_code": int(code)}}
        line = json.dumps(report)
    else:
        line = printable(f"fwstore: {message}")
    # The exit code must say what happened even where the line cannot be written.
    with contextlib.suppress(OSError):
        typer.echo(line, err=True)
    return int(code)
