"""Nothing that is loaded is run: no pickle, no process, no framework that was not asked for."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import fwstore
from support.oracle import make_state

_LOAD = """
import sys
{before}
import fwstore
assert not {{"torch", "boto3", "fsspec", "zarr"}} & set(sys.modules) or {torch}, "fwstore imports a framework"
def forbid(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        raise SystemExit(f"{{event}} {{arguments}}")
sys.addaudithook(forbid)
with fwstore.open({url!r}) as repository:
    for checkpoint in repository.run("run").checkpoints():
        checkpoint.load(); checkpoint.state(); checkpoint.position; checkpoint.per_rank(0)
        for name in checkpoint.tensors: checkpoint.tensors[name][...]
        print(checkpoint.step)
import pickle
try:
    pickle.loads(b"cos\\nsystem\\n.")
except SystemExit as noticed:
    print(str(noticed).split()[0])
"""


def _load_in_a_process(url: str, *, torch: bool) -> list[str]:
    script = _LOAD.format(before="import torch" if torch else "", torch=torch, url=url)
    root = Path(fwstore.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'integrations'}"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_load_unpickles_nothing_and_starts_nothing(run: fwstore.Run, place: Path) -> None:
    state = {
        **make_state(2),
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "bytes": b"cos\nsystem\n(S'true'\ntR.",
        "scalar": np.float32(3),
        "set": {1, (2, "x")},
    }
    with run.writer(codec="zstd") as writer:
        writer.save(2, state, position={"at": 1}, per_rank={"rng": b"\x80\x04N."}).result()
    assert _load_in_a_process(str(place), torch=False) == ["1", "2", "pickle.find_class"]


@pytest.mark.slow
def test_a_load_of_torch_tensors_unpickles_nothing(run: fwstore.Run, place: Path) -> None:
    import torch

    state = {
        "w": torch.ones(3, dtype=torch.bfloat16),
        "dtype": torch.float16,
        "size": torch.Size([2]),
    }
    with run.writer() as writer:
        writer.save(2, state).result()
    assert _load_in_a_process(str(place), torch=True) == ["1", "2", "pickle.find_class"]
