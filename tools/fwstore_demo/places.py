"""Empty stores for the demo: one, or three sites with links between them.

Invariant: a place is gone, servers included, when its block ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from fwstore_demo.link import Link

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

TRAINING_SITES = ("atlanta", "wisconsin")
WITNESS = "dallas"
SITES = (*TRAINING_SITES, WITNESS)
# A small WAN: what passes in a second is more than the demo saves in one.
_LINK_BYTES_PER_S = 40e6
_LINK_DELAY_S = 0.010
Pair = tuple[str, str]
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@contextlib.contextmanager
def open_place(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the URL of an empty store and the environment that reaches it."""
    if kind != "s3":
        with tempfile.TemporaryDirectory(prefix="fwstore-demo-") as folder:
            yield str(Path(folder) / "store"), {}
        return
    with _server(["fwstore-demo"]) as port:
        yield f"s3://fwstore-demo/store?endpoint=http://127.0.0.1:{port}", _CREDENTIALS


@dataclass(frozen=True)
class Sites:
    """Two training sites and a witness.

    Attributes:
        topologies: The topology file of every site: how it reaches itself and the others.
        environment: What processes need to reach the stores.
        links: By pair of sites, from and to; switched by `cut` and `heal`.
    """

    topologies: dict[str, str]
    environment: dict[str, str]
    links: dict[Pair, Link | LinkedFolder] = field(repr=False)

    def cut(self, site: str) -> None:
        """Let a site hear nobody and be heard by nobody."""
        for link in self._of(site):
            link.cut()

    def heal(self, site: str) -> None:
        """Let a site be part of the world again."""
        for link in self._of(site):
            link.heal()

    def _of(self, site: str) -> list[Link | LinkedFolder]:
        return [link for pair, link in self.links.items() if site in pair]


@dataclass
class LinkedFolder:
    """A link to a directory: a symbolic link, which leads nowhere while it is cut."""

    path: Path
    store: Path

    def __post_init__(self) -> None:
        self.heal()

    def cut(self) -> None:
        """Let the path lead nowhere."""
        self._point_to(self.store.parent / "cut" / self.store.name)

    def heal(self) -> None:
        """Let the path lead to the store."""
        self._point_to(self.store)

    def _point_to(self, target: Path) -> None:
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.symlink_to(target)
        fresh.replace(self.path)


@contextlib.contextmanager
def open_sites(kind: str) -> Iterator[Sites]:
    """Yield three empty sites."""
    with (
        tempfile.TemporaryDirectory(prefix="fwstore-demo-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        stores, links = _buckets(stack) if kind == "s3" else _folders(folder)
        topologies = {}
        for here in SITES:
            path = folder / f"{here}.toml"
            path.write_text(_topology({there: stores[here, there] for there in SITES}))
            topologies[here] = str(path)
        yield Sites(topologies, _CREDENTIALS if kind == "s3" else {}, links)


Links = dict[Pair, Link | LinkedFolder]


def _folders(folder: Path) -> tuple[dict[Pair, str], Links]:
    """Return how every site reaches every store, its own included, and the links."""
    stores = {(site, site): str(folder / "stores" / site) for site in SITES}
    links: Links = {}
    for here, there in permutations(SITES, 2):
        path, store = folder / f"{there}-from-{here}", Path(stores[there, there])
        store.mkdir(parents=True, exist_ok=True)
        links[here, there] = LinkedFolder(path, store)
        stores[here, there] = str(path)
    return stores, links


def _buckets(stack: contextlib.ExitStack) -> tuple[dict[Pair, str], Links]:
    """Return the same for buckets of servers that live as long as the stack."""
    ports = {site: stack.enter_context(_server([site])) for site in SITES}
    stores = {(site, site): _bucket_url(site, port) for site, port in ports.items()}
    links: Links = {}
    for here, there in permutations(SITES, 2):
        link = Link(ports[there], bytes_per_s=_LINK_BYTES_PER_S, delay_s=_LINK_DELAY_S)
        stack.callback(link.close)
        links[here, there] = link
        stores[here, there] = _bucket_url(there, link.port)
    return stores, links


def _topology(stores: dict[str, str]) -> str:
    lines = ['name = "demo"', ""]
    for site, store in stores.items():
        role = "witness" if site == WITNESS else "train"
        lines += [f"[sites.{site}]", f'store = "{store}"', f'role = "{role}"', ""]
    return "\n".join(lines)


def _bucket_url(bucket: str, port: int) -> str:
    return f"s3://{bucket}/store?endpoint=http://127.0.0.1:{port}"


@contextlib.contextmanager
def _server(buckets: Sequence[str]) -> Iterator[int]:
    """Yield the port of a moto server that has these buckets."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server: ThreadedMotoServer = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        os.environ.update(_CREDENTIALS)
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        yield port
    finally:
        server.stop()
