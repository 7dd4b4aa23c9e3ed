"""``python -m fwstore_demo``: see the package."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from fwstore_demo import sites, story
from fwstore_demo.places import open_place, open_sites


def main() -> int:
    """Run the demo; the exit code is 0 when every comparison held."""
    parser = argparse.ArgumentParser(prog="fwstore_demo", description=__doc__)
    parser.add_argument("--store", choices=["directory", "s3"], default="directory")
    parser.add_argument("--sites", action="store_true", help="lose a site, and resume at another")
    arguments = parser.parse_args()
    console = Console()
    if arguments.sites:
        with open_sites(arguments.store) as places:
            return 0 if sites.tell(places, console) else 1
    with open_place(arguments.store) as (url, environment):
        return 0 if story.tell(url, environment, console) else 1


if __name__ == "__main__":
    sys.exit(main())
