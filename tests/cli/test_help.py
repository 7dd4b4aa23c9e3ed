"""What the program says of itself: every command and option has help and a place in docs/cli.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

import fwstore
from fwstore import FwstoreError
from fwstore_cli.exits import ExitCode, exit_code, exit_table
from fwstore_cli.main import make_app, run

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def _commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its words, those of groups too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= _commands(command, f"{before}{name} ") if inner else {f"{before}{name}": command}
    return found


_GROUP: Any = typer.main.get_command(make_app())
COMMANDS = _commands(_GROUP)
_EVERYWHERE = {"--repo", "-C", "--site", "--json", "--help", "-h"}


def _section(command: str) -> str:
    match = re.search(rf"^### `fwstore {command}\b.*?(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/cli.md has no section for {command}"
    return match.group()


def test_the_commands_are_those_that_were_promised() -> None:
    promised = "ls show log inspect diff du verify doctor fork pin unpin rm gc export import"
    promised += " status resume-plan"
    groups = {
        "branch": "list promote",
        "replicate": "once run plan explain worker",
        "site": "retire",
    }
    grouped = [f"{group} {name}" for group, names in groups.items() for name in names.split()]
    assert sorted(COMMANDS) == sorted([*promised.split(), *grouped])
    assert all(group.help for group in _GROUP.commands.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_help_and_docs(command: str) -> None:
    assert len(COMMANDS[command].help.strip()) > 20
    section = _section(command)
    assert len(section.splitlines()) > 1
    for parameter in COMMANDS[command].params:
        assert parameter.help, f"{command} {parameter.name} has no help"
        if parameter.param_type_name == "argument":
            assert parameter.metavar in section.splitlines()[0]
            continue
        for option in set(parameter.opts) - _EVERYWHERE:
            assert f"`{option}" in section or f"[{option}" in section or f" {option}" in section


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_what_every_command_takes(command: str) -> None:
    options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
    assert {"--repo", "-C", "--site", "--json"} <= options


def test_docs_name_no_command_that_is_gone() -> None:
    named = re.findall(r"^### `fwstore ([a-z -]*[a-z])\b", DOCS, re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)


def test_docs_and_help_list_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for code in ExitCode:
        assert f"| {code.value} | {code.meaning} |" in DOCS
    assert run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for line in exit_table().splitlines():
        assert " ".join(line.split()) in shown


def _errors(kind: type[FwstoreError]) -> list[type[FwstoreError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _errors(child))]


@pytest.mark.parametrize("kind", _errors(FwstoreError), ids=lambda kind: kind.__name__)
def test_every_error_has_an_exit_code(kind: type[FwstoreError]) -> None:
    expected_bug = kind in (FwstoreError, fwstore.InternalError)
    assert (exit_code(kind("it")) is ExitCode.BUG) == expected_bug


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FWSTORE_COMPLETE", f"source_{shell}")
    assert run([]) == 0
    assert "_FWSTORE_COMPLETE" in capsys.readouterr().out


def test_completion_knows_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FWSTORE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fwstore in")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run([]) == 0
    assert capsys.readouterr().out.split() == ["inspect"]


@pytest.mark.parametrize("arguments", [["bogus"], ["ls", "--bogus"], ["pin", "a@1"], ["show"]])
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == ExitCode.USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "inspect" in capsys.readouterr().out


def test_a_command_without_a_repository_says_how_to_name_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ls"]) == ExitCode.USAGE
    assert "FWSTORE_REPO" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
