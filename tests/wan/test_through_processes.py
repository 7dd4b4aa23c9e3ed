"""Real processes that load the same checkpoint at one site: every pack crosses once."""

from __future__ import annotations

from pathlib import Path

import pytest

import fwstore
from fwstore.format.blocks import BLOCK_BYTES
from support.lineages import keys_under
from support.ranks import fork
from support.through_jobs import LIMITS, load_through, state, write_topology


@pytest.mark.slow
def test_every_pack_crosses_once_for_four_processes(tmp_path: Path) -> None:
    topology = write_topology(tmp_path, ("atlanta", "wisconsin"))
    with fwstore.open(topology, site="atlanta", limits=LIMITS) as repository:
        with repository.run("run").writer() as writer:
            saved = writer.save(1, state()).result()
        assert saved is not None
        packs = {pack.key: pack.size_bytes for pack in saved.packs()}
    with fwstore.open(topology, site="wisconsin", limits=LIMITS) as repository:
        # The next job begins here: it brings the lineage, and none of the bytes.
        repository.run("run").writer().close()
        assert keys_under(repository.store, "packs/") == []
    told = [tmp_path / f"told-{number}" for number in range(4)]
    readers = [fork(load_through, str(topology), "wisconsin", str(path)) for path in told]
    for reader in readers:
        reader.join(120)
        assert reader.exitcode == 0
    received = sum(int(path.read_text(encoding="utf-8")) for path in told)
    # The headers of packs follow from their footers; the manifest came when the job looked what it begins with.
    assert received == sum(packs.values()) - BLOCK_BYTES * len(packs)
    with fwstore.open(topology, site="wisconsin", limits=LIMITS) as repository:
        assert set(keys_under(repository.store, "packs/")) == packs.keys()
        assert [c.step for c in repository.run("run").checkpoints()] == [1]
        assert keys_under(repository.store, "staged/") == []
