"""A process that replicates from one directory to another, to be killed: it tells every byte before it asks for it.

python copy_jobs.py NEAR FAR SLOW: a line per request, then `done`. SLOW seconds are slept before each.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fwstore.base.config import Limits
from fwstore.base.units import KIB
from fwstore.log.site import Site, create_site, open_site
from fwstore.sched import system_runtime
from fwstore.store.directory import DirectoryStore
from fwstore.wan.line import Destination, Source
from fwstore.wan.replicator import Replicator

PART = 256 * KIB
PACKS_AT_ONCE = 2
LIMITS = Limits(
    threads=2,
    part_bytes=PART,
    pack_bytes=16 * PART,
    inflight_bytes=PACKS_AT_ONCE * PART,
    read_request_bytes=PART // 4,
)


def main(near: str, far: str, slow: str) -> None:
    runtime = system_runtime(LIMITS)

    def tell(size_bytes: int) -> None:
        print(size_bytes, flush=True)
        time.sleep(float(slow))

    own = create_site(DirectoryStore(Path(far), runtime), runtime, name="far")
    there = open_site(DirectoryStore(Path(near), runtime))
    source = Source(Site(there.uuid, "near", there.store), tell)
    report = Replicator(Destination(own=own, sources=(source,), runtime=runtime)).once()
    assert not report.troubles, report.troubles
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
