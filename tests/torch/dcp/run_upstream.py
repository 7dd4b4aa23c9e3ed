"""Runs PyTorch's own tests of torch.distributed.checkpoint on fwstore's storage.

Usage: python tests/torch/dcp/run_upstream.py DIRECTORY [pytest arguments]

DIRECTORY is ``test/distributed/checkpoint`` of a PyTorch source tree, which is not part of this project.
Its FileSystemWriter, FileSystemReader, FsspecWriter and FsspecReader are exchanged for StorageWriter and
StorageReader before any test is imported, in the ranks that the tests spawn as well. With ``--cpu`` as the
first pytest argument, tests that ask for several GPUs run on the CPU with gloo; devices that they name, and
numbers of ranks that they take from the number of GPUs (none: such a test passes without a rank), have to be
replaced in a copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ON_CPU = "FWSTORE_UPSTREAM_ON_CPU"
_SITE = "from run_upstream import exchange\nexchange()\n"


def exchange() -> None:
    """Exchange the storage classes of this process."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import _fsspec_filesystem, _storage_utils, filesystem

    from fwstore_torch.storage_reader import StorageReader
    from fwstore_torch.storage_writer import StorageWriter

    pairs = {"FileSystemWriter": StorageWriter, "FileSystemReader": StorageReader}
    for module in (dcp, filesystem, _storage_utils):
        vars(module).update(pairs)
    # Classes of their own: a test patches those of the file system and expects these to step in.
    vars(_fsspec_filesystem).update(
        FsspecWriter=_twin(StorageWriter, "FsspecWriter"),
        FsspecReader=_twin(StorageReader, "FsspecReader"),
    )
    if os.environ.get(_ON_CPU):
        _run_on_cpu()


def _twin(kind: type[Any], name: str) -> type[Any]:
    """Return a class that does the same and does not share patched attributes."""
    valid = kind.validate_checkpoint_id.__func__
    return type(name, (kind,), {"validate_checkpoint_id": classmethod(valid)})


def _run_on_cpu() -> None:
    """Let tests that ask for several GPUs run with gloo: the storage does not care."""
    import torch.distributed
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.testing._internal import common_distributed

    def keep(test: Callable[..., Any]) -> Callable[..., Any]:
        return test

    vars(common_distributed).update(
        skip_if_lt_x_gpu=lambda *_, **__: keep,
        requires_nccl=lambda: keep,
        requires_accelerator_dist_backend=lambda *_, **__: keep,
    )
    # Where torch compares sharded tensors it makes a flag on the device of this index.
    torch.accelerator.current_device_index = lambda: "cpu"  # type: ignore[assignment,return-value]
    start = torch.distributed.init_process_group

    def start_with_gloo(*args: Any, **kwargs: Any) -> None:
        if "backend" in kwargs:
            kwargs["backend"] = "gloo"
        start(*(("gloo", *args[1:]) if args else ()), **kwargs)

    torch.distributed.init_process_group = start_with_gloo
    wrap = FullyShardedDataParallel.__init__

    def wrap_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        wrap(self, *args, **{"device_id": torch.device("cpu"), **kwargs})

    setattr(FullyShardedDataParallel, "__init__", wrap_on_cpu)  # noqa: B010 - a method of torch


def main(arguments: list[str]) -> int:
    """Run the tests of a directory and return pytest's exit status."""
    directory, *rest = arguments
    environment = dict(os.environ)
    if rest[:1] == ["--cpu"]:
        rest = rest[1:]
        environment[_ON_CPU] = "1"
    with tempfile.TemporaryDirectory() as site:
        (Path(site) / "sitecustomize.py").write_text(_SITE)
        path = [site, str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(":")]
        environment["PYTHONPATH"] = ":".join(filter(None, path))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(rest or ["."])]
        return subprocess.run(command, cwd=directory, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
