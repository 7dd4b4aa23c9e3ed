"""A Ceph gateway on loopback: the one that the tests start, warm, with its requests counted.

Invariant: what is measured on it never pays for what a gateway does once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TESTS = str(Path(__file__).resolve().parents[2] / "tests")
_LOG_S = 1.5
_WARM_BYTES = 12 << 20


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of a gateway that nobody else uses."""

    name: str
    log: Path
    store: Any

    def requests(self) -> int:
        """Return how many requests the gateway answered so far."""
        # The gateway writes its log a little later.
        time.sleep(_LOG_S)
        return sum("beast: 0x" in line for line in self.log.read_text().splitlines())


def add_tests() -> None:
    """Let the servers that tests start be imported."""
    if _TESTS not in sys.path:
        sys.path.append(_TESTS)


@contextmanager
def warm_gateway() -> Iterator[Any]:
    """Run a gateway until the block ends; the environment holds its keys."""
    add_tests()
    import obstore

    from support.ceph import serve_rgw

    with serve_rgw() as gateway:
        os.environ |= {k: v for k, v in gateway.environment.items() if k != "AWS_ENDPOINT_URL"}
        store = client_of(gateway.endpoint, gateway.make_bucket())
        # The first upload in parts makes the gateway create its pools.
        obstore.put(store, "warm", bytes(_WARM_BYTES))
        obstore.delete(store, "warm")
        yield gateway


@contextmanager
def warm_bucket() -> Iterator[Bucket]:
    """Run a gateway until the block ends; the environment names it and its keys."""
    with warm_gateway() as gateway:
        os.environ |= gateway.environment
        name = gateway.make_bucket()
        yield Bucket(name, gateway.log, client_of(gateway.endpoint, name))


def client_of(endpoint: str, bucket: str) -> Any:
    """Return a plain client of a bucket."""
    from obstore.store import S3Store

    return S3Store(bucket, endpoint=endpoint, client_options={"allow_http": True})
