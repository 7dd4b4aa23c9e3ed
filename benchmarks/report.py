"""Writes docs/benchmarks.md and its pictures from the results: ``python -m benchmarks.report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common.page import page
from benchmarks.common.plots import plot
from benchmarks.common.results import RESULTS, read_results

PAGE = Path("docs/benchmarks.md")


def main() -> None:
    """Write the page beside the pictures that it shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    results = list(read_results(arguments.results))
    if not results:
        raise SystemExit(f"{arguments.results} holds no results: run the questions first")
    plots = {}
    for result in results:
        name = result.question.name
        plots[name] = f"{arguments.page.stem}/{name}.svg"
        plot(result, arguments.page.parent / plots[name])
    arguments.page.write_text(page(results, plots))
    print(f"{arguments.page}: {len(results)} questions")


if __name__ == "__main__":
    main()
