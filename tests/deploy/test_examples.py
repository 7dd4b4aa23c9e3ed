"""The examples of deploy/: as their systems want them, and with commands that the command line takes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from fwstore import Limits, Topology
from fwstore_cli.main import make_app

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "fwstore-replicate@.service"
BATCH = DEPLOY / "slurm" / "replicate.sbatch"
PODS = DEPLOY / "kubernetes" / "replicate.yaml"
SCHEMA = json.loads((Path(__file__).parent / "job.schema.json").read_text(encoding="utf-8"))
# The options of sbatch that stand in a file, by its manual.
_SBATCH = [
    "job-name",
    "array",
    "nodes",
    "ntasks",
    "cpus-per-task",
    "mem",
    "time",
    "signal",
    "requeue",
    "open-mode",
    "output",
]
# The settings of a unit, by the manuals systemd.unit, systemd.service and systemd.exec, and what they may be.
_SWITCH = "yes|no"
_UNIT = {
    "Unit": {"Description": ".+", "Wants": r"[\w.-]+\.target", "After": r"[\w.-]+\.target"},
    "Service": {
        "Type": "simple|exec|forking|oneshot|notify|idle",
        "User": "[a-z_][a-z0-9_-]{0,30}",
        "StateDirectory": r"[^/.][\w/%-]*",
        "StateDirectoryMode": "0[0-7]{3}",
        "UMask": "0[0-7]{3}",
        "EnvironmentFile": "-?/.+",
        "ExecStart": "/.+",
        "Restart": "no|always|on-success|on-failure|on-abnormal|on-abort|on-watchdog",
        "RestartSec": r"\d+",
        "SuccessExitStatus": r"\d+",
        "TimeoutStopSec": r"\d+",
        "NoNewPrivileges": _SWITCH,
        "ProtectSystem": "yes|no|full|strict",
        "ReadWritePaths": "-?/.+",
        "ProtectHome": "yes|no|read-only|tmpfs",
        "PrivateTmp": _SWITCH,
    },
    "Install": {"WantedBy": r"[\w.-]+\.target"},
}


def takes(words: Sequence[str]) -> None:
    """Parse a command without running it."""
    assert words[:3] == ["fwstore", "replicate", "worker"]
    group: Any = typer.main.get_command(make_app())
    command = group.commands["replicate"].commands["worker"]
    command.make_context("worker", list(words[3:]))


def sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """The settings of a unit file, in order; a name may be repeated."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            name = match[1]
            found[name] = []
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found[name].append((key, value))
    return found


def test_the_unit_starts_a_worker_and_lets_it_end() -> None:
    found = sections(UNIT.read_text(encoding="utf-8"))
    assert list(found) == ["Unit", "Service", "Install"]
    service = dict(found["Service"])
    assert len(service) == len(found["Service"])
    env, *words = shlex.split(service["ExecStart"])
    assert env == "/usr/bin/env"
    takes(words)
    assert (service["Restart"], service["SuccessExitStatus"]) == ("always", "130")


def test_the_unit_is_one_of_systemd() -> None:
    for section, settings in sections(UNIT.read_text(encoding="utf-8")).items():
        for name, value in settings:
            assert re.fullmatch(_UNIT[section][name], value), (name, value)


def test_instances_share_no_folder_and_their_metrics_can_be_read() -> None:
    """What a user of the moment writes is behind /var/lib/private, which nobody else may enter."""
    service = dict(sections(UNIT.read_text(encoding="utf-8"))["Service"])
    assert service["StateDirectory"].endswith("/%i")
    words = shlex.split(service["ExecStart"])
    assert words[words.index("--metrics") + 1].startswith("${STATE_DIRECTORY}/")
    assert int(service["StateDirectoryMode"], 8) & 0o005 == 0o005
    assert int(service["UMask"], 8) & 0o004 == 0


def test_nobody_waits_longer_for_a_worker_than_the_examples_say() -> None:
    """Systemd, Slurm and Kubernetes kill a worker that has not ended."""
    service = dict(sections(UNIT.read_text(encoding="utf-8"))["Service"])
    _, job = yaml.safe_load_all(PODS.read_text(encoding="utf-8"))
    patience_s = [
        int(service["TimeoutStopSec"]),
        job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        int(re.findall(r"--signal=B:TERM@(\d+)", BATCH.read_text(encoding="utf-8"))[0]),
    ]
    assert max(patience_s) < Limits().request_timeout_s
    assert (
        "up to two minutes (`Limits.request_timeout_s`); the examples have it killed earlier"
        in (" ".join((DEPLOY / "README.md").read_text(encoding="utf-8").split()))
    )
    assert Limits().request_timeout_s == 120


def test_the_batch_script_is_one() -> None:
    done = subprocess.run(["bash", "-n", str(BATCH)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = BATCH.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    # What stands behind the first command is not read.
    assert directives == [line for line in lines[:first] if line.startswith("#SBATCH")]
    names = []
    for line in directives:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)
        assert match is not None, line
        names.append(match[1])
    assert sorted(names) == sorted(_SBATCH)
    (command,) = (line for line in lines if line.startswith("exec "))
    takes(shlex.split(command)[1:])


def test_the_job_is_one_of_kubernetes() -> None:
    settings, job = yaml.safe_load_all(PODS.read_text(encoding="utf-8"))
    jsonschema.validate(job, SCHEMA)
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    takes([*container["command"], *container["args"]])
    assert (settings["apiVersion"], settings["kind"]) == ("v1", "ConfigMap")
    (volume,) = job["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
    topology = Topology.parse(settings["data"]["topology.toml"], "topology.toml")
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert given["FWSTORE_SITE"] in topology.sites
    # With two, the loss of either would stop both.
    assert len(topology.witnesses) == 3
    (mount,) = container["volumeMounts"]
    assert given["FWSTORE_REPO"] == f"{mount['mountPath']}/topology.toml"


def test_the_schema_refuses_what_kubernetes_does() -> None:
    _, job = yaml.safe_load_all(PODS.read_text(encoding="utf-8"))
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="Always"):
        jsonschema.validate(job, SCHEMA)


def test_the_readme_names_every_example() -> None:
    named = set(re.findall(r"\]\(([^)]+)\)", (DEPLOY / "README.md").read_text(encoding="utf-8")))
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    assert named == files - {"README.md"}
