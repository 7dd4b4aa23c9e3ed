"""Two object stores and the link between them: moto servers and a shaping proxy, each in a process of its own.

Invariant: whoever copies reads the source over the link and nothing else crosses it; what crossed is counted on the wire,
requests and repetitions included.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.common.gateway import add_tests

BUCKET = "bed"


@dataclass(frozen=True)
class Wire:
    """A link in another process.

    Attributes:
        port: Where it listens.
    """

    port: int
    _ask: IO[str]
    _answers: IO[str]

    def passed(self) -> int:
        """Return the bytes that crossed it so far, both ways."""
        self._ask.write("\n")
        self._ask.flush()
        return int(self._answers.readline())


@dataclass(frozen=True)
class Bed:
    """A source and a target.

    Attributes:
        source: Endpoint of the source without the link: only to fill it.
        far: The same over the link.
        target: Endpoint of the target.
        wire: The link.
    """

    source: str
    far: str
    target: str
    wire: Wire

    def store(self, endpoint: str) -> Any:
        """Return a plain client of the bucket at an endpoint."""
        from obstore.store import S3Store

        return S3Store(BUCKET, endpoint=endpoint, client_options={"allow_http": True})


@contextmanager
def make_bed(*, bits_per_s: float, round_trip_s: float) -> Iterator[Bed]:
    """Run two servers with an empty bucket each, and the link, until the block ends."""
    add_tests()
    from support.moto import serve_moto

    with ExitStack() as stack:
        source, target = (stack.enter_context(serve_moto()) for _ in range(2))
        os.environ |= {k: v for k, v in source.environment.items() if k != "AWS_ENDPOINT_URL"}
        for server in (source, target):
            server.make_bucket(BUCKET)
        port = int(source.endpoint.rpartition(":")[2])
        wire = stack.enter_context(_wire(port, bits_per_s / 8, round_trip_s / 2))
        yield Bed(source.endpoint, f"http://127.0.0.1:{wire.port}", target.endpoint, wire)


@contextmanager
def _wire(port: int, bytes_per_s: float, delay_s: float) -> Iterator[Wire]:
    command = [sys.executable, "-m", "benchmarks.common.bed"]
    process = subprocess.Popen(
        [*command, str(port), str(bytes_per_s), str(delay_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Wire(int(process.stdout.readline()), process.stdin, process.stdout)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Be a link: print the port, then answer every line with the bytes that passed."""
    from fwstore_demo.link import Link

    port, bytes_per_s, delay_s = sys.argv[1:]
    link = Link(int(port), bytes_per_s=float(bytes_per_s), delay_s=float(delay_s))
    print(link.port, flush=True)
    for _ in sys.stdin:
        print(link.bytes_passed, flush=True)


if __name__ == "__main__":
    main()
