"""Commands on several sites: a topology of directories, replicated, looked at, explained."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

import fwstore
from fwstore_cli.exits import ExitCode
from fwstore_cli.main import run
from support.commands import Command, make_state


def test_once_brings_everything_newest_first(at: Command) -> None:
    report = at("far", "replicate", "once", "--json").value
    assert [(c["run"], c["step"], c["source"]) for c in report["copied"]] == [
        ("gpt", 20, "near"),
        ("gpt", 10, "near"),
    ]
    assert (report["left"], report["troubles"]) == ([], [])
    assert [row["step"] for row in at("far", "ls", "gpt", "--json").value] == [10, 20]
    assert "0 checkpoints brought" in at("far", "replicate", "once").errors


def test_plan_and_explain_tell_why(at: Command) -> None:
    (plan,) = at("far", "replicate", "plan", "--json").value
    assert [(c["step"], c["reason"], c["from"]) for c in plan["copy"]] == [
        (20, "newest", ["near"]),
        (10, "canonical history", ["near"]),
    ]
    assert "near" in at("far", "replicate", "plan").output
    places = at("far", "replicate", "explain", "gpt@10", "--json").value
    assert {p["site"]: (p["here"], p["verdict"]) for p in places} == {
        "near": (True, "saved there"),
        "far": (False, "will be copied (canonical history) from near"),
    }
    assert at("far", "replicate", "explain", "gpt").code == ExitCode.USAGE
    assert at("far", "replicate", "explain", "gpt@11").code == ExitCode.NOT_FOUND
    assert "will be copied" in at("far", "replicate", "explain", "gpt@10").output


def test_a_plan_that_could_not_look_everywhere_says_so(at: Command, topology: Path) -> None:
    at("far", "replicate", "once")
    shutil.rmtree(topology.parent / "near")
    with pytest.warns(UserWarning, match="near is silent"):
        told = at("far", "replicate", "plan")
    assert told.code == ExitCode.UNAVAILABLE
    assert "near: site near is silent" in told.errors


def test_status_tells_the_lag_before_and_after(at: Command) -> None:
    before = at("near", "status", "--json").value
    assert [site["name"] for site in before["sites"]] == ["near", "far", "third"]
    assert before["links"][0] == {"source": "near", "target": "far", "cap": 10_000_000.0}
    lags = {lag["site"]: lag for lag in before["runs"]}
    assert [one["step"] for one in lags["far"]["missing"]] == [20, 10]
    assert lags["far"]["bytes_missing"] > 800_000
    assert lags["near"]["missing"] == []
    shown = at("near", "status").output
    assert "80 Mbit/s" in shown
    assert re.search(r"gpt +near +20 +20 .*complete", shown)
    at("far", "replicate", "once")
    after = {lag["site"]: lag for lag in at("near", "status", "--json").value["runs"]}
    assert (after["far"]["newest_there"], after["far"]["forecast_s"]) == (20, 0.0)
    assert at("near", "status", "--run", "other", "--json").value["runs"] == []


def test_resume_plan_tells_where_bytes_come_from(at: Command) -> None:
    plan = at("far", "resume-plan", "gpt", "--json").value
    assert (plan["step"], [source["site"] for source in plan["sources"]]) == (20, ["far", "near"])
    assert plan["seconds"] == pytest.approx(plan["wan_bytes"] / 10_000_000)
    assert "80 Mbit/s" in at("far", "resume-plan", "gpt").output
    at("far", "replicate", "once")
    assert at("far", "resume-plan", "gpt", "--json").value["wan_bytes"] == 0
    assert at("far", "resume-plan", "other").code == ExitCode.NOT_FOUND


def test_verify_heals_a_site_and_keeps_its_bad_bytes_until_they_are_removed(
    at: Command, tmp_path: Path
) -> None:
    at("far", "replicate", "once")
    far, near = tmp_path / "far", tmp_path / "near"
    packs = sorted(path for path in (far / "packs").rglob("*") if path.is_file())
    bad = bytearray(packs[0].read_bytes())
    bad[90] ^= 1
    packs[0].write_bytes(bad)
    root = next((far / "meta").rglob("root"))
    root.unlink()
    found = at("far", "verify", "gpt", "--data")
    assert found.code == ExitCode.CORRUPT
    assert "`fwstore verify --repair`" in found.errors
    healed = at("far", "verify", "--data", "--repair", "--json")
    assert healed.code == ExitCode.OK
    repairs = {one["key"]: one for one in healed.value["repairs"]}
    keys = {path.relative_to(far).as_posix() for path in (packs[0], root)}
    assert {key for key, one in repairs.items() if one["sites"] == ["near"]} == keys
    assert all(problem["healed"] and problem["snapshot"] for problem in healed.value["problems"])
    place = repairs[packs[0].relative_to(far).as_posix()]["quarantined"]
    assert (far / place).read_bytes() == bad
    for path in (packs[0], root):
        assert path.read_bytes() == (near / path.relative_to(far)).read_bytes()
    whole = at("far", "verify", "--data")
    assert whole.code == ExitCode.OK
    assert "1 objects of bad bytes" in whole.errors
    assert "bad bytes" in at("far", "gc", "--quarantine").output
    assert not [path for path in (far / "quarantine").rglob("*") if path.is_file()]
    assert "quarantine" not in at("far", "verify").errors


def test_verify_tells_what_it_could_not_heal(at: Command, tmp_path: Path) -> None:
    at("far", "replicate", "once")
    for site in ("near", "far"):
        next((tmp_path / site / "meta").rglob("leaf-*")).write_bytes(b"")
    left = at("far", "verify", "--repair")
    assert left.code == ExitCode.CORRUPT
    assert "near does not have the bytes that were written" in " ".join(left.output.split())
    assert "of them left" in left.errors


def test_the_graph_tells_at_which_site_a_term_began(at: Command, topology: Path) -> None:
    with fwstore.open(topology, site="far") as opened, opened.run("gpt").writer() as writer:
        writer.save(30, make_state(30)).result()
    for site in ("near", "far"):
        drawn = at(site, "log", "gpt", "--graph").output
        assert re.search(r"begun by \S.* at far, after step 20", drawn)
        assert re.search(r"begun by \S.* at near, from the beginning", drawn)
        assert [line[0] for line in drawn.splitlines()[1:]] == ["*", "=", "*", "*", "="]


def test_a_worker_tells_events_and_writes_metrics(at: Command, tmp_path: Path) -> None:
    metrics = tmp_path / "fwstore.prom"
    words = ("replicate", "worker", "--rounds", 2, "--every", "0s", "--metrics", metrics)
    told = at("far", *words, "--json")
    assert told.code == 0
    events = [json.loads(line) for line in told.output.splitlines()]
    assert [event["event"] for event in events] == [
        "began",
        "copied",
        "copied",
        "fenced",
        "round",
    ]
    assert [event["step"] for event in events[1:3]] == [20, 10]
    assert {event["site"] for event in events} == {"far"}
    samples = samples_of(metrics.read_text(encoding="utf-8"))
    assert samples["fwstore_replication_rounds_total", ()] == 2
    assert samples["fwstore_replication_copied_checkpoints_total", ("gpt", "near")] == 2
    assert samples["fwstore_site_missing_checkpoints", ("1min", "gpt", "far")] == 0
    assert samples["fwstore_link_cap_bytes_per_second", ("near",)] == 10_000_000
    assert samples["fwstore_site_newest_step", ("gpt", "far")] == 20
    assert samples["fwstore_site_up", ("third",)] == 1
    assert [path.name for path in tmp_path.glob("*prom*")] == ["fwstore.prom"]
    assert "began" in at("far", "replicate", "worker", "--rounds", 1).errors


def samples_of(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the samples of an exposition by name and by the values of their labels, in the order of the names of these."""
    return {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_worker_tells_metrics_to_whoever_asks(topology: Path) -> None:
    command = [sys.executable, "-m", "fwstore_cli", "replicate", "worker", "--every", "0.2s"]
    where = ["-C", str(topology), "--site", "far", "--json", "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        events = map(json.loads, worker.stdout)
        port = next(event["port"] for event in events if event["event"] == "listening")
        next(event for event in events if event["event"] == "round")
        url = f"http://127.0.0.1:{port}/metrics"
        while not (samples := samples_of(urlopen(url, timeout=30).read().decode())):
            pass
        worker.terminate()
        assert worker.wait(60) == 130
    assert samples["fwstore_site_newest_step", ("gpt", "far")] == 20


@pytest.mark.parametrize("address", ["9464x", "here:", "1.2.3.4:99999", ":9464", ""])
def test_where_to_listen_must_be_an_address(at: Command, address: str) -> None:
    refused = at("far", "replicate", "worker", "--rounds", 1, "--listen", address)
    assert refused.code == ExitCode.USAGE
    assert "no address to listen at" in refused.errors


def test_a_site_that_is_gone_is_told_and_tried_again(at: Command, topology: Path) -> None:
    at("far", "replicate", "once")
    near = topology.parent / "near"
    gone = topology.parent / "elsewhere"
    shutil.move(near, gone)
    with pytest.warns(UserWarning, match="near is silent"):
        failed = at("far", "replicate", "once", "--json")
    assert failed.code == ExitCode.UNAVAILABLE
    (trouble,) = json.loads(failed.output)["troubles"]
    assert (trouble["site"], trouble["code"]) == ("near", "unavailable")
    with pytest.warns(UserWarning, match="near is silent"):
        states = {s["name"]: s for s in at("far", "status", "--json").value["sites"]}
    assert states["near"]["silent_since"] is not None
    assert "wiped" in states["near"]["reason"]
    with pytest.warns(UserWarning, match="near is silent"):
        late = at("far", "replicate", "run", "--every", "0.01s", "--deadline", "0.02s")
    assert late.code == ExitCode.UNAVAILABLE
    with pytest.warns(UserWarning, match="near is silent"):
        told = at("far", "replicate", "worker", "--rounds", 1, "--json")
    assert [json.loads(line)["event"] for line in told.output.splitlines()] == [
        "began",
        "trouble",
        "round",
    ]
    shutil.move(gone, near)
    assert at("far", "replicate", "run", "--every", "1s").code == 0


def test_a_site_must_be_named_where_there_are_several(
    topology: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["ls", "-C", str(topology)]) == ExitCode.USAGE
    assert "near or far" in capsys.readouterr().err
    monkeypatch.setenv("FWSTORE_SITE", "near")
    assert run(["ls", "-C", str(topology)]) == 0
    assert run(["ls", "-C", str(topology), "--site", "third"]) == ExitCode.USAGE


def test_metrics_that_cannot_be_written_are_told(at: Command, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "fwstore.prom"
    told = at("far", "replicate", "worker", "--rounds", 1, "--metrics", path)
    assert told.code == 0
    assert "unmeasured" in told.errors
