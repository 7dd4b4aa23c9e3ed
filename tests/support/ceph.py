"""A Ceph cluster of one node with an S3 gateway: the S3 server on which races are decided for real.

Invariant: everything lives in one temporary directory and on loopback ports, and is gone when the
block ends; nothing of an installed Ceph configuration is read.

`.ci/install-ceph` installs the daemons.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = (
    "setpriv",
    "ceph",
    "ceph-mon",
    "ceph-osd",
    "ceph-mgr",
    "radosgw",
    "radosgw-admin",
    "ceph-authtool",
    "monmaptool",
)
# So that a killed test run leaves no daemons behind.
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
_START_S = 120.0
_COMMAND_S = 60.0
_STORE_BYTES = 4 << 30
# Without tcp_nodelay the gateway holds back the end of every small answer for the 40 ms of a delayed acknowledgement.
_CONFIG = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
mon initial members = a
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {root}/$cluster.$name.keyring
run dir = {root}/run
admin socket = {root}/run/$name.asok
log file = {root}/log/$name.log
mon cluster log file = {root}/log/cluster.log
crash dir = {root}/crash
pid file =
ms bind ipv6 = false
ms bind msgr1 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 1000
mon warn on pool no redundancy = false
mon data avail crit = 0
mon data avail warn = 0
mon osd full ratio = 0.99
osd objectstore = memstore
memstore device bytes = {store_bytes}
osd data = {root}/osd
mon data = {root}/mon
mgr data = {root}/mgr
mgr initial modules =
debug ms = 0

[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{{rgw_port}} tcp_nodelay=1
rgw data = {root}/rgw
rgw thread pool size = 64
rgw cache enabled = true
rgw dynamic resharding = false
rgw enable usage log = false
rgw relaxed s3 bucket names = true
rgw dns name = localhost
"""


@dataclass(frozen=True)
class Gateway:
    """A running gateway.

    Attributes:
        endpoint: Its base URL.
        access_key: Of a user who may make buckets.
        secret_key: Of the same.
        log: What it writes, a line per request among it.
    """

    endpoint: str
    access_key: str
    secret_key: str
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """The usual AWS variables that make any client talk to this gateway."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self) -> str:
        """Create a fresh bucket and return its name."""
        import boto3

        name = f"bucket-{uuid.uuid4().hex[:12]}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        client.create_bucket(Bucket=name)
        client.close()
        return name


@contextmanager
def serve_rgw() -> Iterator[Gateway]:
    """Run a cluster and its gateway until the block ends.

    Raises:
        RuntimeError: The daemons are not installed, or do not come up.
    """
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        raise RuntimeError(
            f"{', '.join(absent)} not found: run .ci/install-ceph as root to install a Ceph gateway"
        )
    # A short path: the names of its sockets are limited to 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp"))
    cluster = _Cluster(root)
    try:
        yield cluster.start()
    except BaseException:
        cluster.stop()
        print(cluster.logs())
        raise
    finally:
        cluster.stop()
        shutil.rmtree(root, ignore_errors=True)


class _Cluster:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._config = root / "ceph.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "LC_ALL": "C",
            "CEPH_CONF": str(self._config),
        }

    def start(self) -> Gateway:
        for name in ("run", "log", "crash", "mon", "mgr", "osd", "rgw"):
            (self._root / name).mkdir()
        fsid = str(uuid.uuid4())
        mon_port, rgw_port = _free_ports(2)
        text = _CONFIG.format(fsid=fsid, port=mon_port, root=self._root, store_bytes=_STORE_BYTES)
        self._config.write_text(text.format(rgw_port=rgw_port))
        self._start_mon(fsid, mon_port)
        self._start_mgr()
        self._start_osd()
        return self._start_gateway(rgw_port)

    def _start_mon(self, fsid: str, port: int) -> None:
        keyring = str(self._root / "ceph.client.admin.keyring")
        mon_keyring = str(self._root / "ceph.mon.a.keyring")
        monmap = str(self._root / "monmap")
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "client.admin",
                  "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *", "--cap", "mds", "allow *")  # fmt: skip
        self._run(
            "ceph-authtool",
            "--create-keyring",
            mon_keyring,
            "--gen-key",
            "-n",
            "mon.",
            "--cap",
            "mon",
            "allow *",
        )
        self._run("ceph-authtool", mon_keyring, "--import-keyring", keyring)
        self._run(
            "monmaptool",
            "--create",
            "--addv",
            "a",
            f"[v2:127.0.0.1:{port}]",
            "--fsid",
            fsid,
            monmap,
        )
        self._run(
            "ceph-mon",
            "--mkfs",
            "-i",
            "a",
            "--monmap",
            monmap,
            "--keyring",
            mon_keyring,
            "-c",
            str(self._config),
        )
        self._spawn("ceph-mon", "-i", "a")
        self._wait(
            "the monitor", lambda: self._try("ceph", "--connect-timeout", "5", "mon", "stat")
        )

    def _start_mgr(self) -> None:
        self._make_key("mgr.a", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
        self._spawn("ceph-mgr", "-i", "a")

    def _start_osd(self) -> None:
        identity = str(uuid.uuid4())
        number = self._run("ceph", "osd", "new", identity).strip()
        self._make_key(
            f"osd.{number}",
            "mon",
            "allow profile osd",
            "mgr",
            "allow profile osd",
            "osd",
            "allow *",
        )
        self._run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", identity)
        self._spawn("ceph-osd", "-i", number)
        self._wait(
            "the object store",
            lambda: json.loads(self._run("ceph", "osd", "stat", "-f", "json"))["num_up_osds"] == 1,
        )

    def _start_gateway(self, port: int) -> Gateway:
        self._make_key("client.rgw", "mon", "allow rwx", "osd", "allow rwx", "mgr", "allow rw")
        self._spawn("radosgw", "-n", "client.rgw")
        endpoint = f"http://127.0.0.1:{port}"
        self._wait("the gateway", lambda: _answers(endpoint))
        user = json.loads(
            self._run(
                "radosgw-admin",
                "-n",
                "client.rgw",
                "user",
                "create",
                "--uid=tester",
                "--display-name=tester",
            )
        )
        key = user["keys"][0]
        log = self._root / "log" / "client.rgw.log"
        gateway = Gateway(endpoint, key["access_key"], key["secret_key"], log)
        self._wait("a bucket", lambda: bool(gateway.make_bucket()))
        return gateway

    def _make_key(self, name: str, *caps: str) -> None:
        path = str(self._root / f"ceph.{name}.keyring")
        self._run("ceph", "auth", "get-or-create", name, *caps, "-o", path)

    def _spawn(self, program: str, *arguments: str) -> None:
        output = (self._root / "log" / f"{program}.out").open("wb")
        with output:
            self._daemons.append(
                subprocess.Popen(
                    [*_DIE_WITH_PARENT, program, "-f", *arguments, "-c", str(self._config)],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            check=False,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        return done.stdout

    def _try(self, *command: str) -> bool:
        try:
            self._run(*command)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        last: Exception | None = None
        while time.monotonic() < deadline:
            for daemon in self._daemons:
                if daemon.poll() is not None:
                    raise RuntimeError(
                        f"{daemon.args!r} ended with code {daemon.returncode} before {what} was up"
                    )
            try:
                if ready():
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, it may pass until the deadline
                last = error
            time.sleep(0.1)
        raise RuntimeError(f"{what} did not come up within {_START_S:.0f} s") from last

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            # The data is worthless: nothing is lost by not waiting for an orderly end.
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        self._daemons = []

    def logs(self) -> str:
        files = sorted((self._root / "log").glob("*"))
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files
        )


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
