"""The history of a run as a graph of lines: terms, the canonical history, and what was left beside it.

Invariant: children stand above their parents, and the canonical history is the leftmost line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fwstore import Checkpoint, Run, TermDescription
from fwstore_cli.layers import first
from fwstore_cli.session import Session, make_table
from fwstore_cli.words import checkpoint_row, show_metrics, show_time

_TERM = "="
_KEPT = "*"
_LEFT = "o"


@dataclass(frozen=True, slots=True)
class Node:
    """A checkpoint, or the begin of a term.

    Attributes:
        name: Unique among the nodes.
        parent: The node before it, or None.
        symbol: What stands for it in the graph.
        term: The term.
        checkpoint: The checkpoint, or None for the begin of a term.
    """

    name: str
    parent: str | None
    symbol: str
    term: TermDescription
    checkpoint: Checkpoint | None = None


def show_graph(session: Session, run: Run, names: Mapping[str | None, str], limit: int) -> None:
    """Answer with the graph of a run.

    Args:
        session: Where the answer goes.
        run: The run.
        names: Of sites, by uuid, where there are several.
        limit: Lines shown at most; 0 for all.
    """
    terms = run.terms()
    table = make_table("graph", "step", "term", "time", "what", right=("step", "term"))
    lines = draw(terms)
    for line, node in first(lines, limit):
        table.add_row(line, *(_words(node, names) if node else ()))
    session.emit([_row(term) for term in reversed(terms)], table)
    if limit and len(lines) > limit:
        session.say(f"{len(lines) - limit} lines are not shown; see --limit")


def draw(terms: Sequence[TermDescription]) -> list[tuple[str, Node | None]]:
    """Return the lines of the graph, newest first, each with the node on it if there is one.

    Args:
        terms: All terms of the run, oldest first.
    """
    nodes = [node for term in reversed(terms) for node in _nodes(term)]
    by_name = {node.name: node for node in nodes}
    # The line that the newest term continues is drawn first, so that it stays leftmost.
    lanes = [nodes[0].name] if nodes else []
    lines: list[tuple[str, Node | None]] = []
    for node in nodes:
        lines.extend((line, None) for line in _join(lanes, node.name))
        if node.name not in lanes:
            lanes.append(node.name)
        place = lanes.index(node.name)
        marks = ["|"] * len(lanes)
        marks[place] = node.symbol
        lines.append((" ".join(marks), node))
        if node.parent in by_name:
            lanes[place] = str(node.parent)
        else:
            del lanes[place]
    return lines


def _nodes(term: TermDescription) -> Iterator[Node]:
    """Yield what a term saved, newest first, and its begin."""
    begin = f"t{term.number}"
    saved = (*term.checkpoints, *term.tail)
    parents = [begin, *(checkpoint.id for checkpoint in saved)]
    for place in reversed(range(len(saved))):
        symbol = _KEPT if place < len(term.checkpoints) else _LEFT
        yield Node(saved[place].id, parents[place], symbol, term, saved[place])
    yield Node(begin, None if term.after is None else term.after.id, _TERM, term)


def _join(lanes: list[str], name: str) -> Iterator[str]:
    """Let the lines that lead to a node meet, and yield how they go to the left."""
    while lanes.count(name) > 1:
        first = lanes.index(name)
        last = len(lanes) - 1 - lanes[::-1].index(name)
        yield " ".join("|" * last) + " ".join("/" * (len(lanes) - last))
        del lanes[last]
        for place in range(last - 1, first, -1):
            line = list(" ".join("|" * len(lanes)))
            line[2 * place - 1] = "/"
            yield "".join(line)


def _words(node: Node, names: Mapping[str | None, str]) -> tuple[str, str, str, str]:
    """Return what people read beside a node."""
    term, saved = node.term, node.checkpoint
    if saved is not None:
        return str(saved.step), str(term.number), show_time(saved.wall_time), show_metrics(saved)
    after = "from the beginning" if term.after is None else f"after step {term.after.step}"
    at = f" at {names[term.home]}" if term.home in names else ""
    return "", str(term.number), show_time(term.wall_time), f"begun by {term.holder}{at}, {after}"


def _row(term: TermDescription) -> dict[str, Any]:
    return {
        "term": term.number,
        "holder": term.holder,
        "home": term.home,
        "base": term.base,
        "after_step": None if term.after is None else term.after.step,
        "opened": term.wall_time,
        "checkpoints": [checkpoint_row(saved) for saved in term.checkpoints],
        "tail": [checkpoint_row(saved) for saved in term.tail],
    }
