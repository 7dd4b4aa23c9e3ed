"""Commands on several sites: a topology of directories, replicated, looked at, explained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fwstore
from fwstore_cli.exits import ExitCode
from fwstore_cli.main import run
from support.commands import Outcome, make_state

At = Callable[..., Outcome]


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """Two sites, of which `near` has steps 10 and 20 of run gpt, and a witness."""
    file = tmp_path / "sites.toml"
    file.write_text(
        """
        name = "two"
        [sites.near]
        store = "near"
        [sites.far]
        store = "far"
        [sites.third]
        store = "third"
        role = "witness"
        [[links]]
        from = "near"
        to = "far"
        cap = "80 Mbit/s"
        """,
        encoding="utf-8",
    )
    with fwstore.open(file, site="near") as opened, opened.run("gpt").writer() as writer:
        for step in (10, 20):
            writer.save(step, make_state(step)).result()
    return file


@pytest.fixture
def at(topology: Path, capsys: pytest.CaptureFixture[str]) -> At:
    """Runs one command in this process at a site."""

    def run_command(site: str, *words: object) -> Outcome:
        capsys.readouterr()
        code = run([*map(str, words), "-C", str(topology), "--site", site])
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return run_command


def test_once_brings_everything_newest_first(at: At) -> None:
    report = at("far", "replicate", "once", "--json").value
    assert [(c["run"], c["step"], c["source"]) for c in report["copied"]] == [
        ("gpt", 20, "near"),
        ("gpt", 10, "near"),
    ]
    assert (report["left"], report["troubles"]) == ([], [])
    assert [row["step"] for row in at("far", "ls", "gpt", "--json").value] == [10, 20]
    assert "0 checkpoints brought" in at("far", "replicate", "once").errors


def test_plan_and_explain_tell_why(at: At) -> None:
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


def test_a_plan_that_could_not_look_everywhere_says_so(at: At, topology: Path) -> None:
    at("far", "replicate", "once")
    shutil.rmtree(topology.parent / "near")
    with pytest.warns(UserWarning, match="near is silent"):
        told = at("far", "replicate", "plan")
    assert told.code == ExitCode.UNAVAILABLE
    assert "near: site near is silent" in told.errors


def test_status_tells_the_lag_before_and_after(at: At) -> None:
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


def test_resume_plan_tells_where_bytes_come_from(at: At) -> None:
    plan = at("far", "resume-plan", "gpt", "--json").value
    assert (plan["step"], [source["site"] for source in plan["sources"]]) == (20, ["far", "near"])
    assert plan["seconds"] == pytest.approx(plan["wan_bytes"] / 10_000_000)
    assert "80 Mbit/s" in at("far", "resume-plan", "gpt").output
    at("far", "replicate", "once")
    assert at("far", "resume-plan", "gpt", "--json").value["wan_bytes"] == 0
    assert at("far", "resume-plan", "other").code == ExitCode.NOT_FOUND


def test_verify_heals_a_site_and_keeps_its_bad_bytes_until_they_are_removed(
    at: At, tmp_path: Path
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


def test_verify_tells_what_it_could_not_heal(at: At, tmp_path: Path) -> None:
    at("far", "replicate", "once")
    for site in ("near", "far"):
        next((tmp_path / site / "meta").rglob("leaf-*")).write_bytes(b"")
    left = at("far", "verify", "--repair")
    assert left.code == ExitCode.CORRUPT
    assert "near does not have the bytes that were written" in " ".join(left.output.split())
    assert "of them left" in left.errors


def test_the_graph_tells_at_which_site_a_term_began(at: At, topology: Path) -> None:
    with fwstore.open(topology, site="far") as opened, opened.run("gpt").writer() as writer:
        writer.save(30, make_state(30)).result()
    for site in ("near", "far"):
        drawn = at(site, "log", "gpt", "--graph").output
        assert re.search(r"begun by \S.* at far, after step 20", drawn)
        assert re.search(r"begun by \S.* at near, from the beginning", drawn)
        assert [line[0] for line in drawn.splitlines()[1:]] == ["*", "=", "*", "*", "="]


def test_a_worker_tells_events_and_writes_metrics(at: At, tmp_path: Path) -> None:
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
    text = metrics.read_text(encoding="utf-8")
    assert "fwstore_replication_rounds_total 2\n" in text
    assert 'fwstore_replication_copied_checkpoints_total{run="gpt",source="near"} 2\n' in text
    assert 'fwstore_site_missing_checkpoints{run="gpt",site="far",age="1min"} 0\n' in text
    assert 'fwstore_link_cap_bytes_per_second{source="near"} 10000000\n' in text
    assert 'fwstore_site_newest_step{run="gpt",site="far"} 20\n' in text
    assert 'fwstore_site_up{site="third"} 1\n' in text
    check_exposition(text)
    assert [path.name for path in tmp_path.glob("*prom*")] == ["fwstore.prom"]
    assert "began" in at("far", "replicate", "worker", "--rounds", 1).errors


def check_exposition(text: str) -> None:
    """Every sample follows the help and the type of its family; names and labels are well formed."""
    family = ""
    for line in text.splitlines():
        if line.startswith("# "):
            _, keyword, family, rest = line.split(" ", 3)
            assert keyword in ("HELP", "TYPE")
            assert keyword == "HELP" or rest in ("gauge", "counter")
            continue
        match = re.fullmatch(r"([a-z_]+)(\{([a-z_]+=\"[^\"]*\",?)+\})? (\S+)", line)
        assert match is not None, line
        assert match[1] == family
        float(match[4])


def test_a_site_that_is_gone_is_told_and_tried_again(at: At, topology: Path) -> None:
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


def test_metrics_that_cannot_be_written_are_told(at: At, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "fwstore.prom"
    told = at("far", "replicate", "worker", "--rounds", 1, "--metrics", path)
    assert told.code == 0
    assert "unmeasured" in told.errors
