"""One rank of the training job of the demo; started by `fwstore_demo.jobs`.

Invariant: what it prints per step - step, sample ids, loss in hexadecimal - is all that the comparison with
the undisturbed run looks at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fwstore
from fwstore import SaveHandle
from fwstore_demo.corpus import Samples, read_corpus
from fwstore_demo.model import Gpt
from fwstore_torch import Saver

WINDOW = 64
GLOBAL_BATCH = 6
LEARNING_RATE = 3e-4
SEED = 7


def build_model() -> nn.Module:
    """Return the sharded model; every rank makes the same weights from the same seed."""
    torch.manual_seed(SEED)
    model = Gpt(WINDOW)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, samples: Samples
) -> tuple[list[int], float]:
    """Take one step on this rank's part of the global batch; return sample ids and the mean loss."""
    ids = samples.take()
    mine = ids[dist.get_rank() :: dist.get_world_size()]
    inputs, targets = samples.tokens(mine)
    loss = model(inputs, targets) / (GLOBAL_BATCH * WINDOW)
    # Gradients are averaged over ranks; times their number they are the sum over the global batch.
    (loss * dist.get_world_size()).backward()
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach().to(torch.float64)
    dist.all_reduce(total)
    return ids, float(total)


def report(**event: object) -> None:
    """Write one event as a line of JSON, from rank 0."""
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def report_durable(pending: list[SaveHandle], *, wait: bool = False) -> None:
    """Report the saves that have become durable and forget them."""
    for handle in list(pending):
        if not (wait or handle.done()):
            continue
        handle.result()
        pending.remove(handle)
        figures = handle.statistics()
        report(
            event="saved",
            step=figures.step,
            blocked_s=figures.blocked_s,
            durable_s=figures.durable_s,
            logical=figures.bytes_logical,
            written=figures.bytes_written,
            reused=figures.bytes_reused,
        )


def run(arguments: argparse.Namespace) -> None:
    """Train from the newest checkpoint to the last step."""
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    samples = Samples(read_corpus(), WINDOW, GLOBAL_BATCH, SEED)
    parts = {"model": model, "optimizer": optimizer, "samples": samples}
    repository = fwstore.open(arguments.store)
    handles: list[SaveHandle] = []
    pending: list[SaveHandle] = []
    stands = dict(arguments.stand)
    with Saver(
        repository.run(arguments.run), parts=parts, every=arguments.every, keep=fwstore.Keep(last=2)
    ) as saver:
        start = saver.resume()
        report_start(saver, start, model)
        for step in range(start, arguments.steps):
            ids, loss = train_step(model, optimizer, samples)
            report(event="step", step=step, ids=ids, loss=loss.hex())
            handle = saver.step(step, metrics={"loss": loss})
            if handle is not None:
                handles.append(handle)
                pending.append(handle)
                report(event="saving", step=step)
            report_durable(pending)
            stand_still(stands, step, pending)
        report_durable(pending, wait=True)
    for handle in handles:
        report(event="freed", step=handle.step, freed=handle.statistics().bytes_freed)
    report(event="end", step=arguments.steps)


def report_start(saver: Saver, start: int, model: nn.Module) -> None:
    """Report with which step the job begins, and how long it took to come so far."""
    resumed = saver.resumed
    assert resumed is not None
    report(
        event="start",
        step=start,
        parameters=sum(p.numel() for p in model.parameters()),
        elect_s=resumed.elect_s,
        load_s=resumed.load_s,
    )


def stand_still(stands: dict[int, Path], step: int, pending: list[SaveHandle]) -> None:
    """Stand still after a step until its file is there; saves go on meanwhile."""
    while step in stands and not stands[step].exists():
        report_durable(pending)
        time.sleep(0.05)


def parse_stand(text: str) -> tuple[int, Path]:
    """Return step and file of ``STEP=FILE``."""
    step, _, path = text.partition("=")
    return int(step), Path(path)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument(
        "--stand",
        action="append",
        default=[],
        type=parse_stand,
        metavar="STEP=FILE",
        help="stand still after a step until a file is there; may be repeated",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["WORLD_SIZE"])))
    dist.init_process_group("gloo")
    try:
        run(arguments)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
