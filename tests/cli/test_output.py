"""What is shown is what was named, wherever it is shown; and what cannot be shown says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fwstore
from fwstore_cli.exits import ExitCode
from support.commands import Command

_ODD = "[/red][bold]x[/bold] :smile: \x1b[31m\nnext \x9b1m é"
_SHOWN = r"[\/red][bold]x[\/bold] :smile: \x1b[31m\nnext \x9b1m é"


@pytest.fixture
def odd(repository: str) -> str:
    """A run whose tensors, metrics, keys and pins are named by somebody with strange ideas."""
    with fwstore.open(repository) as opened, opened.run("odd").writer() as writer:
        for step in (1, 2):
            state = {_ODD: np.full(3, step), f"{_ODD} too": step}
            writer.save(step, state, metrics={_ODD: 1.0}).result()
        opened.run("odd").pin(1, _ODD)
    return "odd"


@pytest.mark.parametrize(
    "words",
    [
        "ls odd",
        "show odd@1",
        "log odd",
        "inspect odd",
        "inspect odd@1",
        "inspect odd@1 --pack 0",
        "diff odd@1 odd@2",
        "rm odd@1 --yes",
    ],
)
def test_names_are_shown_as_they_are_and_command_no_terminal(
    command: Command, odd: str, words: str
) -> None:
    done = command(*words.split())
    shown = done.output + done.errors
    assert _SHOWN.replace("\\/", "/") in shown.replace("\\/", "/")
    assert all(line.isprintable() for line in shown.splitlines())
    assert command(*words.split(), "--json").code == done.code


@pytest.mark.parametrize("words", ["log gpt", "inspect gpt@10", "diff gpt@10 gpt@20", "gc"])
def test_a_limit_is_not_negative(command: Command, words: str) -> None:
    assert command(*words.split(), "--limit", -1).code == ExitCode.USAGE


def test_a_step_of_any_length_is_refused_in_words(command: Command) -> None:
    assert command("show", "gpt@" + "9" * 5000).code == ExitCode.USAGE
    assert command("show", "gpt@" + "9" * 18).code == ExitCode.NOT_FOUND


@pytest.mark.parametrize("reason", ["", " \n"])
def test_a_pin_needs_a_reason(command: Command, reason: str) -> None:
    assert command("pin", "gpt@10", "--reason", reason).code == ExitCode.USAGE
    assert command("inspect", "gpt", "--json").value["pins"] == []


@pytest.mark.parametrize("size", ["0", "abc", "-5", ""])
def test_a_shard_size_is_a_size(command: Command, tmp_path: Path, size: str) -> None:
    assert command("export", "gpt", tmp_path / "out", "--shard-size", size).code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written_or_read_are_told_apart(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    expected = {
        "none/out.safetensors": ExitCode.NOT_FOUND,
        "file/out.safetensors": ExitCode.USAGE,
        "x" * 300 + ".safetensors": ExitCode.USAGE,
    }
    for name, code in expected.items():
        assert command("export", "gpt", tmp_path / name).code == code
        assert command("import", tmp_path / name, "new").code == code
    assert [row["run"] for row in command("ls", "--json").value] == ["gpt"]


def _shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "bash",
            "-o",
            "pipefail",
            "-c",
            line.replace("fwstore", f"{sys.executable} -m fwstore_cli"),
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["fwstore inspect gpt@10 | head -1", "fwstore --help | head -1", "fwstore ls | true"]
)
def test_a_reader_that_leaves_is_no_error(repository: str, line: str) -> None:
    done = _shell(line, FWSTORE_REPO=repository, PYTHONUNBUFFERED="1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", "--json"])
def test_an_answer_that_cannot_be_written_is_not_a_bug(repository: str, option: str) -> None:
    done = _shell(f"fwstore ls {option} > /dev/full", FWSTORE_REPO=repository)
    assert done.returncode == ExitCode.TOO_LARGE
    assert "cannot write the answer" in done.stderr
    for place in ("2> /dev/full", "2>&-"):
        assert _shell(f"fwstore ls nobody {place}", FWSTORE_REPO=repository).returncode == (
            ExitCode.NOT_FOUND
        )


@pytest.mark.slow
def test_a_terminal_of_another_alphabet_sees_escapes(repository: str, odd: str) -> None:
    done = _shell("fwstore inspect odd@1", FWSTORE_REPO=repository, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xe9" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_import_that_is_asked_to_end_takes_back_what_it_began(
    repository: str, tmp_path: Path, number: signal.Signals
) -> None:
    save_file({f"t{n}": torch.randn(1 << 20) for n in range(64)}, tmp_path / "a.safetensors")
    words: list[Any] = ["import", tmp_path / "a.safetensors", "new", "-C", repository]
    process = subprocess.Popen(
        [sys.executable, "-m", "fwstore_cli", *words], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (Path(repository) / "packs" / "new@1").exists():
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if process.returncode != 0:
        assert (process.returncode, errors) == (ExitCode.INTERRUPTED, "fwstore: interrupted\n")
        with fwstore.open(repository) as opened:
            assert opened.runs() == ["gpt"]
