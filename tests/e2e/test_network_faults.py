"""Every trouble that a network can make, at every request of a save, a load, a resume and a collection.

The client, the wire and the servers are real; a proxy between them makes one trouble at one request. What is
left on the server is judged as after a crash: nothing acknowledged is lost, everything on offer loads bit by
bit, and the run goes on. `make soak` makes every trouble at every request, the usual run one in ten of these on each server, and others on the other.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

import fwstore
from fwstore.store.memory import MemoryStore
from support.aftermath import Act, Place, Promise, checkpoints, judge, run, save
from support.ceph import Gateway
from support.figures import Figures
from support.lineages import make_store
from support.lines import Line
from support.moto import MotoServer
from support.oracle import make_state, same
from support.processes import contents, process
from support.proxy import serve_proxy
from support.residue import offered
from support.trouble import (
    BROKEN,
    BUSY,
    EMPTY,
    HTML,
    SLOW_DOWN,
    Request,
    Rule,
    Trouble,
    no_trouble,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14400)]

TROUBLES: tuple[Trouble, ...] = (
    *("drop", "reset", "lose", "lose_reset", "cut_head", "cut_half", "cut", "halve", "short"),
    *("flip", "flip_sent", "strip", "twice", "again", "late"),
    *(BUSY, SLOW_DOWN, BROKEN, HTML, EMPTY),
)
SILENCES: tuple[Trouble, ...] = ("stall", "lose_stall", "freeze")
LANDING = ("late", "again")
ENDINGS = ("done", "unavailable")
ONE_IN = 10
SEED = 7
DEADLINE_S = 300.0
LIMITS = fwstore.Limits(request_timeout_s=20.0, threads=2)
HURRIED = fwstore.Limits(request_timeout_s=1.0, threads=2)


def resume(repository: fwstore.Repository) -> None:
    with repository.run("run").writer() as writer:
        assert writer.base is not None
        assert same(writer.base.load(), make_state(writer.base.step))


def load(repository: fwstore.Repository) -> None:
    checkpoint = repository.run("run").latest()
    assert checkpoint.step == 1
    assert same(checkpoint.load(), make_state(checkpoint.step))


def collect(repository: fwstore.Repository) -> None:
    repository.gc(keep=fwstore.Keep(last=1))


@dataclass(frozen=True)
class Work:
    """What a process does, and what it may change."""

    act: Act
    adds: frozenset[Place] = frozenset()
    removes: frozenset[Place] = frozenset()

    def promise(self, before: set[Place], *, acknowledged: bool) -> Promise:
        kept = (before - self.removes) | (self.adds if acknowledged else frozenset())
        again = self.act if self.removes else save("run")
        return Promise(frozenset(kept), frozenset(before | self.adds), self.adds, again)


WORKS = {
    "load": Work(load),
    "resume": Work(resume),
    "save": Work(save("run"), adds=frozenset({("run", 2)})),
    "collection": Work(collect, removes=frozenset({("run", 0)})),
}


@dataclass
class Storm:
    """Works that are disturbed on one line, and what was found.

    Attributes:
        line: To the server.
        origin: The state before each of them.
        before: The checkpoints there.
        checks_what_arrives: Whether the server compares what it gets with the digest in the signature; moto
            stores whatever comes.
        endings: How many ended in which way.
    """

    line: Line
    origin: MemoryStore
    before: set[Place]
    checks_what_arrives: bool
    endings: Counter[str] = field(default_factory=Counter)
    _judged: set[tuple[frozenset[tuple[str, bytes]], bool]] = field(default_factory=set)

    def requests(self, work: Work) -> list[Request]:
        """What the work asks when nothing disturbs it."""
        prefix = self.line.lay(self.origin)
        self.line.proxy.reset()
        with self.line.process(prefix, SEED, LIMITS) as repository:
            work.act(repository)
        return list(self.line.proxy.requests)

    def cases(
        self, work: Work, troubles: Sequence[Trouble], one_in: int
    ) -> Iterator[tuple[Request, Trouble]]:
        """Every trouble at every request of a work, or an even share of these."""
        places = itertools.product(enumerate(self.requests(work)), enumerate(troubles))
        for (place, request), (kind, trouble) in places:
            sends = self.checks_what_arrives and request.method in ("PUT", "POST")
            share = (place + kind + self.checks_what_arrives) % one_in
            if not share and (sends or trouble != "flip_sent"):
                yield request, trouble

    def disturb(self, work: Work, rule: Rule, limits: fwstore.Limits = LIMITS) -> None:
        """Do the work under trouble and judge what is there afterwards."""
        prefix = self.line.lay(self.origin)
        self.line.proxy.reset(rule)
        error = self._try(work, prefix, limits)
        self.line.proxy.plan = no_trouble
        assert rule.happened
        self._judge(work, self.line.take(prefix), acknowledged=error is None)
        if rule.trouble in LANDING:
            self._let_land(work, prefix, acknowledged=error is None)

    def _try(self, work: Work, prefix: str, limits: fwstore.Limits) -> fwstore.FwstoreError | None:
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*does not continue step")
                with self.line.process(prefix, SEED, limits) as repository:
                    work.act(repository)
        except fwstore.Unavailable as error:
            self.endings["unavailable"] += 1
            return error
        finally:
            assert time.monotonic() - began < DEADLINE_S
        self.endings["done"] += 1
        return None

    def _judge(self, work: Work, left: MemoryStore, *, acknowledged: bool) -> None:
        found = contents(left), acknowledged
        if found in self._judged:
            return
        self._judged.add(found)
        with process(left, 99) as repository:
            steps = [checkpoint.step for checkpoint in offered(repository)]
        assert len(steps) == len(set(steps)), "a commit stands twice"
        judge(left, work.promise(self.before, acknowledged=acknowledged), collect_first=False)

    def _let_land(self, work: Work, prefix: str, *, acknowledged: bool) -> None:
        """A successor goes on; only then what was late arrives. It must not matter any more."""
        with self.line.process(prefix, SEED + 1, LIMITS, straight=True) as repository:
            save("run")(repository)
        settled = checkpoints(self.line.take(prefix))
        assert self.line.proxy.land() == 1
        left = self.line.take(prefix)
        assert checkpoints(left) == settled
        done = acknowledged and bool(work.adds)
        assert ("run", 3 if done else 2) in settled
        run(left, save("run"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("moto", marks=pytest.mark.s3),
        pytest.param("rgw", marks=pytest.mark.rgw),
    ],
)
def storm(request: pytest.FixtureRequest) -> Iterator[Storm]:
    name = {"moto": "moto_server", "rgw": "rgw_gateway"}[request.param]
    server: MotoServer | Gateway = request.getfixturevalue(name)
    keys = {
        "access_key_id": server.environment["AWS_ACCESS_KEY_ID"],
        "secret_access_key": server.environment["AWS_SECRET_ACCESS_KEY"],
    }
    origin = make_store()
    run(origin, save("run", 0, 1))
    with serve_proxy(server.endpoint) as proxy:
        line = Line(server.endpoint, server.make_bucket(), keys, proxy)
        yield Storm(line, origin, checkpoints(origin), request.param != "moto")


@pytest.mark.parametrize("name", WORKS)
def test_every_trouble_at_every_request(
    storm: Storm, name: str, soak: int, figures: Figures
) -> None:
    work = WORKS[name]
    storm.endings.clear()
    for request, trouble in storm.cases(work, TROUBLES, ONE_IN if soak == 1 else 1):
        try:
            storm.disturb(work, Rule(trouble, after=request.number - 1))
        except (AssertionError, fwstore.FwstoreError) as error:
            raise AssertionError(f"{trouble} at {request.number} {request}") from error
    assert storm.endings["done"] > 9 * storm.endings["unavailable"]
    figures.note("network", {ending: storm.endings[ending] for ending in ENDINGS})


@pytest.mark.parametrize("name", WORKS)
def test_every_silence(storm: Storm, name: str, soak: int, figures: Figures) -> None:
    work = WORKS[name]
    storm.endings.clear()
    for request, trouble in storm.cases(work, SILENCES, ONE_IN // 2 if soak == 1 else 1):
        try:
            storm.disturb(work, Rule(trouble, after=request.number - 1), HURRIED)
        except (AssertionError, fwstore.FwstoreError) as error:
            raise AssertionError(f"{trouble} at {request.number} {request}") from error
    figures.note("network", {ending: storm.endings[ending] for ending in ENDINGS})


OBJECTS = {
    "site": "fwstore.json",
    "slots": "_log/0",
    "manifests": "_snap/",
    "packs": "packs/",
    "votes": "_term/",
    "listings": "list-type|/-$",
}
SPOILT: dict[Trouble, type[fwstore.FwstoreError]] = {
    "drop": fwstore.Unavailable,
    "cut_half": fwstore.Unavailable,
    SLOW_DOWN: fwstore.Unavailable,
    HTML: fwstore.Unavailable,
    "flip": fwstore.Corrupt,
}


# No checksum tells that a listing was changed; what it leads to is judged request by request.
ENDLESS = [pair for pair in itertools.product(OBJECTS, SPOILT) if pair != ("listings", "flip")]


@pytest.mark.parametrize("name", ["load", "save"])
@pytest.mark.parametrize(("what", "trouble"), ENDLESS, ids=str)
def test_trouble_that_does_not_end_has_its_error(
    storm: Storm, name: str, trouble: Trouble, what: str
) -> None:
    """Nothing hangs, nothing is made up: what cannot be read or written is said to be so."""
    prefix = storm.line.lay(storm.origin)
    rule = Rule(trouble, key=OBJECTS[what], times=float("inf"))
    storm.line.proxy.reset(rule)
    began = time.monotonic()
    try:
        with storm.line.process(prefix, SEED, HURRIED) as repository:
            WORKS[name].act(repository)
        # What only helps - hints, lower bounds, what a load does not read - may be missing or wrong.
        outcome = None
    except fwstore.FwstoreError as error:
        outcome = type(error)
    finally:
        assert time.monotonic() - began < DEADLINE_S
        storm.line.proxy.plan = no_trouble
    assert outcome is (SPOILT[trouble] if rule.happened else None)
    storm._judge(WORKS[name], storm.line.take(prefix), acknowledged=outcome is None)
