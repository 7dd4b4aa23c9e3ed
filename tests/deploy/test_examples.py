"""The examples of deploy/: as their systems want them, and with commands that the command line takes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from fwstore import Topology
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


@pytest.mark.slow
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Where systemd is not installed, its absence is all that can be told."""
    analyze = shutil.which("systemd-analyze")
    unit = shutil.copy(UNIT, tmp_path / "fwstore-replicate@1.service")
    words = [analyze, "verify", "--man=no", str(unit)] if analyze else ["true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    told = [line for line in done.stderr.splitlines() if "fwstore-replicate" in line]
    assert (done.returncode, told) == (0, [])


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
