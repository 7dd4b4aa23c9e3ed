"""What a job does that is cut off from its witnesses and is told to stop: it asks them beside its saves.

Invariant: nobody waits for an answer. A job is stopped only when two askings, so far apart as the topology allows, and every
one between them found less than a majority; from then on nothing that it saves is committed.
"""

from __future__ import annotations

from fwstore.base.errors import Fenced, FwstoreError
from fwstore.base.notices import tell
from fwstore.base.units import format_duration
from fwstore.format.keys import SITE_KEY, retired_key
from fwstore.format.site import SITE_BYTES_MAX, parse_retired_site, parse_site
from fwstore.log.retired import refuse_retired
from fwstore.log.site import Site
from fwstore.log.tail import get_parsed
from fwstore.sched import Runtime
from fwstore.wan.retirements import is_majority
from fwstore.wan.sites import Sites

# So often within the time that a job may be cut off, and at least so often.
_ASKINGS = 4
_EVERY_MAX_S = 60.0


class Vigil:
    """Watches for one job whether a majority of its witnesses answers.

    Args:
        sites: As the job knows them.
        home: The site of the job.
        runtime: Time and threads.
        after_s: How long the job may be cut off.
    """

    def __init__(self, sites: Sites, home: Site, runtime: Runtime, after_s: float) -> None:
        self._sites = sites
        self._home = home
        self._runtime = runtime
        self._after_s = after_s
        self._every_s = min(after_s / _ASKINGS, _EVERY_MAX_S)
        self._lock = runtime.scheduler.lock()
        self._asking = False
        self._ask_again = runtime.clock.monotonic() + self._every_s
        self._cut_off_since: float | None = None
        self._verdict: Fenced | None = None
        self._known = {site.name: site for site in sites.electors()[0]}

    def check(self) -> None:
        """Refuse what a job that was cut off for too long wants to commit; now and then, have the witnesses asked.

        Raises:
            Fenced: It was cut off for too long, or its site was retired.
        """
        with self._lock:
            if self._verdict is not None:
                raise Fenced(self._verdict.message)
            now = self._runtime.clock.monotonic()
            due = not self._asking and now >= self._ask_again
            if due:
                self._asking, self._ask_again = True, now + self._every_s
        if due:
            self._runtime.scheduler.spawn("witnesses", self._ask)

    def _ask(self) -> None:
        began = self._runtime.clock.monotonic()
        verdict: Fenced | None = None
        silent: list[str] = []
        try:
            silent = self._silent()
        except Fenced as error:
            verdict = error
        witnesses = self._sites.topology.witnesses
        heard = is_majority(set(witnesses) - set(silent), witnesses)
        with self._lock:
            since = self._cut_off_since
            self._cut_off_since = None if heard else began if since is None else since
            if verdict is None and self._cut_off_since is not None:
                verdict = self._judge(began - self._cut_off_since, silent)
            self._verdict, self._asking = verdict, False
        if verdict is None and since is None and not heard:
            tell(
                f"the job at {self._home.name} is cut off from a majority of its witnesses ({', '.join(silent)} silent): "
                f"it stops if that lasts for {format_duration(self._after_s)}"
            )

    def _judge(self, lasted_s: float, silent: list[str]) -> Fenced | None:
        if lasted_s < self._after_s:
            return None
        return Fenced(
            f"the job at {self._home.name} was cut off from a majority of its witnesses for "
            f'{format_duration(lasted_s)} ({", ".join(silent)} silent), and the topology says cut_off = "stop": another '
            "job may have taken the run, so nothing more is committed; resume it when they answer"
        )

    def _silent(self) -> list[str]:
        names = self._sites.topology.witnesses
        answered = self._runtime.scheduler.map(self._hears, names)
        return [name for name, hears in zip(names, answered, strict=True) if not hears]

    def _hears(self, name: str) -> bool:
        """Return whether a witness answers and is who it was.

        Raises:
            Fenced: It knows that the site of the job was retired.
        """
        if name == self._home.name:
            return True
        try:
            site = self._known.get(name) or self._sites.ask(name)
            if not isinstance(site, Site):
                return False
            said = get_parsed(site.store, SITE_KEY, SITE_BYTES_MAX, parse_site)
            key = retired_key(self._home.uuid)
            gone = get_parsed(site.store, key, SITE_BYTES_MAX, parse_retired_site)
        except FwstoreError:
            # Whatever it says in place of an answer, it does not stand by this job.
            return False
        self._known[name] = site
        refuse_retired(self._home, gone)
        return said is not None and said.site == site.uuid
