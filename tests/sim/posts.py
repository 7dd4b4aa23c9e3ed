"""Ranks of a job of a play that stand at another site than its home.

Invariant: what holds their packs there is production; only who writes which pack is made up.
"""

from __future__ import annotations

import msgspec

from fwstore.base.errors import FwstoreError, NotFound
from fwstore.checkpoint.outposts import Outposts
from fwstore.codec.hashing import ContentHash
from fwstore.format.packtable import PackInfo
from fwstore.format.record import Commit
from fwstore.log.lineage import birth, claim_name, open_log, read_lineage
from fwstore.log.log import Log
from fwstore.log.site import Site
from sim.knowing import sites_of
from sim.process import Process
from support.lineages import Saver, read_packs


class Post:
    """The place of those ranks.

    Args:
        process: Plays the job.
        saver: Writes at home.
        site: Where they stand.

    Attributes:
        packs: What they wrote or used in the last save.
    """

    def __init__(self, process: Process, saver: Saver, site: Site) -> None:
        self._process = process
        self._saver = saver
        self._site = site
        self._log: Log | None = None
        self.packs: list[PackInfo] = []

    def write(self) -> list[PackInfo]:
        """Write the packs of the next save, some of the last one used again."""
        rng = self._process.rng
        self._open()
        again = [pack for pack in self.packs if rng.random() < 0.5]
        fresh = [
            self._saver.pack(rank, self._site.store) for rank in range(8, 8 + rng.choice((1, 2)))
        ]
        return [*again, *fresh]

    def hold(self, commit: Commit, packs: list[PackInfo]) -> Commit:
        """Have packs held for a commit."""
        term = self._saver.term
        home = term.log.fold.opens[term.number].home
        outposts = Outposts(term.log, home, lambda _: self._open(), ContentHash())
        held = outposts.hold(commit.snapshot, term.number, commit.save, {self._site.uuid: packs})
        self.packs = packs
        return msgspec.structs.replace(commit, holds=held)

    def _open(self) -> Log:
        """Return the log there; the lineage comes there first."""
        if self._log is None:
            keys, runtime = self._saver.term.keys, self._process.runtime
            lineage = read_lineage(self._process.store, keys)
            if lineage is None:
                raise NotFound(f"{keys.label} is not to be seen, which a stale answer can do")
            claim_name(self._site.store, keys.name, runtime)
            birth(self._site.store, lineage, runtime)
            self._log = open_log(self._site.store, lineage, runtime, read_packs)
        return self._log


def post_of(process: Process, saver: Saver) -> Post | None:
    """Return where else ranks of a job stand, if anywhere."""
    world = process.world
    # What only a site had that is given up is lost, and a save that counts on it never whole.
    homes = {*world.topology.homes} - {world.given_up}
    if len(world.topology.homes) < 2 or process.rng.random() < 0.5:
        return None
    try:
        others = [site for site in sites_of(process).reachable() if site.name in homes]
    except FwstoreError:
        return None
    return Post(process, saver, process.rng.choice(others)) if others else None
