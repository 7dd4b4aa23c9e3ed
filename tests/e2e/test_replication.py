"""Real checkpoints of one directory, replicated to another and loaded there when the first is gone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fwstore
from fwstore.base.config import Limits
from fwstore.base.units import MIB
from fwstore.log.site import Site, create_site, open_site
from fwstore.sched import Runtime, system_runtime
from fwstore.store.directory import DirectoryStore
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator
from fwstore.wan.reports import ReplicationReport

State = dict[str, Any]
LIMITS = Limits(
    threads=4,
    pack_bytes=3 * MIB,
    part_bytes=MIB,
    read_request_bytes=MIB // 4,
    inflight_bytes=4 * MIB,
)


def make_state(step: int) -> State:
    """Four tensors, two of which never change; plain values that do."""
    frozen, trained = np.random.default_rng(1), np.random.default_rng(step)
    return {
        "embedding": frozen.standard_normal((512, 512)),
        "reference": frozen.integers(0, 255, (1 << 21,), np.uint8),
        "wq": trained.standard_normal((512, 512)),
        "wo": trained.standard_normal((700, 450)).astype(np.float32),
        "step": step,
        "rng": {"seed": [step, None, 2.5], "name": "pcg"},
    }


def same(one: State, other: State) -> bool:
    arrays = ("embedding", "reference", "wq", "wo")
    plain = {key: value for key, value in one.items() if key not in arrays}
    return plain == {k: v for k, v in other.items() if k not in arrays} and all(
        one[key].dtype == other[key].dtype and one[key].tobytes() == other[key].tobytes()
        for key in arrays
    )


def replicate(near: Path, far: Path, runtime: Runtime, received: list[int]) -> ReplicationReport:
    """One round from one directory to the other by a new worker."""
    here = create_site(DirectoryStore(far, runtime), runtime, name="far")
    there = open_site(DirectoryStore(near, runtime))
    source = Source(Site(there.uuid, "near", there.store), received.append)
    report = Replicator(Destination(own=here, sources=(source,), runtime=runtime)).once()
    assert not report.troubles
    return report


@pytest.fixture
def runtime() -> Any:
    runtime = system_runtime(LIMITS)
    yield runtime
    runtime.scheduler.close()


def test_saved_here_loaded_there_though_here_is_gone(tmp_path: Path, runtime: Runtime) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    received: list[int] = []
    per_round = []
    with fwstore.open(near, limits=LIMITS) as repo, repo.run("gpt").writer() as writer:
        for step in range(0, 50, 10):
            writer.save(step, make_state(step), metrics={"loss": 1.0 / (step + 1)}).result()
            received.clear()
            report = replicate(near, far, runtime, received)
            assert [copied.step for copied in report.copied] == [step]
            per_round.append(sum(received))
        branch = repo.run("gpt").latest().load()
    shutil.rmtree(near)
    # Half of the bytes never change: they cross once.
    frozen = 512 * 512 * 8 + (1 << 21)
    fresh = 512 * 512 * 8 + 700 * 450 * 4
    assert frozen + fresh <= per_round[0] <= 1.01 * (frozen + fresh)
    for later in per_round[1:]:
        assert fresh <= later <= fresh + 60_000
    assert not (far / "staged").exists()
    with fwstore.open(far) as repo:
        run = repo.run("gpt")
        assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 10, 20, 30, 40]
        for checkpoint in run.checkpoints():
            assert same(checkpoint.load(), make_state(checkpoint.step))
        assert same(branch, make_state(40))
        assert repo.verify(level="data").problems == ()
        assert repo.gc(dry_run=True).bytes_freed == 0


def test_the_far_site_collects_by_its_own_rules(tmp_path: Path, runtime: Runtime) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    with fwstore.open(near, limits=LIMITS) as repo, repo.run("gpt").writer() as writer:
        for step in (0, 10, 20):
            writer.save(step, make_state(step)).result()
        replicate(near, far, runtime, [])
        with fwstore.open(far, limits=LIMITS) as there:
            assert there.gc(keep=fwstore.Keep(last=1)).bytes_freed > 2 * 512 * 512 * 8
            assert [c.step for c in there.run("gpt").checkpoints()] == [20]
        # What was given up there is not sent again, and what comes rests on what stayed.
        writer.save(30, make_state(30)).result()
        received: list[int] = []
        assert [c.step for c in replicate(near, far, runtime, received).copied] == [30]
        assert sum(received) < 512 * 512 * 8 + 700 * 450 * 4 + 60_000
        assert [c.step for c in repo.run("gpt").checkpoints()] == [0, 10, 20, 30]
    shutil.rmtree(near)
    with fwstore.open(far) as repo:
        for checkpoint in repo.run("gpt").checkpoints():
            assert same(checkpoint.load(), make_state(checkpoint.step))
        assert repo.verify(level="data").problems == ()


def test_a_fork_stands_under_its_own_name_and_its_base_crosses_once(
    tmp_path: Path, runtime: Runtime
) -> None:
    """At another site the packs of another lineage are stored under the borrower's prefix."""
    near, far, alone = tmp_path / "near", tmp_path / "far", tmp_path / "alone"
    with fwstore.open(near, limits=LIMITS) as repo:
        with repo.run("base").writer() as writer:
            writer.save(0, make_state(0)).result()
        repo.run("base").fork("tuned", at=0)
        with repo.run("tuned").writer() as writer:
            writer.save(10, {**make_state(10), "wq": make_state(0)["wq"]}).result()
    received: list[int] = []
    replicate(near, far, runtime, received)
    whole = 512 * 512 * 16 + (1 << 21) + 700 * 450 * 4
    # What base has brought is read here for the fork.
    assert sum(received) <= 1.02 * (whole + 700 * 450 * 4)
    here = create_site(DirectoryStore(alone, runtime), runtime)
    source = Source(open_site(DirectoryStore(near, runtime)))
    only = Replicator(Destination(own=here, sources=(source,), runtime=runtime))
    assert not only.once(["tuned"]).troubles
    shutil.rmtree(near)
    for place in (far, alone):
        with fwstore.open(place) as repo:
            latest = repo.run("tuned").latest()
            assert same(latest.load(), {**make_state(10), "wq": make_state(0)["wq"]})
            assert repo.verify(level="data").problems == ()
            assert repo.gc(dry_run=True).bytes_freed == 0
    assert not (alone / "packs" / "base@1").exists()
