"""Retiring a site that was lost for good: an operator's act, decided by the sites that remain.

Invariant: without force nothing is written unless a majority of every electorate that the retired site belongs to, itself
counted, can hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fwstore.base.errors import InvalidInput, NotFound, Unavailable
from fwstore.base.ids import write_id
from fwstore.format.canonical import check_text
from fwstore.format.site import RetiredSite
from fwstore.log.lineage import list_lineages, read_lineage
from fwstore.log.retired import write_retired
from fwstore.log.site import UNHEARD, Site, still_is
from fwstore.sched import Runtime
from fwstore.wan.retirements import is_majority
from fwstore.wan.sites import Silence, Sites

RISK = (
    "fewer than a majority of those who vote decide it: should sites that do not answer be alive, and go on without this "
    "one, a run may have two jobs at once and two histories"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retirement:
    """What became of an order to retire a site.

    Attributes:
        site: Name of the site.
        uuid: Of the site that was retired; another one may be founded under the name.
        reason: For people.
        held_at: Names of the sites that hold the retirement.
        forced: It was decided by less than a majority, on the word of the operator.
    """

    site: str
    uuid: str
    reason: str
    held_at: tuple[str, ...]
    forced: bool


def retire(
    sites: Sites, name: str, reason: str, runtime: Runtime, *, force: bool = False
) -> Retirement:
    """Retire a site; repeated, it is brought to sites that do not hold it yet.

    Args:
        sites: As the process of the operator knows them.
        name: Of the site.
        reason: For people.
        runtime: Time, ids, threads.
        force: Also a site that answers, and also without a majority.

    Raises:
        InvalidInput: It is the local site, is not in the topology, or answers.
        NotFound: It was never met.
        Unavailable: Too few sites answer for a majority.
    """
    check_text(reason, "the reason of a retirement")
    if name == sites.local or name not in sites.topology.sites:
        others = " or ".join(known for known in sites.topology.sites if known != sites.local)
        raise InvalidInput(f"from site {sites.local} can be retired: {others}; not {name!r}")
    home = sites.join()
    answer = sites.ask(name)
    uuid = _who(answer, force=force)
    electorate = _electorate(sites)
    standing = [home, *(site for site in sites.reachable() if site.uuid != uuid)]
    sets = _sets(standing, uuid, electorate, runtime)
    if not force:
        _need_majorities(name, standing, sets)
    made = RetiredSite(
        name=name,
        site=uuid,
        reason=reason,
        witnesses=electorate,
        time=runtime.clock.wall(),
        write_id=write_id(runtime.ids),
    )
    held = _hold(standing, made, runtime)
    forced = force and not all(is_majority(_uuids(held), members) for members in sets)
    if forced:
        _hold(held, made, runtime, lost=True)
    else:
        _need_majorities(name, held, sets)
    if isinstance(answer, Site):
        # Its own processes learn it without hearing others.
        _hold([answer], made, runtime)
    sites.hear_of_retirements()
    sites.retirements.keep(home, runtime)
    return Retirement(
        site=name,
        uuid=uuid,
        reason=reason,
        held_at=tuple(site.name for site in held),
        forced=forced,
    )


def _who(answer: Site | Silence, *, force: bool) -> str:
    if isinstance(answer, Site):
        if not force:
            raise InvalidInput(
                f"site {answer.name} ({answer.uuid}) answers: only a site that is lost for good is retired, and it cannot be "
                "taken back; force it if that is meant"
            )
        return answer.uuid
    if answer.uuid is None or (answer.vacant and not answer.retired):
        raise NotFound(
            f"nobody has met site {answer.name} yet, so there is nothing to retire; take it out of the topology"
        )
    return answer.uuid


def _electorate(sites: Sites) -> tuple[str, ...]:
    """Return the uuids of all witnesses of the topology, the retired one in its seat."""
    answers = sites.answers(sites.topology.witnesses)
    found = {answer.name: answer.uuid for answer in answers}
    unmet = [witness for witness, uuid in found.items() if uuid is None]
    if unmet:
        raise Unavailable(
            f"witness {', '.join(unmet)} was never met, so it is not known who must agree; try again when it answers"
        )
    return tuple(sorted(uuid for uuid in found.values() if uuid is not None))


def _sets(
    standing: Sequence[Site], uuid: str, electorate: tuple[str, ...], runtime: Runtime
) -> set[frozenset[str]]:
    """Return every electorate that must agree: that of the topology, and those of runs in which the site votes."""

    def of_runs(site: Site) -> set[frozenset[str]]:
        try:
            found = [read_lineage(site.store, keys) for keys in list_lineages(site.store)]
        except UNHEARD:
            return set()
        return {frozenset(lineage.witnesses) for lineage in found if lineage is not None}

    known = set().union(*runtime.scheduler.map(of_runs, standing))
    return {frozenset(electorate), *(members for members in known if uuid in members)}


def _need_majorities(name: str, sites: Sequence[Site], sets: Collection[frozenset[str]]) -> None:
    for members in sets:
        have = _uuids(sites) & members
        if not is_majority(have, members):
            told = ", ".join(sorted(site.name or site.uuid for site in sites if site.uuid in have))
            raise Unavailable(
                f"site {name} is retired by a majority of those who vote, itself counted: {len(members) // 2 + 1} of "
                f"{len(members)} are needed, and {told or 'none'} can agree. Try again when more of them answer; if "
                f"they are lost as well, force it - at this risk: {RISK}"
            )


def _hold(
    sites: Sequence[Site], made: RetiredSite, runtime: Runtime, *, lost: bool = False
) -> list[Site]:
    """Let sites hold a retirement; return those that do, and still are who they were."""

    def hold(site: Site) -> bool:
        try:
            write_retired(site, made, runtime, lost=lost)
        except UNHEARD:
            return False
        return still_is(site)

    done = runtime.scheduler.map(hold, sites)
    return [site for site, held in zip(sites, done, strict=True) if held]


def _uuids(sites: Sequence[Site]) -> frozenset[str]:
    return frozenset(site.uuid for site in sites)
