"""Who takes part in a protocol play: jobs, collectors, pinners, readers and watchers over the log itself.

What they write are stand-ins of checkpoints with real pack tables and small packs (`support.lineages`), so that a play
takes milliseconds; everything that decides is production.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from fwstore.base.errors import Conflict, Expired, Fenced, FwstoreError, NotFound, Unavailable
from fwstore.care.gc import GcOptions, collect
from fwstore.format.packtable import PackInfo, parse_pack_table
from fwstore.log.fold import uses_of
from fwstore.log.history import history
from fwstore.log.lineage import find
from fwstore.log.log import Log
from fwstore.log.pins import pin, unpin
from fwstore.log.term import Term
from fwstore.log.terms import Candidate, take_term
from fwstore.plan.retention import Keep
from sim.knowing import sites_of
from sim.posts import Post, post_of
from sim.process import Process
from sim.vigils import watch_over
from support.lineages import Saver, read_packs

RUN = "run"
LABEL = "run@1"


def take(process: Process, base: str | None = None) -> Term:
    """Win the next term of the run at the site of a process."""
    sites = sites_of(process)
    home = sites.join()
    witnesses, absent = sites.electors()
    return take_term(
        Candidate(
            name=RUN,
            home=home,
            witnesses=witnesses,
            absent=absent,
            sites=tuple(sites.reachable()),
            holder=process.name,
            read_packs=read_packs,
        ),
        process.runtime,
        base=base,
    )


def options(process: Process) -> GcOptions:
    """Return how the collectors of a play go about it."""
    return GcOptions(keep=Keep(last=process.world.keep_last), tails_s=-1e12)


def open_log(process: Process) -> Log:
    """Return the log of the run at the site of a process.

    Raises:
        NotFound: There is no run yet.
    """
    lineage = find(process.store, RUN)
    if lineage is None:
        raise NotFound("there is no run yet")
    log = Log(process.store, lineage.keys, lineage.lineage, process.runtime, read_packs)
    log.refresh()
    return log


def job(saves: int) -> Callable[[Process], None]:
    """Return a job that takes the next term and saves so many snapshots, some packs of which it uses again."""

    def job(process: Process) -> None:
        saver = Saver(take(process, _wanted(process)))
        vigil = watch_over(process, saver.term)
        packs = _packs_of_base(process, saver.term)
        post = post_of(process, saver)
        process.world.tally["opened"] += 1
        for _ in range(saves):
            process.pause(process.rng.expovariate(2))
            # Also packs of its older saves, which may be condemned at any moment.
            reuse = [pack for pack in packs if process.rng.random() < 0.4]
            try:
                called = process.clock.monotonic()
                packs += _save(process, saver, reuse, post)
                if vigil is not None:
                    vigil.judge(called)
            except Fenced:
                process.world.tally["fenced"] += 1
                if process.rng.random() < 0.7:
                    return
            except Conflict:
                # What was to be used again was collected: write everything anew.
                process.world.tally["conflict"] += 1
                packs = []
                if post is not None:
                    post.packs = []
            except FwstoreError as error:
                process.world.suffer(process, error)

    return job


def _wanted(process: Process) -> str | None:
    """Return what a job asks to go on from: seldom anything but the newest."""
    if process.rng.random() < 0.7:
        return None
    with suppress(FwstoreError):
        offered = open_log(process).fold.live()
        if offered:
            wanted = process.rng.choice(offered).id
            process.world.judge.asked.add(wanted)
            return wanted
    return None


def _save(
    process: Process, saver: Saver, reuse: list[PackInfo], post: Post | None
) -> list[PackInfo]:
    """Save a snapshot; return the packs that were written at home."""
    ranks, world = process.rng.choice((1, 1, 2)), process.world
    away: list[PackInfo] = []

    def elsewhere() -> list[PackInfo]:
        if post is not None:
            away.extend(post.write())
        return away

    commit, packs = saver.write((saver.save + 1) * 10, fresh=ranks, reuse=reuse, away=elsewhere)
    process.pause(process.rng.choice((0.0, 0.0, 3.0)))
    if post is not None and away:
        commit = post.hold(commit, away)
        world.tally["held"] += 1
        process.pause(process.rng.choice((0.0, 0.0, 3.0)))
    try:
        saver.parent = saver.term.commit(commit)
    except Unavailable:
        # Whether it was recorded is unknown; whoever asks again is told.
        world.tally["unknown"] += 1
        saver.parent = saver.term.commit(commit)
    world.judge.acknowledge(process.store.place.name, saver.term.keys.label, saver.parent.id)
    world.tally["acked"] += 1
    return packs[len(reuse) : len(reuse) + ranks]


def _packs_of_base(process: Process, term: Term) -> list[PackInfo]:
    """Return what a new job may use again: the packs of its base, where that lends any."""
    base = term.base
    if base is None or not term.lends:
        return []
    key = term.keys.pack_table(base.id, 0)
    for store in (process.store, *process.stores.values()):
        with suppress(FwstoreError):
            return [*parse_pack_table(store.get(key, limit_bytes=1 << 20))[1]]
    return []


def collector(process: Process) -> None:
    """Collects again and again, each time as a new process or going on with what it knows."""
    log = None
    for _ in range(process.rng.choice((2, 4, 6))):
        process.pause(process.rng.expovariate(0.5))
        try:
            if log is None or process.rng.random() < 0.3:
                log = open_log(process)
            collect(log, options(process))
        except FwstoreError as error:
            process.world.suffer(process, error)
        else:
            process.world.tally["collected"] += 1


def pinner(process: Process) -> None:
    """Pins something for a while; nobody else may lift it."""
    world = process.world
    for _ in range(3):
        process.pause(process.rng.uniform(1, 6))
        try:
            log = open_log(process)
            offered = log.fold.live()
            if offered:
                token = pin(log, process.rng.choice(offered).id, "simulated")
                world.judge.held.add(token)
                world.tally["pinned"] += 1
                process.pause(process.rng.expovariate(0.2))
                world.judge.held.discard(token)
                unpin(log, token)
        except FwstoreError as error:
            world.suffer(process, error)


def reader(process: Process) -> None:
    """Reads the packs of what is on offer; whoever finds them gone is told that they expired."""
    process.pause(process.rng.uniform(0, 12))
    log = open_log(process)
    for entry in log.fold.live():
        if entry.holds:
            # Packs of it are at another site; what reads through is not played.
            continue
        try:
            for key, size in read_packs(log.store, log.keys, uses_of(entry)):
                log.store.head(key)
                assert size
        except NotFound:
            missing = log.why_missing(entry.id)
            if not isinstance(missing, Expired) and "stale" not in process.world.weather.rates:
                process.world.accuse(f"a reader of {entry.id} was told {missing!r}")
    process.world.tally["read"] += 1


def watcher(process: Process) -> None:
    """Follows the log; what it takes for canonical never goes back to an older term."""
    log, newest = None, (0, 0)
    for _ in range(8):
        process.pause(process.rng.expovariate(0.7))
        try:
            log = log or open_log(process)
            chain = history(log.refresh())
        except FwstoreError:
            continue
        if chain:
            term = max([*log.fold.opens, chain[0].term])
            head = (term, chain[0].save if chain[0].term == term else 0)
            if head < newest:
                process.world.accuse(f"the canonical head went back from {newest} to {head}")
            newest = head
    process.world.tally["watched"] += 1
