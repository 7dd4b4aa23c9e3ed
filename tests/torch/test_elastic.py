"""A job under torchrun that loses a rank: the agents start all ranks again, and the run goes on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fwstore

SCRIPT = """
import os, signal, sys, time
import torch, torch.distributed as dist
import fwstore
from fwstore_torch import Saver

store, log = sys.argv[1:]
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
run = fwstore.open(store, limits=fwstore.Limits(commit_timeout_s=30.0)).run("job")
with Saver(run, {"model": model}, every=1, signals=()) as saver:
    start = saver.resume()
    for step in range(start, 6):
        with torch.no_grad():
            model.weight += 1
        handle = saver.save(step)
        if step == 3 and start == 0:
            handle.result()
            dist.barrier()
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
    handle.result()
with open(log, "a") as out:
    out.write(f"{start} {os.environ['TORCHELASTIC_RESTART_COUNT']}\\n")
"""

ONE_AGENT = ["--standalone", "--nproc-per-node=2"]
# Agents of several nodes count the failures of their own workers only.
TWO_AGENTS = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=job"]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(("agents", "counts"), [(1, ["1", "1"]), (2, ["0", "1"])])
def test_the_agents_restart_a_job_that_lost_a_rank(
    tmp_path: Path, agents: int, counts: list[str]
) -> None:
    script, log, store = tmp_path / "job.py", tmp_path / "log", tmp_path / "store"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    where = ONE_AGENT if agents == 1 else [*TWO_AGENTS, "--rdzv-endpoint", place]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "--local-addr=127.0.0.1"]
    command += ["--max-restarts=2", str(script), str(store), str(log)]
    # Gloo takes the addresses of dead ranks for those of live ones where starts share a c10d store.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(agents)
    ]
    try:
        for agent in running:
            _, told = agent.communicate(timeout=170)
            assert agent.returncode == 0, told[-3000:]
    finally:
        for agent in running:
            agent.kill()
    assert sorted(log.read_text().split("\n")) == ["", *(f"4 {count}" for count in counts)]
    run = fwstore.open(str(store)).run("job")
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 1, 2, 3, 4, 5]
    terms = [checkpoint.term for checkpoint in run.checkpoints()]
    assert terms[:4] == [1] * 4
    assert terms[4] == terms[5] > 1
