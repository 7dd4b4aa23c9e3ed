"""The sites of a topology, as the processes of one of them know them.

Invariant: what is given out as a site said so itself, is not another than was met under its name before unless that was
retired, was not retired, and has no second name. Nothing is asked before it is needed, and a site that does not answer is asked again only after
a pause.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fwstore.base.config import Environment
from fwstore.base.errors import Conflict, FwstoreError, InvalidInput, NotFound, Unavailable
from fwstore.base.ids import write_id
from fwstore.base.notices import tell
from fwstore.base.topology import SiteConfig, Topology
from fwstore.format.keys import known_site_key
from fwstore.format.site import SITE_BYTES_MAX, KnownSite, encode_site, parse_known_site
from fwstore.log.retired import refuse_retired
from fwstore.log.site import UNHEARD, Site, create_site, open_site, with_patience
from fwstore.log.tail import get_parsed
from fwstore.sched import Runtime
from fwstore.store.address import open_store
from fwstore.store.base import Store
from fwstore.store.create import create_once
from fwstore.wan.retirements import Retirements

ASK_AGAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Silence:
    """Why a site cannot be asked now.

    Attributes:
        name: Of the site.
        reason: For people.
        since: When that was noticed, in seconds since the Unix epoch, for display.
        uuid: Of the site, where it is known.
        vacant: It answered, and is no site yet.
        retired: It was retired, and none came after it yet.
    """

    name: str
    reason: str
    since: float
    uuid: str | None = None
    vacant: bool = False
    retired: bool = False

    @property
    def elector(self) -> str:
        """What stands for it in an electorate: it counts against every candidate, whether its uuid is known or not."""
        return self.uuid or f"?{self.name}"


@dataclass
class _Acquaintance:
    """What this process knows of one site."""

    config: SiteConfig
    brisk: Store | None = None
    patient: Store | None = None
    site: Site | None = None
    silence: Silence | None = None
    ask_again: float = 0.0
    remembered: bool = False
    told: bool = False


@dataclass(frozen=True)
class _Memory:
    """What a site remembers under the name of another one.

    Attributes:
        key: Where it stands, or would.
        found: As which site the other one was met.
        retired: The site that was retired under that name before, or None.
    """

    key: str
    found: KnownSite | None
    retired: str | None


class Sites:
    """The sites of a topology, seen from one of them.

    Args:
        topology: Names them.
        local: The site of this process.
        store: Of the local site.
        runtime: Time, ids, threads, limits.
        hash_key: Id of the key of all hashes, or None.

    Attributes:
        topology: Names them.
        local: Name of the site of this process.
        retirements: What is known of sites that were retired.
    """

    def __init__(
        self,
        topology: Topology,
        local: SiteConfig,
        store: Store,
        runtime: Runtime,
        hash_key: str | None,
    ) -> None:
        self.topology = topology
        self.local = local.name
        self._store = store
        self._runtime = runtime
        limits = runtime.limits
        self._brisk = with_patience(runtime, min(limits.site_timeout_s, limits.request_timeout_s))
        self._hash_key = hash_key
        self._known = {name: _Acquaintance(config) for name, config in topology.sites.items()}
        self._known[self.local].brisk = self._known[self.local].patient = store
        self.retirements = Retirements()
        self._look_again = 0.0

    @property
    def patience_s(self) -> float:
        """Longest time for one request of the protocol to another site."""
        return self._brisk.limits.request_timeout_s

    def home(self) -> Site:
        """Return the local site.

        Raises:
            NotFound: Its store is not a site yet.
            Conflict: Its store is another site.
        """
        said = open_site(self._store, hash_key=self._hash_key)
        expected = self._known[self.local].config.uuid
        if expected not in (None, said.uuid):
            raise Conflict(
                f"{_claims(said)}, and the topology says that {self.local} is site {expected}"
            )
        return self._accept(self._known[self.local], said, None)

    def ask(self, name: str) -> Site | Silence:
        """Return a site, or why it cannot be asked now; nothing is written.

        Raises:
            Conflict: Its store is another site than was met under its name.
            InvalidInput: It is another site of the topology under a second name.
        """
        self._look_for_retirements()
        return self._ask(name)

    def answers(self, names: Iterable[str]) -> list[Site | Silence]:
        """Return what `ask` returns for some sites, asked side by side."""
        self._look_for_retirements()
        return self._ask_all(names)

    def reachable(self, *, keeping: bool = False) -> list[Site]:
        """Return the other sites that answer; of those that keep checkpoints alone, if so wished."""
        wanted = [name for name in self._others() if self._known[name].config.keeps or not keeping]
        return [site for site in self.answers(wanted) if isinstance(site, Site)]

    def electors(self) -> tuple[tuple[Site, ...], tuple[str, ...]]:
        """Return the witnesses that answer, and what stands for the others in an electorate."""
        answers = self.answers(self.topology.witnesses)
        asked = tuple(site for site in answers if isinstance(site, Site))
        return asked, tuple(site.elector for site in answers if isinstance(site, Silence))

    def join(self, *, founding: bool = True) -> Site:
        """Make the local store and every empty one a site, and remember all that answer; return the local one.

        Args:
            founding: Whether empty stores of others are made sites, as a term needs it; else they are left alone.

        Raises:
            Conflict: The local store is another site than others have met, or it has the name of another one.
            InvalidInput: A site has two names.
            Unavailable: The local store is empty, and whether others have met it cannot be asked.
            Fenced: The local site was retired.
        """
        self._look_again = self._runtime.clock.monotonic() + ASK_AGAIN_S
        unheard = self._known[self.local].site is None
        self.hear_of_retirements()
        home = self._settle_home()
        if unheard:
            self._hear_of_own_retirements()
        self.retirements.keep(home, self._runtime)
        self._meet_retired_again()
        self._runtime.scheduler.map(
            lambda name: self._settle(name, founding=founding), self._others()
        )
        return home

    def hear_of_retirements(self) -> None:
        """Ask every site that answers which sites were retired."""
        others = [site for site in self._ask_all(self._others()) if isinstance(site, Site)]
        self._runtime.scheduler.map(self._hear_of_retirements_at, others)
        self._hear_of_own_retirements()
        self._meet_retired_again()

    def lose(self, name: str, error: FwstoreError) -> None:
        """Take note that a site does not answer any more; it is asked again after a pause."""
        if name != self.local:
            self._be_silent(self._known[name], error.message)

    def patient_store(self, name: str) -> Store:
        """Return the store of a site for large requests, which take longer than those of the protocol."""
        known = self._known[name]
        if known.patient is None:
            known.patient = _open(known.config, self._runtime)
        return known.patient

    def close(self) -> None:
        """Release the connections to other sites."""
        for name in self._others():
            for store in (self._known[name].brisk, self._known[name].patient):
                if store is not None:
                    store.close()

    def _ask(self, name: str) -> Site | Silence:
        known = self._known[name]
        if known.site is not None:
            return known.site
        if known.silence is not None and self._runtime.clock.monotonic() < known.ask_again:
            return known.silence
        return self._meet(known)

    def _ask_all(self, names: Iterable[str]) -> list[Site | Silence]:
        return self._runtime.scheduler.map(self._ask, list(names))

    def _look_for_retirements(self) -> None:
        """Look now and then which retirements the local store holds; where one may not be in force, ask others."""
        now = self._runtime.clock.monotonic()
        if len(self._known) == 1 or now < self._look_again:
            return
        self._look_again = now + ASK_AGAIN_S
        self._hear_of_own_retirements()
        if self.retirements.pending():
            self.hear_of_retirements()

    def _meet_retired_again(self) -> None:
        """Forget what was known of sites that were retired meanwhile."""
        for name in self._others():
            known = self._known[name]
            met = known.site or known.silence
            is_news = not isinstance(met, Silence) or not met.retired
            if met is not None and is_news and self.retirements.of(met.uuid) is not None:
                known.site = known.silence = None

    def _hear_of_own_retirements(self) -> None:
        home = self._known[self.local].site
        if home is not None:
            self.retirements.hear(self._store, home.uuid)

    def _hear_of_retirements_at(self, site: Site) -> None:
        try:
            self.retirements.hear(site.store, site.uuid)
        except UNHEARD as error:
            self.lose(site.name, error)

    def _others(self) -> list[str]:
        return [name for name in self._known if name != self.local]

    def _met_by_others(self, name: str) -> tuple[frozenset[str], bool]:
        """Return as which sites others have met a site, and whether all that may have met it told."""
        askable = [
            other for other in self._others() if other != name and self._known[other].config.keeps
        ]
        complete, met = True, set()
        for other in self._ask_all(askable):
            if isinstance(other, Silence):
                complete = complete and (other.vacant or other.retired)
                continue
            try:
                found = self._memory(other.store, name).found
            except UNHEARD as error:
                self.lose(other.name, error)
                complete = False
            else:
                met |= {found.site} if found is not None else set()
        return frozenset(met), complete

    def _settle_home(self) -> Site:
        known = self._known[self.local]
        met, complete = self._met_by_others(self.local)
        try:
            home = self.home()
        except NotFound as error:
            if met:
                raise Conflict(
                    f"{self._store.url} was wiped: others have met {self.local} as site {', '.join(met)}, and "
                    "it holds nothing; restore it, or retire the old site from another one"
                ) from error
            if not complete:
                raise Unavailable(
                    f"{self._store.url} is empty, and not every site can be asked whether it has met {self.local} "
                    "before: try again when all answer, or restore it if it was wiped"
                ) from error
            self._refuse_retired_uuid(known)
            self._create(known, self._store, self._runtime)
            home, (met, _) = self.home(), self._met_by_others(self.local)
        refuse_retired(home, self.retirements.heard(home.uuid))
        for uuid in met - {home.uuid}:
            raise Conflict(
                f"{_claims(home)}, and others have met {self.local} as site {uuid}: was it wiped and made anew, or "
                "are the stores of two sites mixed up?"
            )
        return home

    def _settle(self, name: str, *, founding: bool) -> None:
        """Make an empty store a site, if so wished, and remember who answers."""
        known = self._known[name]
        answer = self._ask(name)
        is_vacant = isinstance(answer, Silence) and answer.vacant
        if founding and is_vacant and known.brisk is not None:
            answer = self._found(known, known.brisk)
        if isinstance(answer, Site) and not known.remembered:
            self._remember(known, answer)

    def _found(self, known: _Acquaintance, store: Store) -> Site | Silence:
        """Make an empty store a site, if nobody can have met it before: it might be one that was wiped."""
        met, complete = self._met_by_others(known.config.name)
        if not met and not complete:
            return self._be_silent(
                known,
                "its store is empty, and not every site can be asked whether it was met before",
            )
        if not met:
            self._refuse_retired_uuid(known)
            try:
                made = self._create(known, store, self._brisk)
            except UNHEARD as error:
                return self._be_silent(known, error.message)
            # Whoever made it at the same time has written it down before relying on it.
            met, _ = self._met_by_others(known.config.name)
            if met <= {made.uuid}:
                return self._take_in(known, made, None)
        return self._be_silent(
            known, f"{store.url} was wiped: others have met it as site {', '.join(met)}", min(met)
        )

    def _refuse_retired_uuid(self, known: _Acquaintance) -> None:
        if self.retirements.of(known.config.uuid) is not None:
            raise InvalidInput(
                f"the topology says that {known.config.name} is site {known.config.uuid}, which was retired: take "
                "uuid= out, or write another one"
            )

    def _create(self, known: _Acquaintance, store: Store, runtime: Runtime) -> Site:
        name, uuid = known.config.name, known.config.uuid
        return create_site(store, runtime, name=name, uuid=uuid, hash_key=self._hash_key)

    def _meet(self, known: _Acquaintance) -> Site | Silence:
        memory = self._memory(self._store, known.config.name)
        # As which site others have met it was told when it was to be founded.
        heard = None if known.silence is None else known.silence.uuid
        last = memory.retired or self.retirements.named(known.config.name)
        uuid = memory.found.site if memory.found else known.config.uuid or last or heard
        retired = memory.found is None and last is not None
        try:
            if known.brisk is None:
                known.brisk = _open(known.config, self._brisk)
            said = open_site(known.brisk, hash_key=self._hash_key)
        except NotFound as error:
            if memory.found is None:
                # Nobody has written there yet; the first writer makes it a site.
                wall = self._runtime.clock.wall()
                return Silence(
                    known.config.name, error.message, wall, uuid, vacant=True, retired=retired
                )
            return self._be_silent(known, f"it was site {uuid} and was wiped: {error}", uuid)
        except UNHEARD as error:
            return self._be_silent(known, error.message, uuid, retired=retired)
        gone = self.retirements.of(said.uuid)
        if gone is not None:
            told = f"{_claims(said)}, which was retired: {gone.reason}"
            return self._be_silent(known, told, uuid, retired=retired)
        return self._take_in(known, said, memory.found)

    def _take_in(
        self, known: _Acquaintance, said: Site, remembered: KnownSite | None
    ) -> Site | Silence:
        """Take a store for the site that it says to be; one that was made anew is another site, and silent."""
        known_as = {known.config.uuid, remembered.site if remembered else None} - {None, said.uuid}
        if said.name in ("", known.config.name) and known_as:
            expected = known_as.pop()
            told = (
                f"{_claims(said)}, and {known.config.name} is site {expected} here: it was wiped and made anew, or the "
                "stores of two sites are mixed up; restore it, or retire the old "
                "site"
            )
            return self._be_silent(known, told, expected)
        return self._accept(known, said, remembered)

    def _accept(self, known: _Acquaintance, said: Site, remembered: KnownSite | None) -> Site:
        name = known.config.name
        for other, met in self._known.items():
            if met is not known and met.site is not None and met.site.uuid == said.uuid:
                raise InvalidInput(
                    f"{_claims(said)}, which the topology names twice: {other}, {name}"
                )
        if name and said.name not in ("", name):
            before = f" ({remembered.site})" if remembered is not None else ""
            raise Conflict(
                f"{_claims(said)}, and the topology calls it {name}{before}: are the stores of two sites mixed up?"
            )
        patience_s = None if name == self.local else self.patience_s
        known.site = replace(said, name=name or said.name, patience_s=patience_s)
        known.silence, known.told = None, False
        known.remembered = known.remembered or remembered is not None
        return known.site

    def _be_silent(
        self,
        known: _Acquaintance,
        reason: str,
        uuid: str | None = None,
        *,
        retired: bool = False,
    ) -> Silence:
        before, site = known.silence, known.site
        known.silence = Silence(
            name=known.config.name,
            reason=reason,
            since=self._runtime.clock.wall() if before is None else before.since,
            uuid=uuid or (site.uuid if site else None) or (before.uuid if before else None),
            retired=retired,
        )
        known.site, known.ask_again = None, self._runtime.clock.monotonic() + ASK_AGAIN_S
        if not known.told and not retired:
            known.told = True
            tell(f"site {known.config.name} is silent: {reason}")
        return known.silence

    def _memory(self, store: Store, name: str) -> _Memory:
        """Return what a site remembers under a name: behind a site that was retired stands the one that came after it."""
        retired = None
        while True:
            key = known_site_key(name, after=retired)
            found = get_parsed(store, key, SITE_BYTES_MAX, parse_known_site)
            if found is None or self.retirements.of(found.site) is None:
                return _Memory(key, found, retired)
            retired = found.site

    def _remember(self, known: _Acquaintance, site: Site) -> None:
        """Write down which uuid was met under a name; whoever was first decides."""
        runtime = self._runtime
        made = KnownSite(
            name=site.name,
            site=site.uuid,
            time=runtime.clock.wall(),
            write_id=write_id(runtime.ids),
        )
        key = self._memory(self._store, site.name).key
        if not create_once(self._store, key, [encode_site(made)], runtime):
            self._take_in(known, site, self._memory(self._store, site.name).found)
        known.remembered = True


def _claims(site: Site) -> str:
    return f"{site.store.url} says that it is site {site.name or 'without a name'} ({site.uuid})"


def _open(config: SiteConfig, runtime: Runtime) -> Store:
    """Return the store of a site, opened with the credentials that belong to it."""
    return open_store(config.store, for_site(config, runtime), config.options)


def for_site(config: SiteConfig, runtime: Runtime) -> Runtime:
    """Return a runtime in whose environment the credentials of a site are named."""
    if config.profile is None:
        return runtime
    named = {**runtime.environment.variables, "AWS_PROFILE": config.profile}
    return replace(runtime, environment=Environment(named))
