"""Commands against a real repository: right answers, right exit codes, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore_cli.exits import ExitCode
from support.commands import Command, make_state

FROZEN = TRAINED = 800_000


def test_ls_lists_runs_and_checkpoints(command: Command) -> None:
    (row,) = command("ls", "--json").value
    assert (row["run"], row["checkpoints"], row["newest_step"]) == ("gpt", 3, 30)
    rows = command("ls", "gpt", "--json").value
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[0]["metrics"] == {"loss": 0.1}
    assert "loss=0.05" in command("ls", "gpt").output


def test_show_tells_what_a_checkpoint_holds(command: Command) -> None:
    shown = command("show", "gpt@20", "--json").value
    assert (shown["step"], shown["tensors"]) == (20, 2)
    assert shown["bytes_logical"] == FROZEN + TRAINED
    assert command("show", "gpt", "--json").value["step"] == 30
    text = command("show", "gpt@20").output
    assert "781 KiB" in text or "1.53 MiB" in text
    assert "step: int" in text


def test_log_tells_what_happened(command: Command) -> None:
    entries = command("log", "gpt", "--json").value
    kinds = [entry["kind"] for entry in entries]
    assert kinds.count("commit") == 3
    assert kinds.index("open") < kinds.index("commit")
    assert all(entry["counts"] for entry in entries)
    assert [entry["sequence"] for entry in entries] == sorted(e["sequence"] for e in entries)
    assert len(command("log", "gpt", "--limit", 1, "--json").value) == 1
    assert "commit" in command("log", "gpt").output


def test_inspect_goes_down_to_a_chunk(command: Command, repository: str) -> None:
    run = command("inspect", "gpt", "--json").value
    assert [row["step"] for row in run["checkpoints"]] == [10, 20, 30]
    snapshot = command("inspect", "gpt@20", "--json").value
    assert {row["name"] for row in snapshot["tensors"]} == {"model/frozen", "model/trained"}
    tensor = command("inspect", "gpt@20", "-t", "model/trained", "--json").value
    assert sum(chunk["raw_bytes"] for chunk in tensor["chunks"]) == TRAINED
    place = tensor["chunks"][0]
    found = command("inspect", "gpt@20", "-t", "model/trained", "-c", 0, "--json").value
    assert found["chunk"] == place
    pack = command("inspect", "gpt@20", "-p", place["pack"], "--json").value
    assert place["id"] in {chunk["id"] for chunk in pack["chunks"]}
    assert pack["pack"]["key"] == found["pack"]["key"]
    with (Path(repository) / found["pack"]["key"]).open("rb") as file:
        file.seek(place["position"])
        stored = file.read(place["stored_bytes"])
    assert place["codec"] == "raw"
    assert stored in make_state(20)["model"]["trained"].tobytes()


def test_inspect_shows_tables(command: Command) -> None:
    assert "model/frozen" in command("inspect", "gpt@20").output
    assert "[0:" in command("inspect", "gpt@20", "-t", "model/frozen").output
    assert "place" in command("inspect", "gpt@20", "-p", 0).output
    assert "raw" in command("inspect", "gpt@20", "-t", "model/frozen", "-c", 0).output
    assert "loss" in command("inspect", "gpt").output
    assert "not shown" in command("inspect", "gpt@20", "-n", 1).errors


def test_diff_tells_what_changed_and_what_is_shared(command: Command) -> None:
    found = command("diff", "gpt@10", "gpt@20", "--json").value
    assert [(row["tensor"], row["change"]) for row in found["tensors"]] == [
        ("model/trained", "changed")
    ]
    assert found["bytes_shared"] == FROZEN
    both = command("diff", "gpt@10", "gpt@20", "--all", "--json").value["tensors"]
    assert {row["tensor"]: row["bytes_shared"] for row in both} == {
        "model/frozen": FROZEN,
        "model/trained": 0,
    }
    assert command("diff", "gpt@20", "gpt@20", "--json").value["tensors"] == []
    assert "100.0%" in command("diff", "gpt@10", "gpt@20").output


def test_diff_tells_added_removed_and_reshaped(command: Command, repository: str) -> None:
    state = {"model": {"new": np.ones(3), "trained": np.full((500, 400), 30, np.float32)}}
    with fwstore.open(repository) as opened, opened.run("other").writer() as writer:
        writer.save(0, state).result()
    found = command("diff", "gpt@30", "other", "--json").value
    assert {row["tensor"]: row["change"] for row in found["tensors"]} == {
        "model/frozen": "removed",
        "model/new": "added",
        "model/trained": "reshaped",
    }


def test_du_tells_what_each_checkpoint_keeps(command: Command, repository: str) -> None:
    found = command("du", "gpt", "--json").value
    packs = [p for p in (Path(repository) / "packs").rglob("*") if p.is_file()]
    assert found["bytes_stored"] == sum(pack.stat().st_size for pack in packs)
    first, *_, last = found["checkpoints"]
    assert FROZEN + TRAINED <= first["bytes_referred"] < 1.1 * (FROZEN + TRAINED)
    assert TRAINED <= last["bytes_only_here"] < 1.1 * TRAINED
    assert "all" in command("du", "gpt").output


@pytest.mark.parametrize("options", [(), ("--sample", "50"), ("--data",)], ids=str)
def test_verify_accepts_what_is_whole(command: Command, options: tuple[str, ...]) -> None:
    report = command("verify", *options, "--json").value
    assert (report["checkpoints"], report["problems"]) == (3, [])
    assert command("verify", "gpt@20", *options, "--json").value["checkpoints"] == 1
    assert "0 problems" in command("verify", "gpt", *options).errors


def test_verify_finds_a_flipped_byte_and_names_the_tensor(
    command: Command, repository: str
) -> None:
    chunk = command("inspect", "gpt@20", "-t", "model/trained", "-c", 0, "--json").value
    pack = Path(repository) / chunk["pack"]["key"]
    content = bytearray(pack.read_bytes())
    content[chunk["chunk"]["position"] + 5] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(content)
    found = command("verify", "--data")
    assert found.code == ExitCode.CORRUPT
    assert "model/trained" in found.output
    assert "Traceback" not in found.errors


def test_verify_finds_a_lost_object(command: Command, repository: str) -> None:
    for pack in (Path(repository) / "packs").rglob("t*"):
        pack.unlink()
    assert command("verify").code == ExitCode.CORRUPT


def test_doctor_accepts_a_good_store(command: Command) -> None:
    report = command("doctor", "--racers", 8, "--json").value
    assert report["passed"]
    assert all(check["passed"] for check in report["checks"] if check["required"])
    assert "ok" in command("doctor", "--racers", 4).output


def test_fork_begins_a_run(command: Command, repository: str) -> None:
    assert command("fork", "gpt@20", "sft", "--json").value == {
        "run": "sft",
        "forked_from": "gpt",
        "step": 20,
    }
    with fwstore.open(repository) as opened:
        assert opened.run("sft").latest().load()["step"] == 20
    assert command("fork", "gpt@20", "sft").code == ExitCode.CONFLICT


def test_pins_keep_a_step(command: Command) -> None:
    pin = command("pin", "gpt@10", "--reason", "published", "--json").value["pin"]
    assert command("inspect", "gpt", "--json").value["pins"][0]["reason"] == "published"
    assert "published" in command("inspect", "gpt").output
    assert command("rm", "gpt@10", "--yes").code == ExitCode.USAGE
    assert command("unpin", "gpt", pin).code == 0
    assert command("rm", "gpt@10", "--yes").code == 0
    assert command("show", "gpt@10").code == ExitCode.NOT_FOUND
    assert command("unpin", "gpt", pin).code == ExitCode.NOT_FOUND


def test_rm_asks_first(command: Command) -> None:
    refused = command("rm", "gpt@10")
    assert refused.code == ExitCode.USAGE
    assert "--yes" in refused.errors
    assert command("show", "gpt@10").code == 0


def test_rm_leaves_a_run_with_pins_unless_they_are_to_go_too(command: Command) -> None:
    pin = command("pin", "gpt@10", "--reason", "published", "--json").value["pin"]
    refused = command("rm", "gpt", "--yes")
    assert refused.code == ExitCode.USAGE
    assert pin in refused.errors
    assert command("show", "gpt@10").code == 0
    assert command("rm", "gpt", "--yes", "--lift-pins").code == 0
    assert command("ls", "--json").value == []


def test_rm_removes_a_run(command: Command) -> None:
    assert command("rm", "gpt", "--yes").code == 0
    assert command("ls", "--json").value == []
    assert command("ls", "gpt").code == ExitCode.NOT_FOUND


def _size(repository: str) -> int:
    return sum(p.stat().st_size for p in (Path(repository) / "packs").rglob("*") if p.is_file())


def test_gc_frees_what_was_removed_and_only_that(command: Command, repository: str) -> None:
    assert command("rm", "gpt@20", "--yes").code == 0
    before = _size(repository)
    plan = command("gc", "--dry-run", "--json").value
    assert plan["dry_run"]
    assert _size(repository) == before
    done = command("gc", "--json").value
    assert done["bytes_freed"] == plan["bytes_freed"] >= TRAINED
    assert before - _size(repository) >= TRAINED
    assert command("verify", "--data").code == 0
    with fwstore.open(repository) as opened:
        assert [found.step for found in opened.run("gpt").checkpoints()] == [10, 30]
        loaded = opened.run("gpt")[30].load()["model"]["trained"]
    assert (loaded == make_state(30)["model"]["trained"]).all()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("show", "gpt@11"), ExitCode.NOT_FOUND, "11"),
        (("show", "nobody"), ExitCode.NOT_FOUND, "nobody"),
        (("ls", "nobody"), ExitCode.NOT_FOUND, "fwstore ls"),
        (("show", "gpt@x"), ExitCode.USAGE, "RUN@STEP"),
        (("show", "../gpt"), ExitCode.USAGE, "../gpt"),
        (("show", "gpt@1@2"), ExitCode.USAGE, "gpt@1@2"),
        (("pin", "gpt", "-m", "why"), ExitCode.USAGE, "names no step"),
        (("inspect", "gpt", "-c", 1), ExitCode.USAGE, "--tensor"),
        (("inspect", "gpt@10", "-t", "no/such"), ExitCode.NOT_FOUND, "no/such"),
        (("inspect", "gpt@10", "-t", "model/frozen", "-c", 10**6), ExitCode.NOT_FOUND, "chunks"),
        (("inspect", "gpt@10", "-p", 10**6), ExitCode.NOT_FOUND, "packs"),
        (("inspect", "gpt@10", "-p", 0, "-t", "a"), ExitCode.USAGE, "not both"),
        (("verify", "nobody"), ExitCode.NOT_FOUND, "nobody"),
        (("verify", "gpt@11"), ExitCode.NOT_FOUND, "11"),
        (("gc", "--run", "nobody"), ExitCode.NOT_FOUND, "nobody"),
        (("fork", "gpt@10", "a/../b"), ExitCode.USAGE, "a/../b"),
        (("export", "gpt", "x", "--shard-size", "many"), ExitCode.USAGE, "many"),
    ],
)
def test_errors_are_one_line_with_a_code(
    command: Command, words: tuple[Any, ...], code: ExitCode, named: str
) -> None:
    found = command(*words)
    assert found.code == code
    assert named in found.errors
    assert found.output == ""
    assert len(found.errors.strip().splitlines()) == 1
    in_json = command(*words, "--json")
    assert in_json.code == code
    assert f'"exit_code": {code.value}' in in_json.errors


def test_a_place_without_a_repository_is_not_found(command: Command, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    # The last of two -C counts, so the missing one is named by the environment instead.
    done = _fwstore("ls", repo=str(missing))
    assert done.returncode == ExitCode.NOT_FOUND, done.stderr
    assert "missing" in done.stderr
    assert not missing.exists()


def _fwstore(*words: str, repo: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fwstore_cli", *words],
        env={**os.environ, "FWSTORE_REPO": repo},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_debug_shows_the_traceback(repository: str) -> None:
    quiet, loud = (
        _fwstore("show", "nobody", *option, repo=repository) for option in ((), ("--debug",))
    )
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert loud.returncode == quiet.returncode == ExitCode.NOT_FOUND


def test_gc_tells_of_objects_that_killed_processes_were_writing(
    command: Command, repository: str
) -> None:
    place = Path(repository) / ".tmp" / "elsewhere-1-0"
    place.write_bytes(bytes(5000))
    os.utime(place, (1e9, 1e9))
    planned = command("gc", "--dry-run", "--json").value
    assert place.exists()
    done = command("gc", "--json").value
    assert not place.exists()
    for report in (planned, done):
        assert report["bytes_freed"] == 5000
        (action,) = (action for action in report["actions"] if action["action"] == "delete")
        assert (action["key"], action["size_bytes"]) == (".tmp/elsewhere-1-0", 5000)
    assert command("gc", "--dry-run", "--json").value["bytes_freed"] == 0
