"""The tables of docs/reliability.md, from docs/reliability.json. Pure.

Invariant: a table stands between two marks that name it, and nothing else of the page is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.promises import PHRASES, PROMISES, told
from support.hostile import KINDS

OUTCOMES = ("detected", "repaired", "harmless", "wrong")
FATES = ("detected", "harmless", "silently wrong", "crash")
_DAMAGE = "damage: "

Figures = Mapping[str, Any]


def composed(page: str, figures: Figures) -> str:
    """Return the page with every table made from the figures."""
    for name, table in TABLES.items():
        page = placed(page, name, table(figures))
    return page


def placed(page: str, name: str, text: str) -> str:
    """Return a page with the text between the marks of a table."""
    first, last = (
        f"<!-- {name}: made by `make reliability`; do not edit -->",
        f"<!-- end of {name} -->",
    )
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the page has no marks to put {name} between")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def promises(figures: Figures) -> str:
    """Return what is promised, by which tests, and what these counted last."""
    counts = summed(figures)
    rows = []
    for number, promise in enumerate(PROMISES, 1):
        found = [told(suite, counts[suite]) for suite in promise.suites if suite in counts]
        tests = ", ".join(f"`{test.rpartition('::')[2]}`" for test in promise.tests)
        rows.append([f"P{number}", promise.text, tests, "; ".join(found)])
    return _table(["", "promise", "shown by", "last long run"], rows)


def runs(figures: Figures) -> str:
    """Return what every long run counted, and on which commit."""
    counts = summed(figures)
    rows = [
        [suite, told(suite, counts[suite]), ", ".join(_commits(figures, suite))]
        for suite in PHRASES
        if suite in counts
    ]
    return _table(["run", "counted", "commit"], rows)


def _commits(figures: Figures, suite: str) -> Sequence[str]:
    if suite == "bugs":
        found: Sequence[str] = figures["bugs"]["commits"]
        return found
    return sorted({c for n, r in figures["runs"].items() if _of(n, suite) for c in r["commits"]})


def _of(name: str, suite: str) -> bool:
    return name == suite or name.startswith(f"{suite}: ")


def summed(figures: Figures) -> Mapping[str, Mapping[str, int | float]]:
    """Return the counts of every suite; those of damage and of bugs are sums of their tables."""
    counts = {name: run["counts"] for name, run in figures["runs"].items()}
    damage: Counter[str] = Counter()
    for name, found in counts.items():
        if name.startswith(_DAMAGE):
            for cell, count in found.items():
                damage[cell.partition(": ")[2]] += count
    if damage:
        counts["damage"] = {
            "tried": damage.total(),
            **{outcome: damage[outcome] for outcome in OUTCOMES},
        }
    rows = figures.get("bugs", {}).get("rows")
    if rows:
        caught = sum(any(cells.values()) for cells in rows.values())
        # Of all that there were then: one that nobody was asked about was not caught.
        counts["bugs"] = {"bugs": figures["bugs"].get("known", len(rows)), "caught": caught}
    return counts


def faults(figures: Figures) -> str:
    """Return how often which fault struck in the simulator."""
    struck = figures["runs"].get("simulator: faults", {"counts": {}})["counts"]
    rows = [[name, f"{count:,}"] for name, count in sorted(struck.items())]
    return _table(["fault", "struck"], rows)


def bugs(figures: Figures) -> str:
    """Return which suite notices which bug."""
    rows = figures.get("bugs", {"rows": {}})["rows"]
    suites = sorted({suite for cells in rows.values() for suite in cells})
    suites.sort(key=lambda suite: -sum(cells.get(suite, 0) for cells in rows.values()))
    table = [
        [name, *("x" if cells.get(suite) else "" for suite in suites)]
        for name, cells in rows.items()
    ]
    total = [
        "**all**",
        *(str(sum(cells.get(suite, 0) for cells in rows.values())) for suite in suites),
    ]
    return _table(["bug", *suites], [*table, total])


def repository(figures: Figures) -> str:
    """Return what came of damage to a repository, by kind of object and by what was done with it."""
    found = {n[len(_DAMAGE) :]: r["counts"] for n, r in figures["runs"].items() if _of(n, "damage")}
    kinds = dict.fromkeys(cell.partition(": ")[0] for cells in found.values() for cell in cells)
    rows = [
        [kind, *(_counts(_part(cells, kind), OUTCOMES) for cells in found.values())]
        for kind in kinds
    ]
    return _table(["object", *found], rows)


def _part(cells: Mapping[str, int], kind: str) -> Mapping[str, int]:
    begin = f"{kind}: "
    return {name[len(begin) :]: n for name, n in cells.items() if name.startswith(begin)}


def peers(figures: Figures) -> str:
    """Return what came of flipped bits in the checkpoints of others."""
    rows = []
    for subject, found in figures["peers"].items():
        if "absent" in found:
            rows.append([subject, f"not measured: {found['absent']}", ""])
            continue
        for kind in sorted({name.partition(": ")[0] for name in found["flips"]}, reverse=True):
            counts = _part(found["flips"], kind)
            rows.append([f"{subject} ({found['version']})", kind, _counts(counts, FATES)])
    return _table(["checkpoint", "bytes", "outcome"], rows)


def hostile(figures: Figures) -> str:
    """Return the kinds of hostile input, and what holds each."""
    rows = [
        [kind, ", ".join(f"`{test.rpartition('/')[2]}`" for test in held.tests), held.note]
        for kind, held in KINDS.items()
    ]
    return _table(["input", "shown by", "but"], rows)


def _counts(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return " / ".join(str(counts.get(name, 0)) for name in names)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


TABLES = {
    "promises": promises,
    "runs": runs,
    "faults": faults,
    "bugs": bugs,
    "damage": repository,
    "peers": peers,
    "hostile": hostile,
}
