"""Two buckets of a Ceph gateway and the link between them: a shaping proxy in a process of its own.

Invariant: whoever copies reads the source over the link and nothing else crosses it; what crossed is counted on the wire,
requests and repetitions included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.common.gateway import client_of


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
class Place:
    """A bucket and one way to it."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        """Of a repository there."""
        return f"s3://{self.bucket}/store?endpoint={self.endpoint}"

    def client(self) -> Any:
        """Return a plain client of the bucket."""
        return client_of(self.endpoint, self.bucket)


@dataclass(frozen=True)
class Bed:
    """A source and a target.

    Attributes:
        source: Without the link: only to fill it.
        far: The same bucket over the link.
        target: Where everything is to be.
    """

    source: Place
    far: Place
    target: Place

    def as_json(self) -> str:
        """Describe it to another process."""
        return json.dumps(asdict(self))


def bed_from_json(text: str) -> Bed:
    """Return the bed that `as_json` described."""
    return Bed(**{name: Place(**place) for name, place in json.loads(text).items()})


@contextmanager
def make_bed(gateway: Any, bits_per_s: float, round_trip_s: float) -> Iterator[tuple[Bed, Wire]]:
    """Make two empty buckets of a running gateway, and a link that lasts until the block ends."""
    source, target = (Place(gateway.endpoint, gateway.make_bucket()) for _ in range(2))
    port = int(gateway.endpoint.rpartition(":")[2])
    with _wire(port, bits_per_s / 8, round_trip_s / 2) as wire:
        far = Place(f"http://127.0.0.1:{wire.port}", source.bucket)
        yield Bed(source, far, target), wire


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
