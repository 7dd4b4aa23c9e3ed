"""The section on damage of docs/reliability.md, from the figures of `benchmarks.damage`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

BEGIN = "<!-- made by `make reliability`; do not edit from here -->"
END = "<!-- to here -->"
OUTCOMES = ("detected", "repaired", "harmless", "wrong")
FATES = ("detected", "harmless", "silently wrong", "crash")


def placed(page: str, text: str) -> str:
    """Return a page with the text between the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no markers to put the section between")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def section(damage: Mapping[str, Any]) -> str:
    """Return tables of what came of damage."""
    parts = []
    if "repository" in damage:
        parts.append(_repository(damage["repository"]))
    parts.append(_peers(damage["peers"]))
    return "\n\n".join(parts)


def _repository(found: Mapping[str, Any]) -> str:
    cells: Sequence[Mapping[str, Any]] = found["cells"]
    acts = list(dict.fromkeys(cell["act"] for cell in cells))
    rows = []
    for kind in dict.fromkeys(cell["kind"] for cell in cells):
        sums = {act: _sum(cells, kind, act) for act in acts}
        rows.append([kind, *(_counts(sums[act], OUTCOMES) for act in acts)])
    tried = sum(sum(cell["outcomes"].values()) for cell in cells)
    wrong = sum(cell["outcomes"].get("wrong", 0) for cell in cells)
    share = (
        "every byte and length"
        if found["every"] == 1
        else f"one byte and length of {found['every']}"
    )
    return "\n\n".join(
        [
            (
                f"{tried} damages of one repository ({share} of every object, and objects of a kind exchanged), "
                f"through everything that users do: **{wrong} wrong**. Cells: {' / '.join(OUTCOMES)}."
            ),
            _table(["object", *acts], rows),
        ]
    )


def _sum(cells: Sequence[Mapping[str, Any]], kind: str, act: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for cell in cells:
        if (cell["kind"], cell["act"]) == (kind, act):
            total.update(cell["outcomes"])
    return total


def _peers(peers: Mapping[str, Any]) -> str:
    rows = []
    for subject, found in peers.items():
        if "absent" in found:
            rows.append([subject, f"not measured: {found['absent']}", ""])
            continue
        for kind in sorted({name.partition(": ")[0] for name in found["flips"]}, reverse=True):
            counts = {fate: found["flips"].get(f"{kind}: {fate}", 0) for fate in FATES}
            rows.append([f"{subject} ({found['version']})", kind, _counts(counts, FATES)])
    return "\n\n".join(
        [
            (
                "The same with the checkpoints of others: one bit of a byte flipped, then a load. The stored bytes of the "
                f"tensors where they can be found in the files, and all others. Cells: {' / '.join(FATES)}."
            ),
            _table(["checkpoint", "bytes", "outcome"], rows),
        ]
    )


def _counts(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return " / ".join(str(counts.get(name, 0)) for name in names)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
