"""``python -m fwstore_demo``: see the package."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from fwstore_demo.story import tell


@contextlib.contextmanager
def open_place(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the URL of an empty store and the environment that reaches it."""
    if kind != "s3":
        with tempfile.TemporaryDirectory(prefix="fwstore-demo-") as folder:
            yield str(Path(folder) / "store"), {}
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        environment = {
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
        }
        os.environ.update(environment)
        import boto3

        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="fwstore-demo")
        yield "s3://fwstore-demo/store", environment
    finally:
        server.stop()


def main() -> int:
    """Run the demo; the exit code is 0 when every comparison held."""
    parser = argparse.ArgumentParser(prog="fwstore_demo", description=__doc__)
    parser.add_argument("--store", choices=["directory", "s3"], default="directory")
    arguments = parser.parse_args()
    console = Console()
    with open_place(arguments.store) as (url, environment):
        return 0 if tell(url, environment, console) else 1


if __name__ == "__main__":
    sys.exit(main())
