"""What every command shares: the repository, the form of the output, and how a command is declared.

Invariant: standard output carries the answer and nothing else - tables for people, or one JSON
document; progress and errors go to standard error.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

import fwstore
from fwstore import Checkpoint, InvalidInput, Repository, Run
from fwstore_migrate.files import local_failure

P = ParamSpec("P")

_REFERENCE = re.compile(r"(?P<run>[^@]+)(?:@(?P<step>[0-9]{1,18}))?")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run.")]
Reference = Annotated[
    str, typer.Argument(metavar="RUN[@STEP]", help="A run, or one of its steps; default: newest.")
]
LimitOption = Annotated[
    int, typer.Option("--limit", "-n", min=0, help="Rows shown at most; 0 for all.")
]


class PlainConsole(Console):
    """Shows text as it is: names come from users and may hold markup and control characters."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text in which nothing commands the terminal."""
        return super().render_str(printable(text), **options)


@dataclass(frozen=True)
class Bar:
    """A bar of bytes; it may be moved from any thread."""

    progress: Progress
    task: TaskID

    def advance(self, count: int) -> None:
        """Move by some bytes."""
        self.progress.advance(self.task, count)

    def update(self, done: int, total: int) -> None:
        """Move to a place."""
        self.progress.update(self.task, completed=done, total=total)


@dataclass(frozen=True)
class Session:
    """One invocation.

    Attributes:
        url: The repository, or None when none was named.
        site: The site of this process in a topology, or None where that is clear.
        as_json: Print one JSON document instead of tables.
        output: Standard output.
        errors: Standard error.
    """

    url: str | None
    site: str | None
    as_json: bool
    output: Console
    errors: Console

    @contextmanager
    def repository(self) -> Iterator[Repository]:
        """Open the repository for the time of a command."""
        if self.url is None:
            raise InvalidInput("which repository? give -C URL, or set FWSTORE_REPO")
        with fwstore.open(self.url, site=self.site) as repository:
            yield repository

    def emit(self, value: Any, *tables: Table) -> None:
        """Print a value as JSON, or the tables that show it to people."""
        try:
            if self.as_json:
                # In ASCII, so that every document can be printed whatever the locale.
                text = json.dumps(plain(value), allow_nan=False)
                self.output.print_json(text, highlight=False, ensure_ascii=True)
                return
            for table in tables:
                self.output.print(table)
        except OSError as error:
            raise local_failure(error, "cannot write the answer to standard output") from error

    def emit_line(self, value: Any) -> None:
        """Print a value as one line of JSON, at once: what goes on for long is a line for each event."""
        line = json.dumps(plain(value), allow_nan=False)
        try:
            self.output.print(line, soft_wrap=True, highlight=False)
            self.output.file.flush()
        except OSError as error:
            raise local_failure(error, "cannot write the answer to standard output") from error

    def say(self, message: str) -> None:
        """Tell people what was done; it is not part of the answer."""
        if not self.as_json:
            self.errors.print(message, highlight=False)

    def confirm(self, action: str, *, yes: bool) -> None:
        """Ask before something is done that people may regret.

        Raises:
            InvalidInput: There is nobody to ask.
        """
        if yes:
            return
        if self.as_json or not self.errors.is_terminal:
            raise InvalidInput(f"to {action} without a terminal, say --yes")
        typer.confirm(f"{action}?", abort=True, err=True)

    @contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """Show a bar on a terminal while the block runs."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        hidden = self.as_json or not self.errors.is_terminal
        with Progress(*columns, console=self.errors, transient=True, disable=hidden) as bar:
            yield Bar(bar, bar.add_task(title, total=total))


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Declare a function as a command: its first parameter is the session, the rest its arguments."""

    def register(
        function: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        @functools.wraps(function)
        def run(*, repo: str | None, site: str | None, as_json: bool, **arguments: Any) -> None:
            width = None if Console().is_terminal else 200
            output, errors = PlainConsole(width=width), PlainConsole(stderr=True)
            session = Session(repo, site, as_json, output, errors)
            function(session, **arguments)  # type: ignore[call-arg]

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        run.__signature__ = inspect.Signature([*own, *_COMMON])  # type: ignore[attr-defined]
        app.command(name)(run)
        return function

    return register


_COMMON = (
    inspect.Parameter(
        "repo",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Option(
                "--repo",
                "-C",
                metavar="URL",
                envvar="FWSTORE_REPO",
                help="A directory, s3://bucket/prefix, gs://, az:// or memory://; or a topology *.toml.",
            ),
        ],
    ),
    inspect.Parameter(
        "site",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Option("--site", metavar="NAME", help="Which site of a topology this is."),
        ],
    ),
    inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--json", help="Print one JSON document.")],
    ),
)


def parse_reference(text: str) -> tuple[str, int | None]:
    """Return the run and the step that ``RUN[@STEP]`` names.

    Raises:
        InvalidInput: It has another form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is not RUN or RUN@STEP, such as gpt@1200")
    return match["run"], int(match["step"]) if match["step"] is not None else None


def find_run(repository: Repository, name: str) -> Run:
    """Return a run that exists.

    Raises:
        NotFound: It does not.
    """
    run = repository.run(name)
    if not run.exists():
        raise fwstore.NotFound(f"{repository.url} has no run {name!r}; see `fwstore ls`")
    return run


def find_checkpoint(repository: Repository, reference: str) -> Checkpoint:
    """Return the checkpoint that ``RUN[@STEP]`` names, the newest when it names no step."""
    name, step = parse_reference(reference)
    run = find_run(repository, name)
    return run.latest() if step is None else run[step]


def need_step(reference: str) -> tuple[str, int]:
    """Return the run and the step of a reference that must name a step.

    Raises:
        InvalidInput: It names none.
    """
    name, step = parse_reference(reference)
    if step is None:
        raise InvalidInput(f"{reference!r} names no step; write {reference}@STEP")
    return name, step


def make_table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """Return an empty table without frames, so that it pastes well."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def make_facts(facts: Mapping[str, object], title: str | None = None) -> Table:
    """Return a table of names and values."""
    table = make_table("", "", title=title)
    table.show_header = False
    for name, value in facts.items():
        if value is not None and value != "":
            table.add_row(name, str(value))
    return table


def printable(text: str) -> str:
    """Return text whose control characters are shown as escapes."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if text.isprintable() else "".join(shown)


def plain(value: Any) -> Any:
    """Return a value in terms of JSON: dataclasses as objects, bytes in hexadecimal."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, str | int | bool | None):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return str(value)
