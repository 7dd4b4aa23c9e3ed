"""A job under torchrun that loses a rank: the agent starts all ranks again, and the run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fwstore

SCRIPT = """
import json, os, signal, sys
import torch, torch.distributed as dist
import fwstore
from fwstore_torch import Saver

store, log = sys.argv[1:]
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
# A fresh rendezvous for every start: gloo may wait for ever for the addresses of dead ranks.
dist.init_process_group(
    "gloo",
    init_method=f"file://{log}.{attempt}",
    rank=int(os.environ["RANK"]),
    world_size=int(os.environ["WORLD_SIZE"]),
)
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
with Saver(fwstore.open(store).run("job"), {"model": model}, every=1) as saver:
    start = saver.resume()
    for step in range(start, 6):
        with torch.no_grad():
            model.weight += 1
        handle = saver.save(step)
        if step == 3 and attempt == 0:
            handle.result()
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()
    handle.result()
if dist.get_rank() == 0:
    with open(log, "w") as out:
        json.dump({"start": start, "attempt": attempt}, out)
"""


@pytest.mark.dist
@pytest.mark.slow
def test_the_agent_restarts_a_job_that_lost_a_rank(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    log = tmp_path / "log.json"
    store = tmp_path / "store"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=2", str(script), str(store), str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(log.read_text()) == {"start": 4, "attempt": 1}
    run = fwstore.open(str(store)).run("job")
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 1, 2, 3, 4, 5]
    terms = [checkpoint.term for checkpoint in run.checkpoints()]
    assert terms[:4] == [1] * 4
    assert terms[4] == terms[5] > 1
