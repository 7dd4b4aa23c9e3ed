"""The sites of one repository, as a file names them: stores, roles, witnesses, links, policies.

Invariant: a `Topology` was checked whole: every name in it is that of a site, no site stands in it twice, and
no credential is in it. What the stores themselves say is compared later, in `fwstore.wan.sites`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from fwstore.base.errors import InvalidInput
from fwstore.base.globs import glob_matches
from fwstore.base.tables import Table
from fwstore.base.units import parse_duration, parse_rate

Role = Literal["train", "archive", "witness"]
CutOff = Literal["continue", "stop"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UUID = re.compile(r"[0-9a-f]{32}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# What may be written down for all to read is listed, not what may not.
_OPEN_OPTIONS = re.compile(
    r"(aws_)?(endpoint|region|virtual_hosted_style_request|imdsv1_fallback|unsigned_payload|skip_signature"
    r"|request_payer|checksum_algorithm|s3_express|sse_kms_key_id|server_side_encryption|bucket_key_enabled)"
    r"|(azure_)?(account_name|storage_account_name|use_emulator|use_fabric_endpoint|authority_host|endpoint)"
    r"|allow_http"
)


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """One site.

    Attributes:
        name: Unique in the topology.
        store: Address of its store.
        role: "train" sites run jobs, "archive" sites get copies, a "witness" only votes.
        uuid: What the store must say of itself; None takes what it says.
        options: Of the store; no credentials.
        profile: Named set of AWS credentials; None takes those of the environment.
    """

    name: str
    store: str
    role: Role = "train"
    uuid: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    profile: str | None = None

    @property
    def keeps(self) -> bool:
        """Whether checkpoints may stand there."""
        return self.role != "witness"


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """A way from one site to another.

    Attributes:
        source: Where the bytes come from.
        target: Where they go.
        cap: Most bytes per second that all workers together send over it.
    """

    source: str
    target: str
    cap: float


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which checkpoints of some runs go where.

    Attributes:
        runs: Glob over names of runs.
        to: Names of sites.
        every: Every so manyth checkpoint of the canonical history; the newest always.
        tails: Also what was acknowledged beside the canonical history.
        pins: Pinned and tagged checkpoints always.
    """

    runs: str
    to: tuple[str, ...]
    every: int = 1
    tails: bool = True
    pins: bool = True


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The sites of one repository.

    Attributes:
        name: For people.
        sites: By name, in the order of the file.
        witnesses: Names of the sites that vote.
        links: Those that have a cap.
        policies: The first that means a run decides.
        cut_off_after_s: How long a job goes on that cannot reach a majority of the witnesses; None for ever.
    """

    name: str = ""
    sites: Mapping[str, SiteConfig]
    witnesses: tuple[str, ...]
    links: tuple[LinkConfig, ...] = ()
    policies: tuple[PolicyConfig, ...] = ()
    cut_off_after_s: float | None = None

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Topology:
        """Read a topology file; a store without a scheme lies beside the file unless its path is absolute.

        Raises:
            InvalidInput: The file cannot be read, or something in it may not stand there.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the topology {path} cannot be read: {error}") from error
        found = Topology.parse(text, str(path))
        folder = Path(path).absolute().parent
        sites = {name: _beside(folder, site) for name, site in found.sites.items()}
        _refuse_doubles(Table(str(path), "sites", {}), sites.values())
        return replace(found, sites=sites)

    @staticmethod
    def parse(text: str, where: str) -> Topology:
        """Return a topology from the text of a file.

        Args:
            text: TOML.
            where: Named in errors.

        Raises:
            InvalidInput: Something in it may not stand there; the place and what may are named.
        """
        try:
            table = Table(where, "", tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InvalidInput(f"{where} is not TOML: {error}") from error
        name = table.text("name", "")
        sites = _sites(table)
        voters = [site.name for site in sites.values() if site.role != "archive"]
        witnesses = table.names("witnesses", sites, default=voters)
        links = tuple(_link(one, sites) for one in table.tables("links"))
        _refuse_repeated_links(table, links)
        policies = tuple(_policy(one, sites) for one in table.tables("policies"))
        cut_off_after_s = _cut_off(table)
        table.finish()
        return Topology(
            name=name,
            sites=sites,
            witnesses=witnesses,
            links=links,
            policies=policies,
            cut_off_after_s=cut_off_after_s,
        )

    @staticmethod
    def of_one(store: str, name: str, options: Mapping[str, object]) -> Topology:
        """Return the topology of a store that is opened by its address: a site alone."""
        site = SiteConfig(name=name, store=store, options=options)
        return Topology(sites={name: site}, witnesses=(name,))

    def local(self, wanted: str | None) -> SiteConfig:
        """Return the site of this process.

        Args:
            wanted: Its name; None for the only site of role train.

        Raises:
            InvalidInput: There is no such site, it keeps nothing, or there are several to choose from.
        """
        if wanted is None:
            trains = [site for site in self.sites.values() if site.role == "train"]
            if len(trains) == 1:
                return trains[0]
            raise InvalidInput(
                f"which site is this? Say site= or FWSTORE_SITE: {' or '.join(s.name for s in trains)}"
            )
        site = self.sites.get(wanted)
        if site is None or not site.keeps:
            why = "is only a witness" if site else "is not in the topology"
            keeping = (s.name for s in self.sites.values() if s.keeps)
            raise InvalidInput(f"site {wanted!r} {why}; write {' or '.join(keeping)}")
        return site

    def policy(self, run: str) -> PolicyConfig:
        """Return what goes where of a run; without a policy that means it, everything goes to every site that keeps."""
        everywhere = tuple(site.name for site in self.sites.values() if site.keeps)
        default = PolicyConfig(runs="**", to=everywhere)
        return next((one for one in self.policies if glob_matches(one.runs, run)), default)

    def cap(self, source: str, target: str) -> float | None:
        """Return the most bytes per second from one site to another, or None where there is no cap."""
        pair = (source, target)
        return next((link.cap for link in self.links if (link.source, link.target) == pair), None)


def _cut_off(table: Table) -> float | None:
    """Return how long a job may be cut off from its witnesses, or None where it goes on for ever."""
    choice: CutOff = table.choice("cut_off", get_args(CutOff), "continue")
    given = table.text("cut_off_after", "")
    if choice == "continue":
        if given:
            raise table.refused("cut_off_after", 'needs cut_off = "stop"')
        return None
    after_s = table.parsed("cut_off_after", parse_duration)
    if not after_s:
        raise table.refused("cut_off_after", f"must be more than nothing, not {given!r}")
    return after_s


def _sites(table: Table) -> dict[str, SiteConfig]:
    found: dict[str, SiteConfig] = {}
    spellings: dict[str, str] = {}
    for name, one in table.named("sites"):
        if not _NAME.fullmatch(name):
            raise one.refused(
                "", f"{name!r} is no name of a site: letters, digits, '.', '_' and '-', at most 100"
            )
        if spellings.setdefault(name.lower(), name) != name:
            raise one.refused("", f"differs from {spellings[name.lower()]} in case alone")
        found[name] = _site(name, one)
    if not any(site.role == "train" for site in found.values()):
        raise table.refused("sites", "there must be a site of role train: [sites.NAME] store = ...")
    _refuse_doubles(table.below("sites"), found.values())
    return found


def _site(name: str, table: Table) -> SiteConfig:
    site = SiteConfig(
        name=name,
        store=table.text("store"),
        role=table.choice("role", get_args(Role), "train"),
        uuid=table.text("uuid", "") or None,
        options=_options(table),
        profile=table.text("profile", "") or None,
    )
    if not site.store.strip() or "\0" in site.store:
        raise table.refused("store", "must be an address, such as s3://bucket/prefix or a path")
    if site.uuid is not None and not _UUID.fullmatch(site.uuid):
        raise table.refused("uuid", "must be 32 hexadecimal digits, as `fwstore doctor` shows them")
    table.finish()
    return site


def _options(table: Table) -> dict[str, object]:
    found: dict[str, object] = {}
    options = table.below("options")
    for name in options:
        if not _OPEN_OPTIONS.fullmatch(name.lower()):
            raise options.refused(
                name,
                "may not stand in a topology, which everybody reads: options are endpoint, region and the like; "
                "credentials come from the environment or a profile",
            )
        found[name] = options.scalar(name)
    return found


def _refuse_doubles(table: Table, sites: Iterable[SiteConfig]) -> None:
    stores: dict[str, str] = {}
    uuids: dict[str, str] = {}
    for site in sites:
        other = stores.setdefault(site.store.rstrip("/"), site.name)
        if other != site.name:
            raise table.refused(site.name, f"has the store of {other}: one store is one site")
        if site.uuid is not None and uuids.setdefault(site.uuid, site.name) != site.name:
            raise table.refused(site.name, f"has the uuid of {uuids[site.uuid]}")


def _link(table: Table, sites: Mapping[str, SiteConfig]) -> LinkConfig:
    source, target = table.name("from", sites), table.name("to", sites)
    if source == target:
        raise table.refused(
            "to", f"a link leads from one site to another, not from {source} to itself"
        )
    link = LinkConfig(source=source, target=target, cap=table.parsed("cap", parse_rate))
    table.finish()
    return link


def _refuse_repeated_links(table: Table, links: Sequence[LinkConfig]) -> None:
    pairs = [(link.source, link.target) for link in links]
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise table.refused("links", f"the link from {pair[0]} to {pair[1]} stands there twice")


def _policy(table: Table, sites: Mapping[str, SiteConfig]) -> PolicyConfig:
    keeping = [name for name, site in sites.items() if site.keeps]
    policy = PolicyConfig(
        runs=table.text("runs"),
        to=table.names("to", keeping),
        every=table.count("every", 1),
        tails=table.flag("tails", default=True),
        pins=table.flag("pins", default=True),
    )
    table.finish()
    return policy


def _beside(folder: Path, site: SiteConfig) -> SiteConfig:
    if _SCHEME.match(site.store) or site.store.startswith("~"):
        return site
    return replace(site, store=str(folder / site.store))
