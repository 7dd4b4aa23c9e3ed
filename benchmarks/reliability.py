"""Makes docs/reliability.json and the tables of docs/reliability.md from what runs counted: ``python -m benchmarks.reliability``.

Runs leave their counts in build/reliability (`support.figures`). What was not run again keeps its figures, and the
commit on which they were counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.reliability_page import composed
from sim.bugs import BUGS
from support.figures import FOLDER

FIGURES = Path("docs/reliability.json")
PAGE = Path("docs/reliability.md")


def read_figures() -> dict[str, Any]:
    """Return what was counted before."""
    empty: dict[str, Any] = {"runs": {}, "bugs": {"commits": [], "rows": {}}, "peers": {}}
    return empty | (json.loads(FIGURES.read_text()) if FIGURES.exists() else {})


def write_figures(figures: Mapping[str, Any]) -> None:
    """Write the figures, and the page that is made of them."""
    text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
    FIGURES.write_text(text)
    # In the order of the file, so that the page can be made of it again.
    PAGE.write_text(composed(PAGE.read_text(), json.loads(text)))


def gathered(figures: Mapping[str, Any], notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return figures in which the suites that left notes have what those say."""
    runs: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    commits = set()
    for note in notes:
        if note["suite"] == "bugs":
            rows[note["run"]] = note["counts"]
            commits.add(note["commit"])
            continue
        run = runs.setdefault(note["suite"], {"counts": Counter(), "commits": []})
        run["counts"].update(note["counts"])
        run["commits"] = sorted({*run["commits"], note["commit"]})
    bugs = {
        **figures["bugs"],
        **({"known": len(BUGS)} if rows else {}),
        "rows": figures["bugs"]["rows"] | rows,
        "commits": sorted(commits) or figures["bugs"]["commits"],
    }
    return {**figures, "runs": figures["runs"] | runs, "bugs": bugs}


def main() -> None:
    """Gather what was counted and compose the page."""
    notes = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    write_figures(gathered(read_figures(), notes))
    print(f"{PAGE}: {len(notes)} notes of long runs")


if __name__ == "__main__":
    main()
