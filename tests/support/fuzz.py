"""Coverage-guided fuzzing of every parser, by atheris: ``PYTHONPATH=tests python -m support.fuzz [SECONDS] [TARGET ...]``.

One process per target, as libFuzzer ends its process. An input that raises anything but an `FwstoreError`, takes more
than 5 s or more memory than allowed is left as a file in .fuzz/<target>, and the run fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from support.figures import keep

FOLDER = Path(".fuzz")
_INPUT_BYTES_MAX = 1 << 16
_INPUT_S = 5
# What the interpreter with numpy takes, 64 MiB, and twice the input.
_MEMORY_MB = 512


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    with atheris.instrument_imports(
        include=["fwstore", "fwstore_migrate"], enable_loader_override=False
    ):
        from fwstore import FwstoreError
        from support.parsers import TARGETS

    target, own = TARGETS[name], FOLDER / name
    corpus = own / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    scratch = Path(tempfile.mkdtemp(dir=own))

    def parse(payload: bytes) -> None:
        began = time.thread_time()
        with suppress(FwstoreError):
            target.parse(payload, scratch)
        # Not by the clock on the wall: machines sleep.
        assert time.thread_time() - began <= _INPUT_S

    options = (
        f"-max_total_time={seconds}",
        f"-max_len={_INPUT_BYTES_MAX}",
        f"-timeout={100 * _INPUT_S}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-artifact_prefix={own}/",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], *options, str(corpus)], parse)
    atheris.Fuzz()


def main(words: Sequence[str]) -> None:
    """Fuzz some targets, or all, one after another."""
    if words[:1] == ["--one"]:
        fuzz(words[1], int(words[2]))
        return
    from support.parsers import TARGETS

    seconds, names = words[0] if words else "600", words[1:] or list(TARGETS)
    failed = []
    for name in names:
        own = FOLDER / name
        own.mkdir(parents=True, exist_ok=True)
        with (own / "log").open("w") as log:
            command = [sys.executable, "-m", "support.fuzz", "--one", name, seconds]
            ended = subprocess.run(command, stdout=log, stderr=log, check=False)
        counts = {"targets": 1, "seconds": int(seconds), "inputs": _inputs(own / "log")}
        keep("fuzzing", name, counts | {"failures": int(ended.returncode != 0)})
        print(f"{name}: {'FAILED' if ended.returncode else 'ok'}, {counts}", flush=True)
        if ended.returncode:
            failed.append(name)
    sys.exit(f"see {FOLDER} for {', '.join(failed)}" if failed else 0)


def _inputs(log: Path) -> int:
    """Return how many inputs the fuzzer tried, as it says in its own words."""
    return sum(map(int, re.findall(r"number_of_executed_units: *(\d+)", log.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
