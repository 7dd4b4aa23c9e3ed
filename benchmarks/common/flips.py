"""Flips single bits of a stored checkpoint and loads it: ``python -m benchmarks.common.flips SUBJECT FOLDER COUNT``.

Invariant: every flip is undone before the next, and each load begins with zeros; so "right" means that the load wrote
every byte anew. A flip may kill the process that loads: whoever started it goes on behind that flip.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import fwstore
from benchmarks.common.state import State, empty_like, same
from benchmarks.peers import PEERS
from benchmarks.peers.base import Adapter, Peer
from benchmarks.peers.torch_save import TorchSave

STEP = 1
WHOLE = "whole"
OURS = "fwstore sync"
ADAPTERS: dict[str, Adapter[Peer]] = {**PEERS, "torch.save": Adapter(TorchSave, "torch")}
TENSOR, REST = "tensor bytes", "all other bytes"
# A load that takes so long never ends: of processor time, as machines sleep, and far more by the clock.
_LOAD_S = 60
_ASLEEP_S = 1800
# Less than machines have: a length that was flipped may ask for anything.
_MEMORY_BYTES = 12 << 30


@dataclass(frozen=True)
class Flip:
    """One bit of one stored file."""

    path: Path
    place: int
    kind: str


def make_state() -> State:
    """Return tensors of several dtypes whose bytes can be found again."""
    generator = torch.Generator().manual_seed(4)
    return {
        "model.weight": torch.randn(16, 24, generator=generator),
        "model.bias": torch.randn(24, generator=generator, dtype=torch.float64),
        "optimizer.step": torch.randint(1 << 40, (8,), generator=generator),
    }


def flips(folder: Path, state: State, count: int) -> list[Flip]:
    """Return the places to flip: up to so many of each kind, evenly over all files."""
    found: dict[str, list[Flip]] = {TENSOR: [], REST: []}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        inside = set(_places(content, state))
        for place in range(len(content)):
            kind = TENSOR if place in inside else REST
            found[kind].append(Flip(path, place, kind))
    return [flip for each in found.values() for flip in each[:: max(1, -(-len(each) // count))]]


def _places(content: bytes, state: State) -> Iterator[int]:
    for tensor in state.values():
        stored = tensor.numpy().tobytes()
        start = content.find(stored)
        if start >= 0:
            yield from range(start, start + len(stored))


def load(subject: str, folder: Path) -> Callable[[State], None]:
    """Return what fills tensors as a new process would."""
    if subject == OURS:
        # The peer of the benchmarks is a writer; who only loads changes nothing in the store.
        def read(into: State) -> None:
            with fwstore.open(folder / "store") as repository:
                repository.run("bench")[STEP].load(into=into)

        return read

    def load_as_peer(into: State) -> None:
        with ADAPTERS[subject].make(folder) as peer:
            peer.load(into, STEP)

    return load_as_peer


def outcome(read: Callable[[State], None], saved: State, flip: Flip) -> str:
    """Flip a bit, load, and undo it; say what came of it."""
    whole = flip.path.read_bytes()
    damaged = bytearray(whole)
    damaged[flip.place] ^= 1 << flip.place % 8
    flip.path.write_bytes(damaged)
    into = empty_like(saved)
    noticed = True
    _allow(_LOAD_S, _ASLEEP_S)
    # Any error at all is a damage that was noticed; that of DCP is no `Exception`.
    with suppress(BaseException):
        read(into)
        noticed = False
    _allow(0, 0)
    flip.path.write_bytes(whole)
    if noticed:
        return "detected"
    return "harmless" if same(into, saved) else "silently wrong"


def _allow(processor_s: int, clock_s: int) -> None:
    """Let signals end this process unless it goes on in time; 0: for ever."""
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.alarm(clock_s)


def prepare(subject: str, folder: Path, state: State, count: int) -> None:
    """Save a checkpoint, keep a copy of it, and write down what will be flipped."""
    stored = folder / "stored"
    stored.mkdir(parents=True)
    with ADAPTERS[subject].make(stored) as peer:
        peer.save(state, STEP)()
    shutil.copytree(stored, folder / WHOLE)
    chosen = [(str(f.path), f.place, f.kind) for f in flips(stored, state, count)]
    (folder / "plan.json").write_text(json.dumps(chosen))


def main() -> None:
    """Save once; then answer with one line per flip, beginning behind those that are answered."""
    subject, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    state, stored, answers = make_state(), folder / "stored", folder / "answers"
    plan = folder / "plan.json"
    if not plan.exists():
        prepare(subject, folder, state, count)
    # Whoever was killed by a flip could not undo it.
    shutil.rmtree(stored)
    shutil.copytree(folder / WHOLE, stored)
    read = load(subject, stored)
    done = len(answers.read_text().splitlines()) if answers.exists() else 0
    for path, place, kind in json.loads(plan.read_text())[done:]:
        found = outcome(read, state, Flip(Path(path), place, kind))
        with answers.open("a") as lines:
            lines.write(f"{kind}: {found}\n")


if __name__ == "__main__":
    main()
